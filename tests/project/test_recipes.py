"""Every YAML in recipes/ parses by its command, and says what the paper says of its row."""

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data.command.options import load_config, read_yaml
from data.counts import parse_counts
from evaluation.answers.decoding import parse_decoding
from evaluation.config import EvaluateConfig
from evaluation.judging.base import JudgeOptions
from evaluation.paper import TABLES, WIN_RATE
from negatives_gen.config import GenerateConfig
from tests.support.commands import ROOT
from trainer.arguments import parse
from trainer.ensemble.ensembles import EnsembleConfig, directory_name

# Those in recipes/accelerate are accelerate's, see test_fsdp.py.
QUICKSTART = sorted((ROOT / "recipes").glob("*.yaml"))
PAPER = sorted((ROOT / "recipes" / "paper").rglob("*.yaml"))
GIVEN_LISTS = sorted((ROOT / "recipes" / "given").glob("*.yaml"))
SMALL = sorted((ROOT / "recipes" / "small").rglob("*.yaml"))
TASKS = ("facts", "dolly", "stories")

# What no recipe makes: a model and data from elsewhere, `make reproduce-small`'s embedder, data.blank's directory.
GIVEN = {
    "runs/paper/open_llama_3b",
    "runs/paper/wikidump.parquet",
    "runs/small/minilm",
    "runs/small/facts/blank",
}

MIX = "bn=3,mn=5,tn=3"
# File -> objective, negatives, steps, reference, and what the paper reports: table and numbers, from the paper itself.
TRAINED: dict[str, tuple[str, str | None, int, str, list[str]]] = {
    "dolly-openllama-3b/table1-mle": ("mle", None, 200, "reference-1000", ["Table 1", ".505", "Table 4", ".505"]),
    "dolly-openllama-3b/table1-bnr": ("cpo-rank", "bn=4", 200, "reference-1000", ["Table 1", ".599"]),
    "dolly-openllama-3b/table1-mnr": ("cpo-rank", "mn=4", 200, "reference-1000", ["Table 1", ".567"]),
    "dolly-openllama-3b/table1-tnr": ("cpo-rank", "tn=4", 200, "reference-1000", ["Table 1", ".601"]),
    "dolly-gpt2-xl/mle": ("mle", None, 1000, "reference", ["Table 2", ".471"]),
    "dolly-gpt2-xl/pss": ("pss", None, 1000, "reference", ["Table 2", ".086"]),
    "dolly-gpt2-xl/dpo": ("dpo", "un=1", 1000, "reference", ["Table 2", ".383"]),
    "dolly-gpt2-xl/anr": ("cpo-rank", "an=11", 1000, "reference", ["Table 2", ".506"]),
    "dolly-gpt2-xl/mixnr": ("cpo-rank", MIX, 1000, "reference", ["Table 2", ".476"]),
    "dolly-openllama-3b/pss": ("pss", None, 1000, "reference", ["Table 4", ".270"]),
    "dolly-openllama-3b/dpo": ("dpo", "un=1", 1000, "reference", ["Table 4", ".555"]),
    "dolly-openllama-3b/anr": ("cpo-rank", "an=11", 200, "reference-1000", ["Table 4", ".643"]),
    "dolly-openllama-3b/an": ("cpo", "an=11", 200, "reference-1000", ["Table 4", ".560"]),
    "dolly-openllama-3b/mle": (
        *("mle", None, 1000, "reference"),
        ["Table 4", ".522", "Table 3", ".497", ".517", ".532", ".514"],
    ),
    "dolly-openllama-3b/mixnr": (
        *("cpo-rank", MIX, 1000, "reference"),
        ["Table 4", ".608", "Table 3", ".591", ".611", ".607"],
    ),
    "dolly-openllama-3b/mixn": ("cpo", MIX, 1000, "reference", ["Table 4", ".576"]),
    "wiki-openllama-3b/mle": ("mle", None, 1000, "reference", ["Table 5", ".508", ".524"]),
    "wiki-openllama-3b/bnr": ("cpo-rank", "bn=4", 1000, "reference", ["Table 5", ".455", ".610"]),
}
REFERENCES = {
    "dolly-openllama-3b/reference-1000": 1000,
    "dolly-openllama-3b/reference": 2000,
    "dolly-gpt2-xl/reference": 2000,
    "wiki-openllama-3b/reference": 2000,
}
SETS = {
    "dolly-openllama-3b/negatives-1000": "an=11,bn=4,mn=4,tn=4",
    "dolly-openllama-3b/negatives": "bn=3,mn=5,tn=3,un=1",
    "dolly-gpt2-xl/negatives": "an=11,bn=3,mn=5,tn=3,un=1",
    "wiki-openllama-3b/negatives": "bn=4",
}
# CPO model -> alpha -> what the paper reports.
ENSEMBLES = {
    "dolly-gpt2-xl/mixnr": {0.5: [".479"], 0.7: [".487"], 0.9: [".485"]},
    "dolly-openllama-3b/mixnr": {0.1: [".620"], 0.3: [".614"], 0.5: [".610"], 0.7: [".601"], 0.9: [".550"]},
    "wiki-openllama-3b/bnr": {
        0.1: [".627"],
        0.3: [".673"],
        0.5: [".505", ".645"],
        0.7: [".500", ".651"],
        0.9: [".538", ".668"],
    },
}
LONGEST_ANSWER = {"dolly": 512, "wiki": 2048}
TABLE_3 = ["topk50", "topk50-p0.7", "beam2", "beam4"]
EVALUATIONS = {
    "dolly-openllama-3b/evaluate-table1": ["greedy"],
    "dolly-gpt2-xl/evaluate-table2": ["greedy"],
    "dolly-openllama-3b/evaluate-table3": TABLE_3,
    "dolly-openllama-3b/evaluate-table4": ["greedy"],
    "wiki-openllama-3b/evaluate-table5": ["greedy"],
}
BASE_MODELS = {"gpt2-xl": "openai-community/gpt2-xl", "openllama-3b": "runs/paper/open_llama_3b"}

