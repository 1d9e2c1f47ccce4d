"""`plan` against what a job really makes. Stub engine with answers of its own length; scorer and writing are real."""

import dataclasses
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.manifest import Manifest
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.verbs.plan import Plan, PlanConfig, main, predict
from tests.support.stubs import EngineStub, ScorerStub, signals_stub
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

OPTIONS: dict[str, Any] = {
    "dataset": "facts", "split": "all", "strategies": "an=3,bn=2,mn=2,tn=1", "groups_per_shard": 100,
    "embedder": "reference", "max_new_tokens": 32,
}  # fmt: skip
BORROWED = {key: value for key, value in OPTIONS.items() if key != "max_new_tokens"}  # what has no sampled negatives
ROWS = 450


@pytest.fixture(scope="module")
def real(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("real") / "set"
    with without_ray():
        config = make_config(GenerateConfig, model=str(reference), out=str(out), limit=ROWS, **OPTIONS)
        return generate(config, Components(engine=EngineStub))


def total(manifest: Manifest, kind: str) -> int:
    return sum(shard.tokens[kind] for shard in manifest.shards)


def check(plan: Plan, real: Manifest, kinds: tuple[str, ...]) -> None:
    """A prediction is within 15%, as promised."""
    assert plan.rows == plan.groups + plan.rejected == ROWS
    assert plan.shards == len(real.shards)
    assert plan.bytes == pytest.approx(sum(shard.bytes for shard in real.shards), rel=0.15)
    for kind in kinds:
        assert plan.tokens[kind] == pytest.approx(total(real, kind), rel=0.15)


def test_a_measured_sample_predicts_tokens_and_bytes(
    reference: Path, real: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negatives_gen.job.job.Components", lambda: Components(engine=EngineStub))
    plan = predict(make_config(PlanConfig, model=str(reference), rows=ROWS, **OPTIONS))
    check(plan, real, ("prompt", "response", "negatives"))
    assert plan.tokens["sampled"] == total(real, "an") == 3 * 7 * ROWS
    assert plan.device_hours.keys() == {"an", "bn", "mn", "tn", "score", "embedding"}
    assert all(hours > 0 for hours in plan.device_hours.values())


def test_a_resumed_negative_costs_its_tail_only(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negatives_gen.job.job.Components", lambda: Components(EngineStub, ScorerStub, signals_stub))
    options = {**OPTIONS, "strategies": "rn=3", "rn_share": "0.6-0.8"}
    with without_ray():
        job = make_config(GenerateConfig, model=str(reference), out=str(tmp_path / "set"), limit=96, **options)
        made = generate(job, Components(EngineStub, ScorerStub, signals_stub))
    before = set(threading.enumerate())
    plan = predict(make_config(PlanConfig, model=str(reference), rows=96, **options))
    assert "engine" not in {thread.name for thread in set(threading.enumerate()) - before}  # which has measured it
    assert plan.groups == 96
    assert plan.tokens["negatives"] == pytest.approx(total(made, "rn"), rel=0.15)
    # The stub samples 7 tokens behind whatever is kept: how much that is depends on the ground truth, not on them.
    assert plan.tokens["sampled"] == pytest.approx(3 * 7 * 96, rel=0.05)
    assert plan.device_hours.keys() == {"rn", "score", "embedding"}


def test_a_given_speed_needs_no_model(reference: Path, real: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model_stub(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(
        "negatives_gen.job.job.Components", lambda: Components(no_model_stub, no_model_stub, no_model_stub)
    )
    plan = predict(make_config(PlanConfig, model=str(reference), rows=ROWS, tokens_per_second=1000, **OPTIONS))
    check(plan, real, ("prompt", "response"))
    mean_truth = total(real, "response") / ROWS  # what a sampled answer is taken to be as long as
    assert plan.tokens["sampled"] == pytest.approx(3 * ROWS * mean_truth, rel=0.15)
    assert plan.device_hours == {"sampling": pytest.approx(plan.tokens["sampled"] / 1000 / 3600, rel=1e-3)}


def test_a_tokenizer_that_is_code_is_loaded_as_allowed(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data import models

    load, allowed = models.load_tokenizer, list[bool]()

    def load_stub(model: str, trust_remote_code: bool = False) -> Any:
        allowed.append(trust_remote_code)
        return load(model)

    monkeypatch.setattr(models, "load_tokenizer", load_stub)
    options: dict[str, Any] = {"strategies": "tn=1", "signals": "rouge", "trust_remote_code": True}
    options |= {key: OPTIONS[key] for key in ("dataset", "split", "groups_per_shard")}
    predict(make_config(PlanConfig, model=str(reference), rows=ROWS, tokens_per_second=1000, **options))
    assert allowed == [True]


def test_any_number_of_rows_scales_with_them(reference: Path) -> None:
    config = make_config(PlanConfig, model=str(reference), rows=1000, tokens_per_second=1000, **OPTIONS)
    small, large = predict(config), predict(dataclasses.replace(config, rows=1_000_000))
    assert (small.shards, large.shards) == (10, 10_000)
    for kind, tokens in large.tokens.items():
        assert tokens == pytest.approx(1000 * small.tokens[kind], rel=1e-3)
    assert large.bytes == pytest.approx(1000 * small.bytes, rel=0.05)


def test_bn_finds_in_the_sample_as_many_rows_as_in_a_shard(reference: Path, tmp_path: Path) -> None:
    """bn=50 of batches of 64: the sample's 96 rows, cut like a shard, would make two of 48, and its part has 32."""
    options = {**BORROWED, "strategies": "bn=50", "groups_per_shard": 256}
    with without_ray():
        real = generate(
            make_config(GenerateConfig, model=str(reference), out=str(tmp_path / "set"), limit=256, **options)
        )
    plan = predict(make_config(PlanConfig, model=str(reference), rows=256, tokens_per_second=1000, **options))
    assert plan.groups == real.counts["rows_written"] == 256
    assert plan.tokens["negatives"] == pytest.approx(total(real, "bn"), rel=0.05)
    assert plan.bytes == pytest.approx(sum(shard.bytes for shard in real.shards), rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": "bn=11", "sample": 8}, r"8 rows gave 0 groups \(8 too few bn negatives\).* a larger --sample"),
        (
            {"strategies": "bn=50", "bn_batch_size": 32},
            "needs more than 50 usable rows of a half in a batch, the job's have 25\\.",
        ),
        ({"strategies": "bn=50", "rows": 40}, r"the job's have 20\."),  # of each half
    ],
)
def test_too_few_rows_for_bn_are_one_line(reference: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(
            make_config(PlanConfig, model=str(reference), tokens_per_second=1.0, **{**BORROWED, "rows": 512, **options})
        )  # type: ignore[arg-type]


def test_the_command_says_the_plan_line_by_line(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(reference), "--dataset", "facts", "--strategies", "tn=1", "--embedder", "reference"]
    assert main([*words, "--rows", "2000", "--tokens_per_second", "500", "--devices", "4"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["rows"].strip() == "2,000, of which 2,000 groups and 0 rejected"
    assert re.fullmatch(r"4, \d+\.\d [KM]iB", lines["shards"].strip())
    assert lines["device time"].strip() == "under a second of one device"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "--rows must be at least 1"),
        ({"sample": 3}, "--sample must be at least 6"),
        ({"tokens_per_second": 0.0}, "--tokens_per_second must be above 0"),
        ({"streaming": True}, "give --rows or --limit"),
    ],
)
def test_a_plan_that_cannot_be_predicted_is_refused(reference: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(make_config(PlanConfig, model=str(reference), **{**OPTIONS, **options}))


class PrintingEngineStub(EngineStub):
    """Prints as vLLM's C++ does, and may not start."""

    def __init__(self, *arguments: Any, **options: Any):
        os.write(2, b"vllm is loading\nRuntimeError: no kernel\n")
        super().__init__(*arguments, **options)


@pytest.mark.parametrize("verbose", [False, True])
def test_what_libraries_print_is_no_part_of_a_plan(
    verbose: bool, reference: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stubs = Components(PrintingEngineStub, ScorerStub, signals_stub)
    monkeypatch.setattr("negatives_gen.job.job.Components", lambda: stubs)
    options = {**OPTIONS, "strategies": "an=1", "sample": 12, "verbose": verbose}
    assert predict(make_config(PlanConfig, model=str(reference), rows=ROWS, **options)).groups == ROWS
    assert capfd.readouterr().err.count("vllm is loading") == (1 if verbose else 0)
    with pytest.raises(UserError, match=r"^no such device\.") as caught:
        predict(make_config(PlanConfig, model=str(reference), engine={"refuses": "no such device."}, **options))
    named = re.findall(r"What libraries printed is in '(.*)'\.$", str(caught.value))
    assert [Path(path).read_text().count("vllm is loading") for path in named] == ([] if verbose else [1])


def test_the_help_of_a_plan_names_the_options_of_a_job_that_it_does_not_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--out, --num_engines, --stall_timeout, --report_to and --push_to_hub are not used." in said
    assert "OUT/_job/log" not in said
