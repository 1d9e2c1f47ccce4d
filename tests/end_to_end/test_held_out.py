"""Held-out groups: which are watched, what the averages over them are, and by strategy."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.schema import Group
from data.shards import NegativeSet
from tests.support.tiny import make_negative_set
from tests.support.training import make_trainer, metrics
from trainer.groups.dataset import ContrastiveGroups
from trainer.run import main
from trainer.scoring.continuations import Continuations
from trainer.scoring.scorer import Scorer

pytestmark = pytest.mark.seconds


def test_held_out_groups_count_once_each_and_their_averages_are_the_sets(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, per_device_eval_batch_size=5, objective="cpo-rank")
    trainer.eval_dataset = ContrastiveGroups.of([NegativeSet(str(negative_set))], "train")
    found = trainer.evaluate()
    groups = list(NegativeSet(str(negative_set)).groups())
    assert found["eval_loss"] == pytest.approx(math.log(24), abs=2e-3)
    truths = [g.reference_logp for g in groups]
    assert found["eval_logps/ground_truth"] == pytest.approx(sum(truths) / len(truths), abs=1e-3)  # type: ignore[arg-type]
    expected = [sum(g.reference_logp > c.reference_logp for c in g.negatives) / 3 for g in groups]  # type: ignore[operator]
    assert found["eval_logps/ranking_accuracy"] == pytest.approx(sum(expected) / len(expected), abs=0.03)
    assert trainer.state.log_history[-1]["eval_loss"] == found["eval_loss"]


def test_the_held_out_loss_is_the_one_that_is_trained(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, objective="cpo", objective_options={"sft_weight": 0.5})
    trainer.eval_dataset = trainer.train_dataset
    found = trainer.evaluate()
    assert found["eval_loss/contrast"] == pytest.approx(math.log(4), abs=2e-3)
    assert found["eval_loss/sft"] > 1
    assert found["eval_loss"] == pytest.approx(found["eval_loss/contrast"] + 0.5 * found["eval_loss/sft"])


@pytest.fixture(scope="module")
def two_halves(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "halves"
    make_negative_set(out, reference, num_groups=32, num_negatives=2, strategies=("an", "bn"), split="all")
    return out


def half(negative_set: Path, split: str) -> list[Group]:
    return [group for group in NegativeSet(str(negative_set)).groups() if group.split == split]


def watched_run(reference: Path, negative_set: Path, output: Path, *more: str) -> list[dict[str, Any]]:
    """Four steps, with a look at the held-out half after the second and the fourth; the held-out logs."""
    words = ["--objective", "cpo-rank", "--shards", str(negative_set), "--model", str(reference), "--max_steps", "4"]
    words += ["--output_dir", str(output), "--per_device_train_batch_size", "8", "--learning_rate", "3e-3"]
    words += ["--eval_strategy", "steps", "--eval_steps", "2", "--logging_steps", "2", "--save_strategy", "no"]
    assert main([*words, "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none", *more]) == 0
    return [line for line in metrics(output) if "eval_loss" in line]


def mean_reference_logp(line: dict[str, Any]) -> float:
    """Mean log-probability under the reference of the groups that a held-out log is about."""
    return line["eval_logps/ground_truth"] - line["eval_logps/ground_truth_change"]


def kendall_tau(values: list[float], order: list[float]) -> float:
    pairs = list(combinations(range(len(values)), 2))
    agree = sum(1 if (values[i] > values[j]) == (order[i] > order[j]) else -1 for i, j in pairs)
    return agree / len(pairs)


def test_the_command_watches_the_held_out_half_by_strategy(reference: Path, two_halves: Path, tmp_path: Path) -> None:
    """The last held-out log against the saved model, whose log-probabilities come from the scorer."""
    held_out = watched_run(reference, two_halves, tmp_path / "out")
    assert [line["step"] for line in held_out] == [2, 4]
    train = [line for line in metrics(tmp_path / "out") if "loss" in line]
    assert [line["step"] for line in train] == [1, 2, 4]
    rewards = {f"rewards/{name}" for name in ("margin", "top1", "kendall_tau")}
    by_strategy = {f"{name}/{strategy}" for name in rewards for strategy in ("an", "bn")}
    names = {"loss", *rewards, *by_strategy, "logps/ground_truth", "logps/ground_truth_change"}
    for prefix, lines_of in (("", train), ("eval_", held_out)):
        for line in lines_of:
            assert {prefix + name for name in names} <= line.keys()
    image = Image.open(tmp_path / "out" / "training.png")
    assert image.size == (1210, 1210)

    groups = half(two_halves, "test")
    assert len(groups) == 16
    after = Scorer.load(str(tmp_path / "out")).score(
        [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    )
    found: dict[str, list[float]] = {}
    for group, logps in zip(groups, after, strict=True):
        before = [group.reference_logp, *(c.reference_logp for c in group.negatives)]
        h = [5.0 * (new - old) for new, old in zip(logps, before, strict=True)]  # type: ignore[operator]
        similarity = [1.0, *(c.similarity["embedding"] for c in group.negatives)]
        for name, places in (("", [1, 2, 3, 4]), ("/an", [1, 2]), ("/bn", [3, 4])):
            tau = kendall_tau([h[i] for i in (0, *places)], [similarity[i] for i in (0, *places)])  # type: ignore[misc]
            found.setdefault(f"rewards/kendall_tau{name}", []).append(tau)
            found.setdefault(f"rewards/margin{name}", []).append(h[0] - sum(h[i] for i in places) / len(places))
            found.setdefault(f"rewards/top1{name}", []).append(h[0] > max(h[i] for i in places))
        found.setdefault("logps/ground_truth_change", []).append(h[0] / 5.0)
        best_first = [h[i] for i in sorted(range(5), key=lambda i: -similarity[i])]  # type: ignore[operator]
        chosen = [math.exp(best_first[i]) / sum(map(math.exp, best_first[i:])) for i in range(5)]
        found.setdefault("loss", []).append(-sum(map(math.log, chosen)))
    for name, values in found.items():
        assert held_out[-1][f"eval_{name}"] == pytest.approx(sum(values) / 16, abs=2e-3), name
    assert held_out[-1]["eval_rewards/kendall_tau/an"] != held_out[-1]["eval_rewards/kendall_tau/bn"]


def test_options_choose_the_held_out_groups_to_watch(reference: Path, two_halves: Path, tmp_path: Path) -> None:
    """A group is known by the reference's log-probability of its ground truth."""
    runs = {
        ("test", 5): watched_run(reference, two_halves, tmp_path / "five", "--max_eval_samples", "5"),
        ("train", 16): watched_run(
            reference, two_halves, tmp_path / "swapped", "--split", "test", "--eval_split", "train"
        ),
    }
    make_negative_set(tmp_path / "other", reference, num_groups=6, num_negatives=1, strategies=("an", "bn"))
    other = ["--split", "test", "--eval_shards", str(tmp_path / "other"), "--eval_split", "train", "--use", "an=1,bn=1"]
    for (split, number), held_out in runs.items():
        truths = [group.reference_logp for group in half(two_halves, split)[:number]]
        for line in held_out:
            assert mean_reference_logp(line) == pytest.approx(sum(truths) / number, abs=1e-3)  # type: ignore[arg-type]
    truths = [group.reference_logp for group in half(tmp_path / "other", "train")]
    assert len(truths) == 6
    (line, _) = watched_run(reference, two_halves, tmp_path / "elsewhere", *other)
    assert mean_reference_logp(line) == pytest.approx(sum(truths) / 6, abs=1e-3)  # type: ignore[arg-type]
