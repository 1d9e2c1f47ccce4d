"""`generate` and `evaluate` as functions: the commands' options, their errors, what they give back."""

import asyncio
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import NegativeSet
from data.command.errors import UserError
from evaluation import evaluate
from negatives_gen import generate
from negatives_gen.job.actors import Components
from tests.support.stubs import EngineStub
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds


@pytest.fixture
def options(reference: Path) -> dict[str, Any]:
    return {"model": reference, "dataset": "facts", "limit": 8, "embedder": "reference", "groups_per_shard": 4}


def test_generate_gives_the_set_that_it_made(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub stands for the engine."""
    monkeypatch.setattr("negatives_gen.job.job.Components", lambda: Components(engine=EngineStub))
    with without_ray():
        negatives = generate(**options, out=tmp_path / "set", strategies=["an=2", "bn=1"], split="all", top_k=20)
    assert isinstance(negatives, NegativeSet)
    assert [[c.strategy for c in group.negatives] for group in negatives] == [["an", "an", "bn"]] * 8
    assert negatives.manifest.job["strategies"]["an"]["top_k"] == 20
    again = generate(**options, out=tmp_path / "set", strategies="an=2,bn=1", split="all", top_k=20)
    assert again.manifest == negatives.manifest  # it is complete already: nothing is started


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stratgies": "bn=1"}, "unknown key 'stratgies' of GenerateConfig. Did you mean 'strategies'?"),
        ({"strategies": "bn"}, "--strategies 'bn'"),
        ({"top_k": 5, "strategies": "bn=1"}, "--top_k would change nothing: no 'an' or 'rn' is chosen"),
    ],
    ids=["unknown", "wrong", "idle"],
)
def test_mistakes_in_generate_are_the_commands_lines(
    wrong: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        generate(**{**options, "out": tmp_path / "set", **wrong})
    assert str(error.value).startswith(message)
    assert not (tmp_path / "set").exists()


def test_what_must_be_given_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GenerateConfig needs model, dataset"):
        generate(out=tmp_path)
    with pytest.raises(UserError, match="EvaluateConfig needs dataset"):
        evaluate(out=tmp_path)


@pytest.mark.parametrize("in_a_loop", [False, True], ids=["", "in a notebook's event loop"])
def test_evaluate_gives_measurements_as_rows_and_needs_no_engine(
    in_a_loop: bool, reference: Path, mle: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.answers.answer_sets._start_engine", lambda *_: pytest.fail("an engine starts"))
    options: dict[str, Any] = {
        "model": [f"reference={reference}", f"mle={mle}"], "dataset": "facts", "limit": 6, "split": "train",
        "metrics": ["truth", "ranking"], "shards": negative_set, "out": tmp_path / "out",
    }  # fmt: skip

    async def in_loop() -> Any:
        return evaluate(**options)

    found = asyncio.run(in_loop()) if in_a_loop else evaluate(**options)
    rows = {(row["model"], row["metric"]): row for row in found}
    truth = rows["mle", "truth_logp"]
    assert (truth["n"], truth["decoding"], truth["against"]) == (6, "", "")
    assert truth["low"] is None or truth["low"] <= truth["value"] <= truth["high"]
    assert truth["value"] < 0 < truth["standard_error"]
    assert 0 <= rows["mle", "ranking_accuracy"]["value"] <= 1
    frame = found.to_pandas()
    assert list(frame.columns) == [
        *("model", "decoding", "metric", "against", "value", "standard_error", "low", "high", "n"),
    ]
    assert len(frame) == len(found)
    assert math.isclose(frame.set_index(["model", "metric"]).loc[("mle", "truth_logp"), "value"], truth["value"])  # type: ignore[arg-type]
    assert (tmp_path / "out/report.html").exists()


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        ("ray", "generate", r"stage 1 needs the package ray, .*: pip install '\.\[generate\]'"),
        ("sentence_transformers", "generate", r"embedder 'reference' needs the package sentence-transformers, .*"),
        ("openai", "evaluate", r"--judge.model needs the package openai, .*: pip install '\.\[generate,evaluate\]'"),
    ],
)
def test_a_package_that_is_lacking_is_named_with_its_extra(
    package: str, call: str, message: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more)
    )
    out = tmp_path / "out"
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: generate(**options, out=out, strategies="bn=1"),
        "evaluate": lambda: evaluate(
            model=[f"a={options['model']}"], dataset="facts", out=out, judge={"model": "judge"}
        ),
    }
    with pytest.raises(UserError, match=message):
        calls[call]()
    assert not out.exists()
