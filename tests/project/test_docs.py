"""README and docs/: links, command lines, Python, rows of data and tables agree with what is there; the site builds."""

import ast
import functools
import importlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.blank import BlankConfig
from data.command.console import commands
from data.command.options import load_config
from data.command.usage import help_text
from data.manifest import MANIFEST_SHAPE, SHARD_SHAPE
from data.schema import NULLABLE, NULLABLE_IN_REJECTS, group_schema, reject_schema
from data.sources.examples import open_source
from data.sources.source_options import SourceOptions
from data.sources.tasks import TASKS
from evaluation.answers.decoding import parse_decoding
from evaluation.compare import CompareConfig
from evaluation.config import EvaluateConfig
from evaluation.judge_check import JudgeCheckConfig
from evaluation.metrics import METRICS, in_order
from negatives_gen.config import GenerateConfig
from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES
from negatives_gen.verbs.export import FORMATS, ExportConfig
from negatives_gen.verbs.extend import ExtendConfig
from negatives_gen.verbs.inspect import InspectConfig
from negatives_gen.verbs.plan import PlanConfig
from negatives_gen.verbs.stats import StatsConfig
from negatives_gen.verbs.verify import VerifyConfig
from tests.support.commands import ROOT
from tests.support.prose import Page, code_names, command_lines, ours, page, pages
from trainer.config import ScriptArguments
from trainer.ensemble.ensembles import EnsembleConfig
from trainer.groups.ways import WAYS
from trainer.objectives import OBJECTIVES

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
# Module, or verb of negatives_gen -> its options.
CONFIGS: dict[str, Any] = {
    "negatives_gen": GenerateConfig, "evaluation.run": EvaluateConfig, "evaluation.judge_check": JudgeCheckConfig,
    "trainer.ensemble": EnsembleConfig,
    "data.blank": BlankConfig, "evaluation.compare": CompareConfig, "trainer.run": ScriptArguments,
    "plan": PlanConfig, "extend": ExtendConfig, "inspect": InspectConfig, "stats": StatsConfig,
    "verify": VerifyConfig, "export": ExportConfig,
}  # fmt: skip
CHECKED = ("negatives_gen", "evaluation.run", "trainer.ensemble")  # these look at no files, but for --earlier_set
OF_SETS = ("extend", "inspect", "stats", "verify", "export", "evaluation.compare")  # or runs, which stand in front
# `cpo VERB`, `python -m ROOM` and `python -m ROOM VERB` -> what it runs.
RUNS = {
    "generate": "negatives_gen",
    "train": "trainer.run",
    "evaluate": "evaluation.run",
    "blank": "data.blank",
    "ensemble": "trainer.ensemble",
    "compare": "evaluation.compare",
    "trainer": "trainer.run",
    "evaluation": "evaluation.run",
}
ROOMS_WITH_VERBS = ("negatives_gen", "trainer", "evaluation")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")


def named(one: Page) -> str:
    return one.name


# --- links


@pytest.mark.parametrize("one", pages(), ids=named)
def test_links_lead_somewhere(one: Page) -> None:
    for target in one.links:
        path, _, fragment = target.partition("#")
        file = (one.path.parent / path).resolve() if path else one.path
        assert file.exists(), target
        if fragment and file.suffix == ".md":
            assert fragment in page(str(file.relative_to(ROOT))).anchors, target


# --- commands


def blocks(language: str) -> list[Any]:
    """Each block of a language, of all pages."""
    found = ((one.name, number, block) for one in pages() for number, block in enumerate(one.blocks(language), 1))
    return [pytest.param(block, id=f"{name}-{number}") for name, number, block in found]


@pytest.mark.parametrize("block", blocks("bash"))
def test_command_lines_parse(block: str) -> None:
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    for words in command_lines(block):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= {*targets[1].split()}, words
        elif (found := ours(words)) and "..." not in words and not any("my_work" in word for word in words):
            parse_as_its_command(*found)


def parse_as_its_command(module: str, words: list[str]) -> None:
    """Read a command line as its command does before it does anything."""
    words = [word.replace("/app/", f"{ROOT}/") for word in words]
    if module == "cpo":
        assert words[0] in commands()
    if module == "cpo" or (module in ROOMS_WITH_VERBS and words and words[0] in {*CONFIGS, *RUNS}):
        module, words = words[0], words[1:]
    module = RUNS.get(module, module)
    if module not in CONFIGS:
        assert importlib.util.find_spec(module), module
        return
    if {"--help", "--help_all", "--version"} & set(words):
        return
    if module in OF_SETS:
        assert not words[0].startswith("-")
        words = list(itertools.dropwhile(lambda word: not word.startswith("-"), words))
    if module == "trainer.run":
        from trainer.arguments import parse

        parse([*words, "--use_cpu", "true", "--bf16", "false"])
    else:
        config = load_config(CONFIGS[module], words, command=module)
        if module in CHECKED and "--earlier_set" not in words:
            config.check()


