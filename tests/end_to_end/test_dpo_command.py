"""The DPO baseline as a command: model and record, held-out pairs, resume, two processes, refusals."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.models import load_tokenizer, tokenizer_hash
from data.schema import Candidate
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.commands import fork_command
from tests.support.processes import TwoProcesses
from tests.support.tiny import make_negative_set, save_tiny_model
from tests.support.training import metrics
from trainer.groups.dataset import ContrastiveGroups
from trainer.monitor.curves import figure
from trainer.objectives.pairs import preference_pairs
from trainer.run import main

pytestmark = pytest.mark.seconds

BETA = 5.0
OURS = ("logps/ground_truth", "logps/ground_truth_change", "rewards/margin", "rewards/top1")


def cli(reference: Path, negative_set: Path, output: Path, *more: str) -> list[str]:
    return [
        "--objective", "dpo", "--shards", str(negative_set), "--model", str(reference), "--use", "an=2",
        "--output_dir", str(output), "--per_device_train_batch_size", "8", "--learning_rate", "1e-3",
        "--logging_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none", *more,
    ]  # fmt: skip


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [float(entry["loss"]) for entry in history if "loss" in entry]


def test_a_set_that_was_scored_in_another_dtype_is_named(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The layout is TRL's own, and always another one."""
    more = ("--max_steps", "1", "--save_strategy", "no")
    assert main(cli(reference, negative_set, tmp_path / "same", *more)) == 0
    assert "was scored in" not in caplog.text
    assert main(cli(reference, negative_set, tmp_path / "other", *more, "--bf16", "true")) == 0
    assert "The reference was scored in float32; this run computes in bfloat16. Each" in caplog.text


