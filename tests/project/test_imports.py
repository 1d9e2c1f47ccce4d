"""The import table of DESIGN section 1, from the sources and from what is loaded in fresh processes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
MATHS = ("trainer.scoring.logprobs", "trainer.scoring.packing")

# What a room may import of ours; a room always may import itself.
MAY_IMPORT = {
    "data": (),
    "negatives_gen": ("data", *MATHS),
    "trainer": ("data",),
    "evaluation": (
        "data",
        *MATHS,
        "trainer.objectives.rewards",
        "trainer.ensemble.ensembles",
        "negatives_gen.models.engine",
        "negatives_gen.models.embedder",
        "negatives_gen.models.reward_model",
    ),
}
# What it must never load, not even through a library.
NEVER = {
    "data": ("torch", "ray", "vllm", "trl"),
    "negatives_gen": ("trl",),
    "trainer": ("ray", "vllm", "negatives_gen", "evaluation"),
    "evaluation": ("trl",),
}
# Narrower rules for single modules.
NEVER_MODULE = {
    "trainer.scoring.logprobs": ("ray", "vllm", "trl"),
    "trainer.scoring.packing": ("ray", "vllm", "trl"),
    "negatives_gen.models.engine": ("trl", "ray", "trainer"),
    **dict.fromkeys(
        ("negatives_gen.config", "trainer.config", "evaluation.config", "data.command.options"),
        ("torch", "transformers", "datasets", "ray", "vllm", "trl"),
    ),
}
# Modules whose whole point is the forbidden library, tested elsewhere by name.
ONLY_VLLM = "negatives_gen.models.engine"
ONLY_RAY = "negatives_gen.job.pipeline"


def modules() -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    ]


def imported_names(module: str) -> set[str]:
    """Every module that a source file imports, wherever in it; `from a import b` counts as a and a.b."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("module", modules())
def test_sources_import_only_what_the_table_allows(module: str) -> None:
    room = module.split(".")[0]
    forbidden = (*NEVER[room], *NEVER_MODULE.get(module, ()))
    for name in imported_names(module):
        assert not within(name, forbidden), f"{module} imports {name}"
        if name.split(".")[0] in ROOMS and not within(name, (room, *MAY_IMPORT[room])):
            # `from trainer import x` names the package itself: allowed only if x is.
            allowed = {n for n in imported_names(module) if n.startswith(name + ".")}
            assert allowed, f"{module} imports {name}"
            assert all(within(n, MAY_IMPORT[room]) for n in allowed), f"{module} imports {name}"


def test_only_the_engine_imports_vllm_and_only_the_pipeline_imports_ray() -> None:
    assert {m for m in modules() if any(within(n, ("vllm",)) for n in imported_names(m))} == {ONLY_VLLM}
    assert {m for m in modules() if any(within(n, ("ray",)) for n in imported_names(m))} == {ONLY_RAY}


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_whole_room_loads_nothing_forbidden(room: str) -> None:
    names = [m for m in modules() if m.split(".")[0] == room and not m.endswith("__main__")]
    code = f"import {', '.join(names)}; import sys; print(sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(ast.literal_eval(fresh(code)))
    assert not loaded & set(NEVER[room])


@pytest.mark.parametrize("module", sorted(NEVER_MODULE))
def test_importing_a_module_loads_nothing_forbidden(module: str) -> None:
    loaded = set(
        ast.literal_eval(fresh(f"import {module}, sys; print(sorted(m for m in sys.modules if '.' not in m))"))
    )
    assert not loaded & set(NEVER_MODULE[module])


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