def test_a_command_line_that_does_not_parse_would_be_found() -> None:
    block = 'D="--dataset x"\npython -m negatives_gen $D \\\n  --model m --out o --top_kk 3 && echo "a; b"  # more'
    first, second = command_lines(block)
    assert second == ["echo", "a; b"]
    options = ["--dataset", "x", "--model", "m", "--out", "o", "--top_kk", "3"]
    assert ours(first) == ("negatives_gen", options)
    with pytest.raises(ValueError, match="top_kk"):
        parse_as_its_command("negatives_gen", options)
    assert command_lines("python -c $'a{b}\\nc'") == [["python", "-c", "a{b}\nc"]]
    assert ours(["cpo", "stats", "DIR"]) == ("cpo", ["stats", "DIR"])
    assert ours(["accelerate", "launch", "-m", "trainer.run", "--x"]) == ("trainer.run", ["--x"])
    assert ours(["docker", "compose", "run", "--rm", "submit", "--seed", "1"]) == ("negatives_gen", ["--seed", "1"])
    assert ours(["pip", "install", "-m"]) is None


# Pages that tell users what to do; their options are checked wherever they are named.
TOLD = (
    *(
        "your-data",
        "negatives",
        "training",
        "sizing",
        "evaluation",
        "clusters",
        "publishing",
        "troubleshooting",
        "index",
    ),
    "library",
)
OF_OTHERS = {
    *("num_processes", "mixed_precision", "config_file", "address", "head", "generate", "runtime-env-json", "scale"),
    *("working-dir", "rm", "help", "help_all", "version", "config", "name", "NAME", "shm-size", "num-cpus"),
    *("repo-type", "local-dir", "from-literal", "strict", "extra-index-url", "no-deps"),
}


@functools.cache
def known_options() -> set[str]:
    from trainer.arguments import describe_inherited

    texts = [help_text(cls, usage="x", about="", argv=[]) for cls in CONFIGS.values()] + [describe_inherited()]
    return {name for text in texts for name in re.findall(r"--([A-Za-z_][\w.]*)", text)}


@pytest.mark.parametrize("name", TOLD)
def test_options_that_are_named_exist(name: str) -> None:
    said = re.findall(r"(?<![\w-])--([A-Za-z_][\w.-]*\w)", page(f"docs/{name}.md").text)
    unknown = {option for option in said if option not in known_options() | OF_OTHERS}
    assert {option for option in unknown if not option.startswith("engine.")} == set()