def test_the_command_writes_a_model_with_its_tokenizer_and_record(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    done = fork_command("trainer.run", *cli(reference, negative_set, output, "--max_steps", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"model: {output}"
    assert "dpo on 96 pairs" in done.stderr
    assert losses(output)[0] == pytest.approx(math.log(2), abs=2e-4)
    assert tokenizer_hash(load_tokenizer(str(output))) == tokenizer_hash(load_tokenizer(str(reference)))
    start = load_file(reference / "model.safetensors")
    trained = AutoModelForCausalLM.from_pretrained(output, use_safetensors=True).state_dict()
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    record = json.loads((output / "trainer_job.json").read_text())
    assert (record["objective"], record["use"], record["beta"], record["batch_size"]) == ("dpo", "an=2", 5.0, 8)


@pytest.fixture(scope="module")
def both_halves(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "halves"
    make_negative_set(out, reference, num_groups=32, num_negatives=2, split="all")
    return out


def test_held_out_pairs_are_watched_under_our_names(reference: Path, both_halves: Path, tmp_path: Path) -> None:
    """TRL logs the mean of the means of batches, which are of equal size."""
    watch = ["--eval_strategy", "steps", "--eval_steps", "3", "--max_eval_samples", "8", "--max_steps", "6"]
    assert main(cli(reference, both_halves, tmp_path, *watch, "--save_strategy", "no")) == 0
    lines = metrics(tmp_path)
    train, held_out = ([line for line in lines if f"{prefix}loss" in line] for prefix in ("", "eval_"))
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in held_out] == [3, 6]

    groups = [group for group in NegativeSet(str(both_halves)).groups() if group.split == "test"]
    assert len(groups) == 16
    truths = [group.reference_logp for group in groups[:8]]
    for prefix, kept in (("", train), ("eval_", held_out)):
        for line in kept:
            assert line[f"{prefix}logps/ground_truth_change"] == pytest.approx(line[f"{prefix}rewards/chosen"] / BETA)
            for ours, theirs in (("logps/ground_truth", "logps/chosen"), ("rewards/margin", "rewards/margins")):
                assert line[prefix + ours] == pytest.approx(line[prefix + theirs], rel=1e-5, abs=1e-6)
            assert line[f"{prefix}rewards/top1"] == line[f"{prefix}rewards/accuracies"]
            assert line[f"{prefix}contrast/kl_bound"] == pytest.approx(math.log(2) - line[f"{prefix}loss"], abs=1e-3)
    for line in held_out:
        reference_logp = line["eval_logps/ground_truth"] - line["eval_logps/ground_truth_change"]
        assert reference_logp == pytest.approx(sum(truths) / 8, abs=1e-3)  # type: ignore[arg-type]
    assert abs(train[0]["logps/ground_truth_change"]) < 1e-3
    assert train[-1]["rewards/margin"] > 0.5
    assert held_out[-1]["eval_loss"] < math.log(2)

    assert all(axes.get_lines() for axes in figure(lines).axes)
    assert train[0]["start/contrast"] == held_out[0]["eval_start/contrast"] == pytest.approx(math.log(2))
    assert (tmp_path / "training.png").exists()


def test_resuming_gives_the_same_parameters_as_never_stopping(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ["--max_steps", "5", "--save_steps", "2"]
    assert main(cli(reference, negative_set, whole, *steps)) == 0
    shutil.copytree(whole, parts)
    # What an interrupted run leaves: its checkpoints, no final model.
    for name in ("model.safetensors", "trainer_state.json"):
        (parts / name).unlink()
    for name in ("checkpoint-5", "checkpoint-4"):
        shutil.rmtree(parts / name)
    assert main(cli(reference, negative_set, parts, *steps)) == 2
    assert "already holds this job" in capsys.readouterr().err
    assert main(cli(reference, negative_set, parts, *steps, "--resume_from_checkpoint", "true")) == 0
    expected, found = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(parts) == losses(whole)
    assert main(cli(reference, negative_set, parts, *steps, "--beta", "1")) == 2
    assert "its beta is 5.0, this job's is 1.0" in capsys.readouterr().err


def test_lora_trains_an_adapter(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lora"
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--max_steps", "3"]
    assert main(cli(reference, negative_set, output, *lora, "--save_strategy", "no")) == 0
    assert f"adapter: {output} (merge it" in capsys.readouterr().out
    assert not (output / "model.safetensors").exists()
    weights = load_file(output / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and tensor.abs().max() > 0 for name, tensor in weights.items())
    assert losses(output)[0] == pytest.approx(math.log(2), abs=2e-4)


def test_two_processes_train_and_watch_like_one(reference: Path, both_halves: Path, tmp_path: Path) -> None:
    """Two steps of SGD on 8 pairs, of which each process has 4; then 5 held-out groups, an odd number of pairs each."""
    options = ["--max_steps", "2", "--optim", "sgd", "--lr_scheduler_type", "constant", "--save_strategy", "no"]
    options += ["--max_grad_norm", "0", "--learning_rate", "1e-2", "--eval_strategy", "steps", "--eval_steps", "2"]
    options += ["--max_eval_samples", "5", "--per_device_eval_batch_size", "5"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(cli(reference, both_halves, alone, *options)) == 0
    command = cli(reference, both_halves, together, *options, "--ddp_backend", "gloo")
    command[command.index("--per_device_train_batch_size") + 1] = "4"
    TwoProcesses.start(main, command).finish()
    start, expected, trained = (load_file(d / "model.safetensors") for d in (reference, alone, together))
    moved = math.sqrt(sum((expected[n] - start[n]).pow(2).sum().item() for n in expected))
    off = math.sqrt(sum((expected[n] - trained[n]).pow(2).sum().item() for n in expected))
    assert moved > 1e-3
    assert off / moved < 1e-4
    for one, two in zip(metrics(alone), metrics(together), strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() & {*(f"{p}{n}" for p in ("", "eval_") for n in ("loss", *OURS))}:
            assert two[name] == pytest.approx(one[name], abs=2e-4), name


def test_two_processes_stop_together_each_with_its_groups(reference: Path, both_halves: Path, tmp_path: Path) -> None:
    """A step as long as float32 reaches."""
    command = cli(reference, both_halves, tmp_path / "out", "--max_steps", "3", "--save_strategy", "no")
    command[command.index("--learning_rate") + 1] = "1e38"
    ids = []
    for rank, messages in enumerate(TwoProcesses.start(main, [*command, "--ddp_backend", "gloo"]).finish(2)):
        (line,) = (line for line in messages.splitlines() if line.startswith("error: "))
        assert "of step 2 is not finite; stopped before the optimiser step." in line
        ids.append(line.split(f"Groups of the step (process {rank}): ")[1].split(". ")[0].split(", "))
    known = {group.id for group in NegativeSet(str(both_halves)).groups() if group.split == "train"}
    assert all(set(part) <= known for part in ids)
    assert ids[0] != ids[1]
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("rank_by", "embedding", "objective 'dpo' without --min_similarity, --max_similarity or :similar"),
        ("row_tokens", "512", "objective 'dpo', which trains on pairs"),
        ("pss_passes", "2", "objective 'dpo'; it goes with --objective pss"),
        ("sft_weight", "1", "objective 'dpo'; it goes with --objective cpo and cpo-rank and nca"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    option: str, value: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(cli(tmp_path, tmp_path, tmp_path / "out", f"--{option}", value)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: --{option} does not apply to {reason}. Leave it out."


def test_rank_by_says_by_which_signal_pairs_are_filtered(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = list(NegativeSet(str(negative_set)).groups())
    for group in groups:
        for candidate in group.negatives:
            candidate.similarity["rouge"] = 1.0 - (candidate.similarity["embedding"] or 0.0)
    writer = NegativeSetWriter(
        str(tmp_path / "set"), NegativeSet(str(negative_set)).manifest.job, ["embedding", "rouge"]
    )
    writer.begin()
    writer.write_shard(0, groups, [], seconds={}, layout="packed")
    writer.finish(1)
    expected = {
        signal: sum(min(2, sum((c.similarity[signal] or 0.0) >= 0.6 for c in group.negatives)) for group in groups)
        for signal in ("embedding", "rouge")
    }
    assert expected["embedding"] != expected["rouge"]
    caplog.set_level("INFO")
    for signal, pairs in expected.items():
        more = ["--rank_by", signal, "--min_similarity", "0.6", "--max_steps", "1", "--save_strategy", "no"]
        assert main(cli(reference, tmp_path / "set", tmp_path / signal, *more)) == 0
        assert f"--min_similarity 0.6 ({signal}) passes over" in caplog.text
        assert f"dpo on {pairs} pairs" in caplog.text
        record = json.loads((tmp_path / signal / "trainer_job.json").read_text())
        assert (record["rank_by"], record["min_similarity"]) == (signal, 0.6)


@pytest.fixture(scope="module")
def two_strategies(reference: Path, negative_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The negative set with its third negative called a batch negative."""
    source = NegativeSet(str(negative_set))
    groups = list(source.groups())
    for group in groups:
        last = group.negatives[2]
        group.negatives[2] = Candidate("bn", last.ids, last.text, "stop", None, None, None, last.reference_logp)
        group.negatives[2].similarity = last.similarity
    out = tmp_path_factory.mktemp("sets") / "two"
    writer = NegativeSetWriter(
        str(out), {**source.manifest.job, "strategies": {"an": {"count": 2}, "bn": {"count": 1}}}, ["embedding"]
    )
    writer.begin()
    writer.write_shard(0, groups, [], seconds={}, layout="packed")
    writer.finish(1)
    return out


@pytest.mark.parametrize("more", [("--use", "an=1,bn=1"), ("--use", "bn=1,an=1"), ()])
def test_two_strategies_at_once_are_refused_before_anything_is_written(
    more: tuple[str, ...], reference: Path, two_strategies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = cli(reference, two_strategies, tmp_path / "out", *more)
    place = words.index("--use")  # cli's own
    assert main(words[:place] + words[place + 2 :]) == 2
    asked = more[-1] if more else "an=2,bn=1"
    proposed = asked.replace(",", " or --use ")
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: objective 'dpo' takes the negatives of one strategy, not of {asked}. Choose one: --use {proposed}."
    )
    assert not (tmp_path / "out" / "trainer_job.json").exists()


def test_pairs_are_made_of_the_strategy_that_is_used(reference: Path, two_strategies: Path) -> None:
    negatives = NegativeSet(str(two_strategies))
    pairs: Dataset = preference_pairs(ContrastiveGroups.of([negatives], "train", "bn=1"), "dpo")
    assert pairs["rejected_ids"][:] == [group.negatives[2].ids for group in negatives.groups()]


def test_a_model_that_is_not_the_reference_is_refused(
    negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    assert main(cli(other, negative_set, tmp_path / "out")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "was made with reference model" in line
    assert not (tmp_path / "out").exists()
