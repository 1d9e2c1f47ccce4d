"""Stage 3: the numbers of the table, computed by hand, and the whole command with real vLLM."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from data import facts
from data.identity import load_tokenizer
from data.prepare import prepare_groups
from data.schema import Candidate, Group
from data.shards import NegativeSet
from data.sources import load_examples
from evaluation.metrics import Estimate, answer_metrics, ranking_metrics, truth_metrics
from evaluation.report import table
from negatives_gen.engine import Sample
from tests.conftest import run_command
from trainer.logprobs import Scorer


def test_estimate_is_mean_and_standard_error() -> None:
    # Mean 2; deviations -1, 0, 1: variance (1 + 0 + 1) / 2 = 1; standard error sqrt(1 / 3).
    assert Estimate.of([1.0, 2.0, 3.0]) == Estimate(2.0, math.sqrt(1 / 3), 3)
    assert math.isnan(Estimate.of([4.0]).standard_error)
    with pytest.raises(ValueError, match="at least one"):
        Estimate.of([])


def test_answers_are_checked_against_the_world() -> None:
    examples = facts.examples()[:3]
    groups = [Group(str(i), e["prompt"], e["completion"], [1], [2, 0]) for i, e in enumerate(examples)]
    right, wrong = examples[0]["completion"], " I do not know."
    answers = [
        Sample([1, 2, 0], right, "stop", -1.0, None),
        Sample([1, 2], wrong, "length", -1.0, None),
        Sample([1], wrong, "stop", -1.0, None),
    ]
    found = answer_metrics(groups, answers, checkable=True)
    assert found["correct"].mean == pytest.approx(1 / 3)
    assert found["hit_limit"].mean == pytest.approx(1 / 3)
    assert found["answer_tokens"].mean == 2.0
    assert "correct" not in answer_metrics(groups, answers, checkable=False)


def test_truth_logps_equal_the_models_own(reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    task = "prompt-completion"
    groups = prepare_groups(load_examples("facts", task, "test", 3), task, tokenizer, 128).groups
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    sums, per_token = [], []
    for group in groups:
        ids = torch.tensor([[*group.prompt_ids, *group.response_ids]])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, len(group.prompt_ids) - 1 : -1]
        logp = logps.gather(-1, torch.tensor(group.response_ids)[:, None]).sum().item()
        sums.append(logp)
        per_token.append(logp / len(group.response_ids))
    found = truth_metrics(Scorer.load(str(reference)), groups)
    assert found["truth_logp"].mean == pytest.approx(sum(sums) / 3, abs=1e-4)
    assert found["truth_logp_per_token"].mean == pytest.approx(sum(per_token) / 3, abs=1e-5)


def test_ranking_of_the_reference_itself_has_no_preference(negative_set: Path, reference: Path) -> None:
    groups = list(NegativeSet(str(negative_set)).groups())
    found = ranking_metrics(Scorer.load(str(reference)), groups, "embedding")
    assert found["reward_top1"].mean == 0.0
    assert found["kendall_tau"].mean == 0.0
    likelier = [sum(g.reference_logp > c.reference_logp for c in g.negatives) / 3 for g in groups]  # type: ignore[operator]
    assert found["ranking_accuracy"].mean == pytest.approx(sum(likelier) / len(likelier), abs=1e-6)


def test_ranking_metrics_follow_the_change_from_the_reference(reference: Path) -> None:
    """Stored reference values shifted by hand: the policy's gains are then known exactly."""
    scorer = Scorer.load(str(reference))

    def group(gains: list[float], similarity: list[float]) -> Group:
        made = Group("g", "p", "r", [5, 6], [7, 0])
        made.negatives = [
            Candidate("an", [8 + i, 0], f"t{i}", similarity={"embedding": s}) for i, s in enumerate(similarity)
        ]
        from trainer.packing import Continuations

        own = scorer.score([Continuations(made.prompt_ids, [made.response_ids, *(c.ids for c in made.negatives)])])[0]
        made.reference_logp = own[0] - gains[0]
        for candidate, logp, gain in zip(made.negatives, own[1:], gains[1:], strict=True):
            candidate.reference_logp = logp - gain
        return made

    # Gains fall as similarity does: the order agrees entirely. Then exactly reversed.
    agrees, reversed_order = group([3.0, 2.0, 1.0], [0.9, 0.1]), group([1.0, 2.0, 3.0], [0.9, 0.1])
    found = ranking_metrics(scorer, [agrees], "embedding")
    assert (found["reward_top1"].mean, found["kendall_tau"].mean) == (1.0, 1.0)
    found = ranking_metrics(scorer, [reversed_order], "embedding")
    assert (found["reward_top1"].mean, found["kendall_tau"].mean) == (0.0, -1.0)


def test_table_shows_values_with_standard_errors() -> None:
    shown = table({"mle": {"correct": Estimate(0.5, 0.025, 400)}, "cpo": {"correct": Estimate(0.75, 0.02, 400)}})
    assert "correct answers" in shown.splitlines()[0]
    assert "50.0% ± 2.5" in shown.splitlines()[2]
    assert "75.0% ± 2.0" in shown.splitlines()[3]


@pytest.fixture(scope="module")
def evaluation(reference: Path, negative_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m evaluation.run` on two names for the same model, with real vLLM."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    done = run_command(
        "evaluation.run", "--model", f"first={reference}", "--model", f"second={reference}", "--dataset", "facts",
        "--split", "train", "--limit", "12", "--max_new_tokens", "10", "--shards", str(negative_set), "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "correct answers" in done.stdout
    assert str(out) in done.stdout
    return out


def test_the_same_model_twice_gets_the_same_numbers(evaluation: Path) -> None:
    report = json.loads((evaluation / "report.json").read_text())
    first, second = report["results"]["first"], report["results"]["second"]
    assert first == second
    assert first["correct"]["n"] == 12
    assert first["ranking_accuracy"]["n"] == 48
    assert report["job"]["models"]["first"]["weights_sha256"] == report["job"]["models"]["second"]["weights_sha256"]
    assert "| first" in (evaluation / "report.md").read_text()


def test_greedy_answers_equal_transformers_generate(evaluation: Path, reference: Path) -> None:
    rows = pq.read_table(evaluation / "answers-first.parquet").to_pylist()
    tokenizer = load_tokenizer(str(reference))
    model: Any = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    for row in rows[:6]:
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        made = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert row["answer"] == tokenizer.decode(made, skip_special_tokens=True)