# --- Python


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_imports_what_there_is(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ROOMS:
            module = importlib.import_module(node.module)
            assert {alias.name for alias in node.names if not hasattr(module, alias.name)} == set()
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in ROOMS:
                    importlib.import_module(alias.name)


# --- rows of data


def read_row(row: str, task: str, columns: list[str], folder: Path) -> Any:
    (folder / "rows.jsonl").write_text(row)
    (example,) = open_source(str(folder / "rows.jsonl"), task, "all", columns=columns)
    assert example.problem is None
    return example


def test_each_shape_is_read_by_its_task(tmp_path: Path) -> None:
    sections = re.split(r"^### ", page("docs/your-data.md").section("Which shape is your file?"), flags=re.MULTILINE)
    tasks = []
    for section in sections[1:]:
        task = re.search(r"`--task ([\w-]+)`", section)
        assert task is not None
        tasks.append(task[1])
        for row in re.findall(r"```json\n(.*?)\n```", section, flags=re.DOTALL):
            example = read_row(row, task[1], [], tmp_path)
            river = example.prompt if task[1] == "continuation" else example.response
            assert "The Blue River" in (river if isinstance(river, str) else river[0]["content"])
    assert sorted(tasks) == sorted(TASKS)


def test_each_shape_of_preferences_is_read_by_its_options(tmp_path: Path) -> None:
    options = [cells[1] for cells in page("docs/your-data.md").table("Preference data")]
    rows = re.findall(r"```json\n(.*?)```", page("docs/your-data.md").section("Preference data"), flags=re.DOTALL)
    for row, said in zip(rows[0].splitlines(), options, strict=True):
        words = [word for word in code_names(said)[0].split() if word not in ("--signals", "given")]
        chosen: Any = load_config(SourceOptions, words, command="")
        example = read_row(row, chosen.task, chosen.columns, tmp_path)
        response = example.response if isinstance(example.response, str) else example.response[0]["content"]
        assert response.strip().startswith("The Blue")
        assert len(example.alternatives) == 1


# --- tables


def first_names(table: list[list[str]]) -> list[str]:
    return [name for cells in table for name in code_names(cells[0])]


def test_tables_name_every_entry() -> None:
    negatives, evaluation = page("docs/negatives.md"), page("docs/evaluation.md")
    assert sorted(first_names(negatives.table("Which negatives?"))) == sorted(STRATEGIES.names())
    assert sorted(first_names(negatives.table("Ranking signals"))) == sorted(SIGNALS.names())
    assert sorted(first_names(page("docs/training.md").table("Which objective?"))) == sorted(OBJECTIVES.names())
    assert first_names(evaluation.table("What is measured")) == [metric.name for metric in in_order(METRICS.names())]
    for word in first_names(evaluation.table("Decodings")):
        assert parse_decoding(word).name == word
    ways = {name.partition(":")[2] for name in first_names(negatives.table("What training chooses"))}
    assert ways == {"", "random", *WAYS}
    assert all(f"`{name}`" in negatives.section("Take it elsewhere") for name in FORMATS)
    said = [word for name in first_names(page("docs/index.md").table("Commands")) for word in name.split()]
    assert sorted(word for word in said if word != "cpo") == sorted(commands())


def test_negatives_has_every_key_and_every_option_of_an_entry() -> None:
    negatives = page("docs/negatives.md")
    keys = {name.partition(".")[0] for name in first_names(negatives.table("Options of the job"))}
    fields = set(GenerateConfig.__dataclass_fields__) - {"strategy_options", "signal_options"}
    elsewhere = {"sampler"}  # of strategies an and rn
    assert keys == fields - elsewhere
    options = set(re.findall(r"(?<![\w-])--(\w+)", negatives.text))
    for registry in (STRATEGIES, SIGNALS):
        for name in registry.names():
            known = registry.load(name).Options.__dataclass_fields__
            assert set(known) <= options, name


def test_the_glossary_has_every_column() -> None:
    columns = [column for name in METRICS.names() for column in METRICS.load(name).columns]
    headings = {cells[0]: cells[2] for cells in page("docs/evaluation.md").table("What a table entry means")}
    better = {column.heading: "" if column.better == "neither" else column.better for column in columns}
    assert headings == better


# --- the format


def flat(fields: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and type of each column and field."""
    for field in fields:
        is_list = pa.types.is_list(field.type)
        inner = field.type.value_type if is_list else field.type
        struct = pa.types.is_struct(inner)
        kind = "struct" if struct else str(inner)
        yield f"{prefix}{field.name}", f"list<{kind}>" if is_list else kind
        if struct:
            yield from flat(inner, f"{prefix}{field.name}{'[]' if is_list else ''}.")


@pytest.mark.parametrize(
    ("heading", "schema", "nullable"),
    [
        ("Columns of a shard", group_schema(["SIGNAL"]), NULLABLE),
        ("Columns of the rejects", reject_schema(), NULLABLE_IN_REJECTS),
    ],
)
def test_the_formats_columns_are_those_of_the_schema(heading: str, schema: pa.Schema, nullable: frozenset[str]) -> None:
    found = [(code_names(cells[0])[0], cells[1], cells[2]) for cells in page("docs/negative-set.md").table(heading)]
    null = {path: "yes" if path in nullable else "no" for path, _ in flat(schema)}
    null |= {path: "see below" for path in null if path.endswith(".SIGNAL")}
    # Lists of messages may be null as a whole: a role then is none.
    assert found == [(path, kind, null[path]) for path, kind in flat(schema)]


def test_the_formats_keys_are_those_of_the_manifest() -> None:
    manifest, record = re.findall(r"(?:^\|.*\n)+", page("docs/negative-set.md").section("The manifest"), re.MULTILINE)[
        :2
    ]
    for text, shape in ((manifest, MANIFEST_SHAPE), (record, SHARD_SHAPE)):
        cells = [line.split("|")[1] for line in text.splitlines()[2:]]
        assert [name for cell in cells for name in code_names(cell)] == list(shape)


# --- messages


def texts_of_sources() -> list[str]:
    """Every text of the sources, its expressions as NUL."""
    texts = []
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[\d.]*[a-z]", "\0", node.value))
    return texts


def test_messages_of_troubleshooting_are_said() -> None:
    said = re.findall(r"^\| `(.+?)` \|", page("docs/troubleshooting.md").text, re.MULTILINE)
    assert len(said) > 50
    texts = texts_of_sources()
    for message in said:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("...") if part), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message


# --- the site


@pytest.mark.seconds
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    htmls = {str(file.relative_to(tmp_path / "site")): file for file in (tmp_path / "site").rglob("*.html")}
    assert htmls.keys() >= {one.name[len("docs/") : -len(".md")] + ".html" for one in pages() if "docs/" in one.name}
    for file in htmls.values():
        loaded = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*", file.read_text(encoding="utf-8"))
        assert not [tag for tag in loaded if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]
    for file in (tmp_path / "site/assets").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", file.read_text(encoding="utf-8"))
    # The notebook with its tables is a page of the menu.
    walk = (tmp_path / "site/notebooks/walkthrough.html").read_text(encoding="utf-8")
    assert "<th>ranking_accuracy</th>" in walk
    assert 'href="notebooks/walkthrough.html"' in (tmp_path / "site/index.html").read_text(encoding="utf-8")
    # Every name of the API page was found.
    names = re.findall(r"^::: (\S+)", page("docs/api.md").text, re.MULTILINE)
    api = (tmp_path / "site/api.html").read_text(encoding="utf-8")
    assert {name for name in names if f'id="{name}"' not in api} == set()
