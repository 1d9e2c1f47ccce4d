"""What a run trains on and watches, through the command: sets that belong together, halves that do not touch."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.model_settings import config_hash
from data.schema import Candidate, Group
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.older_schemas import write_as_schema
from tests.support.tiny import make_negative_set, save_tiny_model
from trainer.run import main


def rewritten(source: Path, out: Path, groups: Sequence[Group], split: str, shard: int = 20) -> Path:
    """A set of some groups with the job of another, but for its split."""
    job = NegativeSet(str(source)).manifest.job
    writer = NegativeSetWriter(str(out), {**job, "data": {**job["data"], "split": split}}, ["embedding"])
    writer.begin()
    parts = [groups[i : i + shard] for i in range(0, len(groups), shard)]
    for index, part in enumerate(parts):
        writer.write_shard(index, part, [], seconds={}, layout="packed")
    writer.finish(len(parts))
    return out


@pytest.fixture
def halves(negative_set: Path, tmp_path: Path) -> Path:
    """A set of both halves, 24 groups each."""
    groups = list(NegativeSet(str(negative_set)).groups())
    for group in groups[::2]:
        group.split = "test"
    return rewritten(negative_set, tmp_path / "halves", groups, "all")


def words(reference: Path, output: Path, *sets: Path, objective: str = "cpo") -> list[str]:
    return [
        "--objective", objective, "--model", str(reference), "--output_dir", str(output), "--use_cpu", "true",
        "--disable_tqdm", "true", "--report_to", "none", "--max_steps", "2", "--per_device_train_batch_size", "8",
        "--save_strategy", "no", "--shards", *map(str, sets),
    ]  # fmt: skip


def refused(arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert not output.exists()
    return line


@pytest.mark.parametrize("objective", ["cpo", "mle"])
def test_a_set_and_what_extends_it_are_refused_together(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other negatives in other shards: the groups are the same."""
    groups = list(NegativeSet(str(negative_set)).groups())[:30]
    for group in groups:
        group.negatives.append(Candidate("an", [5, 6], "t", reference_logp=-1.0, similarity={"embedding": 0.5}))
    more, out = rewritten(negative_set, tmp_path / "more", groups, "train"), tmp_path / "out"
    line = refused(words(reference, out, negative_set, more, objective=objective), out, capsys)
    assert line == (
        f"error: 30 groups of '{more}' are in '{negative_set}' too, and would count twice. Give --shards one of the "
        "two."
    )
    assert "48 groups of" in refused(
        words(reference, out, negative_set, negative_set, objective=objective), out, capsys
    )