# Row of the small grid -> objective and negatives: the paper's, and where it asked GPT-3.5 (DPO), a sample.
SMALL_ROWS = {
    "mle": ("mle", None),
    "an": ("cpo", "an=11"),
    "anr": ("cpo-rank", "an=11"),
    "bnr": ("cpo-rank", "bn=4"),
    "mnr": ("cpo-rank", "mn=4"),
    "tnr": ("cpo-rank", "tn=4"),
    "mixn": ("cpo", MIX),
    "mixnr": ("cpo-rank", MIX),
    "dpo": ("dpo", "an=1"),
    "pss": ("pss", None),
}
# As in the paper: of MixNR on instructions, of BNR on continuations.
SMALL_ENSEMBLES = {"facts": "mixnr", "dolly": "mixnr", "stories": "bnr"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategy UN and the judge want one."""
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")


def paper(name: str) -> Path:
    return ROOT / "recipes" / "paper" / f"{name}.yaml"


def small(task: str, name: str) -> Path:
    return ROOT / "recipes" / "small" / task / f"{name}.yaml"


def comment(path: Path) -> str:
    """The comment at the head of a recipe, a command on two lines joined."""
    lines = path.read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return "\n".join(line.removeprefix("#").strip() for line in head).replace("\\\n", "")


def command(path: Path) -> str:
    """The module that the recipe's comment runs it with."""
    found = re.findall(r"-m ([\w.]+) --config (recipes/(?:paper|small|given)/\S+)", comment(path))
    assert [name for _, name in found] == [str(path.relative_to(ROOT))]
    return found[0][0]


def metrics_of(config: EvaluateConfig) -> list[str]:
    """Names of the metrics that an evaluation measures."""
    return [metric.name for metric in config.chosen_metrics()]


@functools.cache
def parsed(path: Path) -> Any:
    """A recipe as its command reads it: the options, checked; of trainer.run ours and transformers'."""
    words, module = ["--config", str(path)], command(path)
    if module == "trainer.run":
        return parse(words)[:2]
    configs = {"negatives_gen": GenerateConfig, "evaluation.run": EvaluateConfig, "trainer.ensemble": EnsembleConfig}
    config = load_config(configs[module], words, command="")
    config.check()
    return config


def made_by(path: Path) -> list[str]:
    """The directories that a recipe writes."""
    options = read_yaml(str(path))
    if command(path) == "trainer.ensemble":
        return [f"{options['output_dir']}/{directory_name(float(options['alpha']))}"]
    return [options["output_dir"] if "output_dir" in options else options["out"]]


@pytest.mark.parametrize("path", QUICKSTART, ids=lambda path: path.name)
def test_the_quickstarts_recipes_parse(path: Path) -> None:
    if path.stem.endswith(("-reference", "-train")):
        needed = {"objective": ["--objective", "cpo"], "output_dir": ["--output_dir", "runs/o"]}
        missing = [word for key, flag in needed.items() if key not in read_yaml(str(path)) for word in flag]
        script, training, _ = parse(["--config", str(path), *missing])
        assert training.max_steps > 0
        assert script.model
    elif path.stem.endswith("-evaluate"):
        config = load_config(EvaluateConfig, ["--config", str(path)], command="evaluation.run")
        config.check()
        assert list(config.models()) == ["reference", "mle", "cpo", "cpo-rank", "cpo-bn"]
    else:
        config = load_config(GenerateConfig, ["--config", str(path)], command="negatives_gen")
        config.check()
        assert parse_counts(config.strategies, "strategies") == {"an": 11, "bn": 11}
        assert config.strategy_options["an"].top_k == 50


def test_recipes_hold_yaml_and_what_runs_the_study() -> None:
    files = [p for p in (ROOT / "recipes").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {p.suffix for p in files} == {".yaml", ".py"}
    assert {p.parent for p in files if p.suffix == ".py"} == {ROOT / "recipes/study"}


@pytest.mark.parametrize(
    "path", [*PAPER, *SMALL, *GIVEN_LISTS], ids=lambda path: str(path.relative_to(ROOT / "recipes"))
)
def test_a_recipe_parses_by_the_command_in_its_comment(path: Path) -> None:
    options = parsed(path)
    if command(path) == "evaluation.run":
        assert [parse_decoding(word).name for word in options.decode] == options.decode


@pytest.mark.parametrize("recipes", [PAPER, SMALL], ids=["paper", "small"])
def test_every_directory_that_a_recipe_reads_is_given_or_written_by_another(recipes: list[Path]) -> None:
    written = [directory for path in recipes for directory in made_by(path)]
    assert len(set(written)) == len(written)
    for path in recipes:
        options = {
            key: value for key, value in read_yaml(str(path)).items() if key not in ("out", "output_dir", "store")
        }
        read = set(re.findall(r"\bruns/[\w./-]+", str(options)))
        assert read <= {*written, *GIVEN}, path


# --- the paper's settings


def tables_numbers(directory: str) -> list[str]:
    """The paper's numbers of a model: what evaluation.paper puts beside its rows in any of the evaluations."""
    found = []
    for name in EVALUATIONS:
        config = parsed(paper(name))
        table = TABLES[config.paper]
        labels = [label for label, path in config.models().items() if path == directory]
        for measured, decoding in table.values:
            against = "truth" if measured == WIN_RATE else ""
            found += [table.value(label, decoding, measured, against) for label in labels]
    return sorted(f"{number:g}".removeprefix("0").ljust(4, "0") for number in found if number is not None)


def test_every_row_of_the_papers_tables_has_a_recipe() -> None:
    """By evaluation.paper's numbers: each is that of a model and a decoding of the table's evaluation."""
    for table_name, table in TABLES.items():
        (name,) = [name for name in EVALUATIONS if name.endswith(table_name)]
        config = parsed(paper(name))
        assert config.paper == table_name
        assert config.task == table.task
        for (measured, decoding), rows in table.values.items():
            against = "truth" if measured == WIN_RATE else ""
            found = [table.value(model, decoding, measured, against) for model in config.models()]
            assert sorted(value for value in found if value is not None) == sorted(rows.values())
            assert decoding in config.decode


def test_the_paper_recipes_are_those_listed_here() -> None:
    ensembles = {f"{name}-alpha-{alpha}" for name, alphas in ENSEMBLES.items() for alpha in alphas}
    names = {str(path.relative_to(ROOT / "recipes" / "paper").with_suffix("")) for path in PAPER}
    assert names == {*TRAINED, *REFERENCES, *SETS, *EVALUATIONS, *ensembles}


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_is_trained_as_in_the_paper(name: str) -> None:
    objective, use, steps, reference, reported = TRAINED[name]
    folder = f"runs/paper/{Path(name).parent}"
    script, training = parsed(paper(name))
    assert (script.objective, script.negatives, training.max_steps) == (objective, use, steps)
    assert script.model == f"{folder}/{reference}"
    assert script.shards == [f"{folder}/{reference.replace('reference', 'negatives')}"]
    assert script.objective_options["cpo"].beta == 5
    assert read_yaml(str(paper(name))).get("beta") == (None if objective in ("mle", "pss") else 5)
    assert script.objective_options["pss"].pss_mixtures == 3
    check_optimiser(training)
    assert all(text in comment(paper(name)) for text in reported)
    assert tables_numbers(f"{folder}/{Path(name).name}") == sorted(text for text in reported if text.startswith("."))


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_trained_as_in_the_paper(name: str) -> None:
    script, training = parsed(paper(name))
    assert (script.objective, training.max_steps) == ("mle", REFERENCES[name])
    assert script.model == BASE_MODELS[Path(name).parent.name.partition("-")[2]]
    assert (script.task, script.split) == ("continuation" if name.startswith("wiki") else "dolly", "train")
    check_optimiser(training)


def check_optimiser(training: Any) -> None:
    assert (training.learning_rate, training.weight_decay) == (1e-5, 0.05)
    assert str(training.optim.value).startswith("adamw")
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 64


@pytest.mark.parametrize("name", SETS)
def test_a_set_holds_the_papers_negatives_and_those_of_every_row(name: str) -> None:
    config = parsed(paper(name))
    assert ",".join(config.strategies) == SETS[name]
    of = config.strategy_options
    assert (of["an"].top_k, of["an"].temperature, of["mn"].mn_share, of["bn"].bn_batch_size) == (50, 1.0, 0.15, 64)
    assert (config.split, config.limit) == ("train", None)
    assert config.strategy_options["un"].api.model == ("gpt-3.5-turbo" if "un=" in SETS[name] else None)
    held = parse_counts(config.strategies, "")
    rows = [parsed(paper(row))[0] for row in TRAINED]
    uses = [parse_counts(row.use, "") for row in rows if row.shards == [config.out] and row.use]
    assert uses
    assert {strategy: max(use.get(strategy, 0) for use in uses) for strategy in held} == held


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_row_mixes_the_cpo_model_with_mle(name: str) -> None:
    for alpha, reported in ENSEMBLES[name].items():
        path = paper(f"{name}-alpha-{alpha}")
        options = parsed(path)
        assert options.alpha == [alpha]
        assert options.cpo == f"runs/paper/{name}"
        assert options.mle == f"runs/paper/{Path(name).parent}/mle"
        assert all(text in comment(path) for text in (f"alpha {alpha}", *reported))
        assert tables_numbers(made_by(path)[0]) == sorted(reported)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_table_is_measured_as_in_the_paper(name: str) -> None:
    config = parsed(paper(name))
    wiki = name.startswith("wiki")
    assert config.decode == EVALUATIONS[name]
    assert (config.split, config.limit, config.metric_options["win_rate"].opponents) == ("test", 1000, ["truth"])
    template = "wiki" if wiki else "dolly"
    assert read_yaml(str(paper(name)))["max_new_tokens"] == LONGEST_ANSWER[template]
    expected = JudgeOptions(model=["gpt-3.5-turbo"], template=template, orders="paper")
    assert config.metric_options["win_rate"].judge == expected
    assert metrics_of(config) == ["win_rate", *(["mauve"] if wiki else []), "text"]


# --- the small grid


@pytest.mark.parametrize("task", TASKS)
def test_the_small_grid_has_every_row_with_the_papers_objective_and_negatives(task: str) -> None:
    rows = {name: parsed(small(task, name)) for name in SMALL_ROWS}
    assert {name: (script.objective, script.negatives) for name, (script, _) in rows.items()} == SMALL_ROWS
    folder = f"runs/small/{task}"
    for script, training in rows.values():
        assert (script.model, script.shards) == (f"{folder}/reference", [f"{folder}/negatives"])
        cpo, pss = (script.objective_options[name] for name in ("cpo", "pss"))
        assert (cpo.beta, pss.pss_mixtures, training.weight_decay) == (5, 3, 0.05)
    assert read_yaml(str(small(task, "dpo")))["beta"] == 5  # said, as the paper does not and TRL's default is another
    settings = {(t.max_steps, t.per_device_train_batch_size, t.learning_rate) for _, t in rows.values()}
    assert len(settings) == 1  # rows of one task differ in objective and negatives alone
    held = parse_counts(parsed(small(task, "negatives")).strategies, "")
    for _, use in SMALL_ROWS.values():
        assert all(held[strategy] >= count for strategy, count in parse_counts(use, "").items()) if use else True
    trained_on, watched = (parsed(small(task, name)) for name in ("negatives", "held-out"))
    assert (trained_on.split, watched.split) == ("train", "test")


@pytest.mark.parametrize("task", TASKS)
def test_the_small_grid_is_evaluated_by_what_can_be_checked_here(task: str) -> None:
    cpo = SMALL_ENSEMBLES[task]
    rows, sweep, decodings = (parsed(small(task, f"evaluate-{name}")) for name in ("rows", "sweep", "decodings"))
    ensembles = [f"{cpo}-alpha-{alpha}" for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert set(rows.models()) == {"reference", *SMALL_ROWS, *ensembles}
    for name in ensembles:
        options = parsed(small(task, name))
        assert rows.models()[name] == f"{options.output_dir}/{directory_name(options.alpha[0])}"
    assert sweep.alphas() == [0, 0.1, 0.3, 0.5, 0.7, 0.9]
    assert sweep.cpo == f"runs/small/{task}/{cpo}"
    assert decodings.decode == TABLE_3
    assert list(decodings.models()) == ["mle", "mixnr"]
    for config in (rows, sweep, decodings):
        assert "win_rate" not in metrics_of(config)
        assert "mauve" not in metrics_of(config) or (config is rows and config.limit >= 100)
        assert ("correct" in metrics_of(config)) == (task == "facts")
        assert (config.store, config.split) == (rows.store, "test")
    # Else the sweep would not find its answers in the store.
    asked = [(c.decode, c.limit, c.max_new_tokens, c.seed, c.dataset, c.task) for c in (rows, sweep)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("task", TASKS)
def test_make_runs_every_recipe_of_a_task_once_and_in_order(task: str, tmp_path: Path) -> None:
    words = ["make", "-n", "small-task", f"TASK={task}", f"RUNS={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    run = re.findall(r"-m ([\w.]+) --config (\S+)", done.stdout)
    paths = [path for path in SMALL if path.parent.name == task]
    assert sorted(run) == sorted((command(path), str(path.relative_to(ROOT))) for path in paths)
    names = [Path(path).stem for _, path in run]
    assert names[:3] == ["reference", "negatives", "held-out"]
    assert names[-3:] == ["evaluate-rows", "evaluate-sweep", "evaluate-decodings"]
    assert {name for name in names if "-alpha-" in name} == set(names[-8:-3])


def test_make_skips_what_is_there(tmp_path: Path) -> None:
    for name in ("reference", "negatives", "held-out", "mle", "an"):
        marker = "manifest.json" if name in ("negatives", "held-out") else "trainer_state.json"
        (tmp_path / "small" / "dolly" / name).mkdir(parents=True)
        (tmp_path / "small" / "dolly" / name / marker).touch()
    words = ["make", "-n", "small-task", "TASK=dolly", f"RUNS={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    trained = re.findall(r"-m trainer.run --config recipes/small/dolly/(\S+).yaml", done.stdout)
    assert sorted(trained) == sorted(SMALL_ROWS.keys() - {"mle", "an"})
    assert "negatives_gen" not in done.stdout
