"""The import table of docs/architecture.md: from the sources, and from what is loaded in fresh processes."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import ROOT

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
HEAVY = ("torch", "transformers", "datasets", "ray", "vllm", "trl")
# Names that say what kind of module it is, or that Python gives; any other names one thing.
SHARED_NAMES = {"base", "config", "run", "__main__", "__init__"}


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        place: a package, or a module.
        may: what it may import of ours, beside its own package.
        never: what it must never load, not even through a library.
    """

    place: str
    may: tuple[str, ...]
    never: tuple[str, ...]

    @property
    def own(self) -> str:
        is_package = (ROOT / Path(*self.place.split("."))).is_dir()
        return self.place if is_package else self.place.rpartition(".")[0]


def table() -> dict[str, Rule]:
    """The rows of the documented table by their places."""

    def names(cell: str) -> tuple[str, ...]:
        words = [word.strip(" `") for word in cell.split(",")]
        return tuple(w.removesuffix(".py").strip("/").replace("/", ".") for w in words if w != "nothing")

    text = (ROOT / "docs/architecture.md").read_text()
    rows = text.split("| room | may import of ours | must never load |\n|---|---|---|\n")[1].split("\n\n")[0]
    rules = [
        Rule(names(place)[0], names(may), names(never))
        for place, may, never in re.findall(r"\|(.*)\|(.*)\|(.*)\|", rows)
    ]
    return {rule.place: rule for rule in rules}


RULES = table()


def modules(place: str) -> list[str]:
    """The modules of a package, or the module itself."""
    folder = ROOT / Path(*place.split("."))
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


ALL = [module for room in ROOMS for module in modules(room)]


def rule_of(module: str) -> Rule:
    """The row of the narrowest place that the module lies in."""
    return RULES[max((place for place in RULES if within(module, (place,))), key=len)]


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module's source."""
    path = ROOT / Path(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


@functools.cache
def imported_names(module: str) -> set[str]:
    """Every module that a source file imports, wherever in it; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


# --- from the sources ---


def test_the_table_has_every_room() -> None:
    assert set(ROOMS) < set(RULES)
    assert all(rule.never and (rule.may or rule.place == "data") for rule in RULES.values())
    for rule in RULES.values():
        assert [name for place in (rule.place, *rule.may) for name in modules(place) if name not in ALL] == []


@pytest.mark.parametrize("module", ALL)
def test_sources_import_only_what_the_table_allows(module: str) -> None:
    rule = rule_of(module)
    for name in imported_names(module):
        assert not within(name, rule.never), f"{module} imports {name}"
        if name.split(".")[0] in ROOMS and not within(name, (rule.own, *rule.may)):
            # `from trainer import x` names the package itself: allowed only if x is.
            allowed = {n for n in imported_names(module) if n.startswith(name + ".")}
            assert allowed, f"{module} imports {name}"
            assert all(within(n, (rule.own, *rule.may)) for n in allowed), f"{module} imports {name}"


def test_only_the_engine_imports_vllm_and_only_the_job_imports_ray() -> None:
    assert [m for m in ALL if any(within(n, ("vllm",)) for n in imported_names(m))] == ["negatives_gen.models.engine"]
    of_ray = [m for m in ALL if any(within(n, ("ray",)) for n in imported_names(m))]
    assert of_ray == ["negatives_gen.job.cluster", "negatives_gen.job.pipeline"]


def test_no_two_modules_of_different_rooms_have_one_name() -> None:
    rooms = defaultdict(set)
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            rooms[path.stem].add(room)
    assert {name: found for name, found in rooms.items() if len(found) > 1 and name not in SHARED_NAMES} == {}


def test_no_test_imports_from_another_test() -> None:
    """What tests share lies in tests/support."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and ".test_" in (node.module or ""):
                found.append(f"{path.name} imports from {node.module}")
    assert found == []


def test_nothing_refers_to_a_design_document_that_is_not_here() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout: " + listed.stderr.strip())
    texts = [ROOT / name for name in listed.stdout.splitlines() if name.endswith((".py", ".md", ".toml", ".yaml"))]
    word = re.compile("DESIG" + "N")  # not to find itself
    assert [str(path) for path in texts if path.exists() and word.search(path.read_text())] == []


# --- from fresh processes ---

# Forks for each list of modules once torch and transformers are there, which take most of the time and are allowed.
PROGRAM = """
import importlib, json, os, sys

def loaded(names):
    reader, writer = os.pipe()
    if not os.fork():
        for name in names:
            importlib.import_module(name)
        os.write(writer, json.dumps(sorted(name for name in sys.modules if "." not in name)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return json.load(file)

light, heavy = json.load(sys.stdin)
result = {place: loaded(names) for place, names in light.items()}
import torch, transformers.modeling_utils
result["torch and transformers"] = loaded([])
result |= {place: loaded(names) for place, names in heavy.items()}
print(json.dumps(result))
"""
CONFIGS = "config modules"


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """For each place of the table, and for all config modules: the top-level modules that importing them loads."""
    places = {place: [name for name in modules(place) if not name.endswith("__main__")] for place in RULES}
    configs = [m for m in ALL if m.endswith(".config") or within(m, ("data.command",))]
    light = {CONFIGS: configs, **{p: names for p, names in places.items() if "torch" in RULES[p].never}}
    heavy = {place: names for place, names in places.items() if place not in light}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps([light, heavy]), cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {place: set(names) for place, names in json.loads(done.stdout).items()}


@pytest.mark.seconds
@pytest.mark.parametrize("place", RULES)
def test_importing_all_of_a_place_loads_nothing_forbidden(place: str, loaded: dict[str, set[str]]) -> None:
    assert not loaded["torch and transformers"] & {"ray", "vllm", "trl"}
    assert place.split(".")[0] in loaded[place]
    assert not loaded[place] & set(RULES[place].never)


@pytest.mark.seconds
def test_config_modules_load_no_heavy_library(loaded: dict[str, set[str]]) -> None:
    assert not loaded[CONFIGS] & set(HEAVY)


# --- no circles ---


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside of functions and those for type checkers included: types of several modules are in a leaf."""
    imports = {module: imported_modules(module) - {module} for module in ALL}
    assert "evaluation.subject" in imports["evaluation.metrics.base"]  # for type checkers alone
    assert circles(imports) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": set()}) == [["a", "b", "c"]]


def imported_modules(module: str) -> set[str]:
    """Our modules that a source file imports, wherever in it; of `from a import b` a.b if that is a module, else a."""
    names: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in ALL else node.module for name in inner}
    return names & set(ALL)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules of which each leads to every other one, sorted."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = imports[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {module: reached(module) for module in imports}
    groups = {
        frozenset(m for m in reach[module] if module in reach[m]) for module in imports if module in reach[module]
    }
    return sorted(map(sorted, groups))