@pytest.mark.seconds
def test_sets_without_a_common_group_in_the_half_are_trained_on_together(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = list(NegativeSet(str(negative_set)).groups())
    for group in groups[:20]:
        group.split = "test"
    first = rewritten(negative_set, tmp_path / "first", groups, "all")
    second = rewritten(negative_set, tmp_path / "second", groups[:20], "train")
    caplog.set_level("INFO")
    assert main(words(reference, tmp_path / "out", first, second)) == 0
    assert "split 'train': 48 of" in caplog.text


@pytest.mark.seconds
@pytest.mark.parametrize("version", [2, 3])
def test_a_set_of_an_older_schema_trains_as_before(
    version: int, reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a set of an older schema lacks, no training needs."""
    groups = list(NegativeSet(str(negative_set)).groups())
    old = rewritten(negative_set, tmp_path / "old", groups, "train")
    caplog.set_level("INFO")
    losses = []
    for name in ("new", "old"):
        if name == "old":
            write_as_schema(version, old)
        assert main(words(reference, tmp_path / name / "out", old)) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "out" / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert "split 'train': 48 of" in caplog.text
    assert losses[0] == losses[1] != []


@pytest.mark.parametrize("objective", ["cpo", "dpo", "mle"])
def test_a_sequence_that_the_model_does_not_take_is_refused_before_any_work(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups, out = list(NegativeSet(str(negative_set)).groups()), tmp_path / "out"
    groups[0].prompt_ids = [5] * 127
    path = rewritten(negative_set, tmp_path / "set", groups, "train")
    use = ["--use", "an=1"] if objective == "dpo" else []
    line = refused([*words(reference, out, path, objective=objective), *use], out, capsys)
    tokens = 127 + max(len(ids) for ids in [groups[0].response_ids, *(c.ids for c in groups[0].negatives)])
    assert f"a sequence of group {groups[0].id} has {tokens} tokens, the model's context 128." in line


@pytest.mark.seconds
def test_negatives_that_mle_is_not_given_may_be_of_any_length(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups, out = list(NegativeSet(str(negative_set)).groups()), tmp_path / "out"
    groups[0].negatives[0].ids = [5] * 127
    path = rewritten(negative_set, tmp_path / "set", groups, "train")
    assert "the model's context 128" in refused(words(reference, out, path), out, capsys)
    assert main(words(reference, out, path, objective="mle")) == 0


def test_a_set_of_another_reference_among_several_is_refused(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = save_tiny_model(tmp_path / "other", seed=1), tmp_path / "out"
    make_negative_set(tmp_path / "theirs", other, num_groups=4, num_negatives=3)
    line = refused(words(reference, out, negative_set, tmp_path / "theirs"), out, capsys)
    assert f"negative set '{tmp_path / 'theirs'}' was made with reference model '{other}'" in line
    assert f"but --model '{reference}' has weights" in line


@pytest.mark.seconds
def test_a_reference_with_another_config_is_refused(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are the same, of which another config makes another model."""
    changed = tmp_path / "changed"
    shutil.copytree(reference, changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    theirs, ours = (config_hash(path)[:16] for path in (reference, changed))
    manifest = json.loads((negative_set / "manifest.json").read_text())
    manifest["job"]["model"]["config_sha256"] = config_hash(reference)
    shutil.copytree(negative_set, tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    line = refused(words(changed, tmp_path / "out", tmp_path / "set"), tmp_path / "out", capsys)
    assert f"config.json has the hash {theirs}, but that of --model '{changed}' has {ours}" in line
    for model, objective in ((reference, "cpo"), (changed, "mle")):  # MLE compares nothing with the reference
        out = tmp_path / f"{objective}-{model.name}"
        assert main(words(model, out, tmp_path / "set", objective=objective)) == 0


@pytest.mark.seconds
def test_the_held_out_half_is_watched(reference: Path, halves: Path, tmp_path: Path) -> None:
    more = ["--eval_strategy", "steps", "--eval_steps", "1", "--max_eval_samples", "5"]
    assert main([*words(reference, tmp_path / "out", halves), *more]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in line for line in lines) == 2


def test_a_set_without_held_out_groups_names_the_options_that_give_some(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = refused([*words(reference, out, negative_set), "--eval_strategy", "steps"], out, capsys)
    assert line == (
        f"error: negative set '{negative_set}' holds no groups of split 'test'. Watch another half with --eval_split, "
        "or other sets with --eval_shards."
    )


@pytest.mark.parametrize("more", [("--split", "all"), ("--split", "test"), ("--eval_split", "all")])
def test_groups_that_are_trained_on_are_not_watched(
    more: tuple[str, ...], reference: Path, halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = refused([*words(reference, out, halves), "--eval_strategy", "steps", *more], out, capsys)
    assert "--eval_strategy would watch groups that are trained on: --split is '" in line
    assert "or give other sets as --eval_shards" in line


@pytest.mark.seconds
def test_held_out_sets_hold_no_group_that_is_trained_on(
    reference: Path, negative_set: Path, halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ["--eval_strategy", "steps", "--eval_shards", str(halves)]
    line = refused([*words(reference, out, negative_set), *more], out, capsys)
    assert f"24 of 24 groups of '{halves}' in --eval_shards are trained on" in line
    assert main([*words(reference, out, halves), *more]) == 0
