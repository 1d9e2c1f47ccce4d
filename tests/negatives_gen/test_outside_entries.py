"""A strategy and a ranking signal from outside of the repository, by `package.module:NAME`, in the real commands."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import negatives_gen.__main__
import trainer.run
from data.manifest import Manifest, read_manifest
from data.shards import NegativeSet
from data.storage import Folder
from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES
from tests.support.outside_entries import SIGNAL, STRATEGY
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from; at the end they are forgotten."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield tmp_path / "modules"
    forget()


def forget() -> None:
    """Make this process as new, which has imported nothing."""
    for name in ("rotated_outside", "brevity_outside"):
        sys.modules.pop(name, None)
    for registry in (STRATEGIES, SIGNALS):
        registry._paths.clear()
        registry._outside.clear()


def run(*words: object) -> int:
    """`python -m negatives_gen` without Ray, as in a new process."""
    forget()
    with without_ray():
        return negatives_gen.__main__.main([str(word) for word in words]) or 0


def manifest(path: Path) -> Manifest:
    return read_manifest(Folder(str(path)))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_strategy_from_outside_is_generated_resumed_and_extended(
    reference: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, module = "rotated_outside:ROTATED", outside / "rotated_outside.py"
    module.write_text(STRATEGY)
    first = [
        "--model",
        reference,
        "--dataset",
        "facts",
        "--limit",
        8,
        "--split",
        "train",
        "--embedder",
        "reference",
        "--out",
    ]
    first += [tmp_path / "set", "--strategies", f"{path}=2,tn=1", "--shift", 3]
    assert run(*first) == 0
    entry = manifest(tmp_path / "set").job["strategies"]["rotated"]
    assert (entry["count"], entry["shift"], entry["pace"], entry["origin"]["entry"]) == (2, 3, 1.0, path)
    groups = list(NegativeSet(str(tmp_path / "set")).groups())
    for group in groups:
        *tokens, eos = group.response_ids
        assert [c.strategy for c in group.negatives] == ["rotated", "rotated", "tn"]
        assert group.negatives[0].ids == [*tokens[3:], *tokens[:3], eos]
    assert "| `rotated` | 2 | the ground truth turned round | shift 3" in (tmp_path / "set/README.md").read_text()

    # Resumed: what decides must be the same.
    assert run(*first, "--pace", 2) == 0
    assert "its strategies.rotated.shift is 3, this job's is 4" in refused(capsys, *first[:-1], 4)
    assert "--shift must be at least 1, got 0" in refused(capsys, *first[:-1], 0)

    # Extended, by either name, with the set's settings.
    words = ["extend", tmp_path / "set", "--strategies"]
    assert run(*words, "rotated=3", "--out", tmp_path / "then") == 0
    assert "--shift 5 would change nothing: the set's own settings hold, its 'rotated' has shift 3" in refused(
        capsys, *words, f"{path}=3", "--shift", 5, "--out", tmp_path / "no"
    )
    assert run(*words, f"{path}=3", "--pace", 9, "--out", tmp_path / "again") == 0
    for name, pace in (("then", 1.0), ("again", 9.0)):
        grown = manifest(tmp_path / name).job["strategies"]["rotated"]
        assert grown == {**entry, "count": 3, "pace": pace}
        for group, before in zip(NegativeSet(str(tmp_path / name)).groups(), groups, strict=True):
            assert [c.ids for c in group.negatives[:2]] == [c.ids for c in before.negatives[:2]]
            *tokens, eos = group.response_ids
            by = 9 % len(tokens)
            assert group.negatives[2].ids == [*tokens[by:], *tokens[:by], eos]

    # Another source is another strategy.
    module.write_text(STRATEGY + "\n# changed\n")
    assert "its strategies.rotated.origin.source_sha256 is" in refused(capsys, *first)
    changed = refused(capsys, *words, "rotated=3", "--out", tmp_path / "no")
    assert "the set's strategy 'rotated' was made by 'rotated_outside:ROTATED' with source" in changed
    assert not (tmp_path / "no").exists()

    # Those who read sets know it by both names, without its module.
    module.unlink()
    for use in ("rotated=1", f"{path}=1"):
        out = tmp_path / "rows.jsonl"
        assert run("export", tmp_path / "set", "--format", "trl-preference", "--out", out, "--use", use) == 0
        assert len(out.read_text().splitlines()) == len(groups)
    capsys.readouterr()
    assert run("stats", tmp_path / "set", "--json") == 0
    assert json.loads(capsys.readouterr().out)["strategies"]["rotated"]["count"] == 2 * len(groups)
    assert run("verify", tmp_path / "set") == 0
    losses = [train(reference, tmp_path, "--use", use) for use in (f"{path}=1", "rotated=1", "tn=1")]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-3)
    assert [trainer_record(tmp_path, number)["use"] for number in range(3)] == ["rotated=1", "rotated=1", "tn=1"]
    assert trainer_record(tmp_path, 0) == trainer_record(tmp_path, 1)


def test_a_ranking_signal_from_outside_is_generated_and_trained_by(
    reference: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "brevity_outside:BREVITY"
    (outside / "brevity_outside.py").write_text(SIGNAL)
    words = [
        "--model",
        reference,
        "--dataset",
        "facts",
        "--limit",
        8,
        "--split",
        "train",
        "--embedder",
        "reference",
        "--out",
    ]
    words += [tmp_path / "set", "--strategies", "tn=3", "--signals", f"embedding,{path}", "--scale", 0.5]
    assert run(*words) == 0
    job = manifest(tmp_path / "set").job
    assert (job["signals"]["brevity"]["scale"], job["signals"]["brevity"]["origin"]["entry"]) == (0.5, path)
    negatives = NegativeSet(str(tmp_path / "set"))
    assert negatives.signals == ["embedding", "brevity"]
    for group in negatives.groups():
        assert [c.similarity["brevity"] for c in group.negatives] == [-0.5 * len(c.ids) for c in group.negatives]
    assert "its signals.brevity.scale is 0.5, this job's is 1.0" in refused(capsys, *words[:-1], 1.0)
    (outside / "brevity_outside.py").unlink()
    losses = [
        train(reference, tmp_path, "--rank_by", name, objective="cpo-rank") for name in ("brevity", path, "embedding")
    ]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][0] == pytest.approx(math.log(math.factorial(4)), abs=1e-3)
    assert trainer_record(tmp_path, 0) == trainer_record(tmp_path, 1)
    assert trainer_record(tmp_path, 0)["rank_by"] == "brevity"
    for name in ("brevity", path):
        capsys.readouterr()
        assert run("inspect", tmp_path / "set", "--limit", 1, "--rank_by", name) == 0
        assert "ranked by brevity" in capsys.readouterr().out


def train(reference: Path, folder: Path, *more: str, objective: str = "cpo") -> list[float]:
    """Two steps on the set, with the command; returns their losses."""
    out = folder / f"model-{len(list(folder.glob('model-*')))}"
    words = [
        "--objective", objective, "--model", str(reference), "--output_dir", str(out), "--use_cpu", "true",
        "--disable_tqdm", "true", "--report_to", "none", "--max_steps", "2", "--per_device_train_batch_size", "8",
        "--learning_rate", "1e-3", "--logging_steps", "1", "--save_strategy", "no",
        "--shards", str(folder / "set"), *more,
    ]  # fmt: skip
    forget()
    assert trainer.run.main(words) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trainer_record(folder: Path, number: int) -> dict[str, Any]:
    """What the run of that number, see `train`, records of its job."""
    return json.loads((folder / f"model-{number}" / "trainer_job.json").read_text())


def test_names_that_mean_something_in_the_record_of_a_shard_are_refused(
    reference: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("--model", reference, "--dataset", "facts", "--limit", 4, "--out", tmp_path / "set")
    for name in ("prompt", "response", "negatives", "score"):
        (outside / "rotated_outside.py").write_text(STRATEGY.replace('name = "rotated"', f'name = "{name}"'))
        said = refused(capsys, *job, "--strategies", "rotated_outside:ROTATED=1")
        assert f"calls itself '{name}', a key of the records" in said
    (outside / "rotated_outside.py").write_text(STRATEGY.replace('name = "rotated"', 'name = "rouge"'))
    said = refused(capsys, *job, "--strategies", "rotated_outside:ROTATED=1", "--signals", "rouge")
    assert "'rouge' is the name of a strategy and of a ranking signal" in said
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('    summary = "the ground truth turned round"\n', "", "has no summary, a text"),
        (
            "    Options = ",
            '    stage = "sampling"\n    Options = ',
            "has stage 'sampling', which is none of sample, ask, score: see",
        ),
    ],
    ids=["no summary", "no stage of that name"],
)
def test_a_strategy_that_lacks_a_word_or_says_one_that_means_nothing_is_refused_before_any_work(
    old: str, new: str, said: str, reference: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in STRATEGY
    (outside / "rotated_outside.py").write_text(STRATEGY.replace(old, new))
    line = refused(
        capsys, "--model", reference, "--dataset", "facts", "--limit", 4, "--out", tmp_path / "set",
        "--strategies", "rotated_outside:ROTATED=1",
    )  # fmt: skip
    assert f"strategy 'rotated_outside:ROTATED' {said}" in line
    assert not (tmp_path / "set").exists()


def test_a_strategy_that_leaves_groups_without_what_was_asked_is_refused_by_its_name(
    reference: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = STRATEGY.replace('short[group.id] = "too short"', "pass")
    assert silent != STRATEGY
    (outside / "rotated_outside.py").write_text(silent)
    words = ["--model", reference, "--dataset", "facts", "--limit", 4, "--out", tmp_path / "set"]
    assert run(*words, "--strategies", "rotated_outside:ROTATED=99", "--embedder", "reference") == 2
    said = capsys.readouterr().err.splitlines()[-1]  # below what is said of progress
    assert "strategy 'rotated' left group '" in said
    assert "of 99 negatives, and did not say why. Correct its `add`" in said
    assert not (tmp_path / "set" / "manifest.json").exists()
