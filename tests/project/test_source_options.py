"""Commands that read a data source take the same options of it, say how many rows are held out, and record them."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets.config
import pytest

import data.blank
from data.blank import BlankConfig
from data.command.options import make_config
from data.shards import NegativeSet
from data.sources import facts
from data.sources.source_options import SourceOptions
from data.sources.splits import SPLITS
from evaluation.answers.cache import Store
from evaluation.config import EvaluateConfig
from evaluation.prepared import describe_evaluation, prepare
from negatives_gen.config import GenerateConfig
from negatives_gen.job.job import generate
from negatives_gen.verbs.plan import PlanConfig
from tests.support.without_ray import without_ray
from tests.support.written import refusal
from trainer.config import ScriptArguments
from trainer.run import main as train

COLUMNS = "prompt=q.text,completion=a"
TEMPLATE = "Q: {prompt}\nA:"
SAID = "40 rows: 30 train, 10 held out"
RECORDED = {
    "task": "prompt-completion",
    "columns": {"prompt": "q.text", "completion": "a"},
    "prompt_template": {"syntax": "text", "source": TEMPLATE},
    "test_share": 0.25,
}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"q": {"text": row["prompt"]}, "a": row["completion"]} for row in facts.examples()[:40]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"dataset": str(path), "columns": COLUMNS, "prompt_template": TEMPLATE, "test_share": 0.25}


def words(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("config", [GenerateConfig, PlanConfig, ScriptArguments, EvaluateConfig, BlankConfig])
def test_the_options_have_one_definition(config: type) -> None:
    assert issubclass(config, SourceOptions)
    # Nor does one have others of these names; an empty class body of them means that.
    own = vars(config).get("__annotations__", {})
    assert not own.keys() & SourceOptions.__annotations__.keys()


def test_generation_makes_groups_of_both_halves_and_records_how_rows_were_read(
    options: dict[str, Any], reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    common = {"model": str(reference), "out": str(tmp_path / "set"), "strategies": "bn=1", "signals": "rouge"}

    def make(**changes: Any) -> None:
        with without_ray():
            generate(make_config(GenerateConfig, **{**options, **common, **changes}))

    make()
    assert f"{options['dataset']}: {SAID}" in caplog.text
    found = NegativeSet(str(tmp_path / "set"))
    assert found.manifest.job["data"].items() >= {**RECORDED, "split": "all"}.items()
    assert {half: sum(g.split == half for g in found.groups()) for half in SPLITS[:2]} == {"train": 30, "test": 10}
    assert {group.query for group in found.groups()} == {row["prompt"] for row in facts.examples()[:40]}
    make()  # the same job
    for changes, key in (
        ({"prompt_template": "{prompt}"}, "data.prompt_template.source"),
        ({"test_share": None}, "data.test_share"),
        ({"columns": "prompt=q.text,completion=a,tools=b"}, "data.columns.tools"),
    ):
        assert key in refusal(lambda changes=changes: make(**changes))


def test_training_reads_the_same_rows(
    options: dict[str, Any], reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    more = {"objective": "mle", "model": reference, "output_dir": out, "max_steps": 1, "use_cpu": "true"}
    assert train(words({**options, **more, "report_to": "none", "save_strategy": "no"})) in (0, None)
    assert SAID in caplog.text
    record = json.loads((out / "trainer_job.json").read_text())
    assert record["data"].items() >= RECORDED.items()


def test_the_evaluation_reads_the_rows_that_are_held_out(
    options: dict[str, Any], reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(EvaluateConfig, **options, model=f"m={reference}", out=str(tmp_path / "out"))
    config.check()
    found = prepare(config, Store(str(tmp_path / "store")))
    assert f"{SAID}; read: 10 of test" in caplog.text
    assert len(found.groups) == 10
    assert all(group.prompt.startswith("Q: ") for group in found.groups)
    assert describe_evaluation(config, found, [])["data"].items() >= RECORDED.items()


def test_a_blank_model_is_made_of_the_rows_to_train_on(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert data.blank.main(words({**options, "out": tmp_path / "blank", "vocab_size": 300})) in (0, None)
    assert f"{SAID}; read: 30 of train" in caplog.text


@pytest.mark.parametrize("config", [EvaluateConfig, BlankConfig, ScriptArguments])
def test_candidates_that_no_command_but_generation_reads_are_refused_unless_scores_choose_a_truth(config: type) -> None:
    options = make_config(SourceOptions, columns="candidates=x")
    assert "--columns candidates=... would change nothing" in refusal(lambda: config.check_source(options, "train"))
    assert config.check_source(make_config(SourceOptions, columns="candidates=x,scores=y"), "train").chooses_truth


@pytest.mark.parametrize("option", ["columns", "prompt_template", "test_share", "test_dataset", "task"])
def test_a_run_on_shards_takes_none_of_them(option: str) -> None:
    value = {
        "columns": "prompt=q",
        "prompt_template": TEMPLATE,
        "test_share": 0.1,
        "test_dataset": "facts",
        "task": "dolly",
    }
    config = make_config(ScriptArguments, model="m", output_dir="o", shards="s", **{option: value[option]})
    assert f"--{option} does not apply to --shards" in refusal(config.check)
