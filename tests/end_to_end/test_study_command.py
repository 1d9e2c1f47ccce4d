"""`python -m recipes.study` with the real commands: two rows, two seeds of the embedded world, in two parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.study.records import read_records
from tests.support.commands import ROOT

YAML = """
about: the embedded world in small
data: {dataset: facts, task: prompt-completion, parts: {test: 24, validation: 16, train: 40}}
references:
  reference:
    blank: {vocab_size: 768, hidden_size: 64, num_layers: 1, num_heads: 2}
    part: train
    options: {max_steps: 20, per_device_train_batch_size: 16, learning_rate: 3.0e-3}
sets:
  negatives:
    reference: reference
    part: train
    options: {strategies: bn=2, bn_batch_size: 8, embedder: reference, groups_per_shard: 40}
training: {max_steps: 2, per_device_train_batch_size: 8}
rates: [1.0e-4, 1.0e-3, 3.0e-3]
seeds: [0, 1]
baseline: mle
rows:
  mle: {set: negatives, objective: mle}
  bn: {set: negatives, objective: cpo, options: {use: bn=2, beta: 5}}
hypotheses: {H1: {measures: [truth_logp, answer_tokens], rows: [bn], against: [mle]}}
choose_by: {truth_logp: 1}
choose_metrics: [truth]
metrics: [truth, text]
evaluation: {decode: sample, max_new_tokens: 8}
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_a_study_is_run_in_parts_and_ends_in_a_page(tmp_path: Path) -> None:
    (tmp_path / "world.yaml").write_text(YAML)

    def study(*more: str) -> str:
        words = ["--task", str(tmp_path / "world.yaml"), "--runs", str(tmp_path / "runs"), *more]
        command = [sys.executable, "-m", "recipes.study", *words, "--results", str(tmp_path / "results")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "17 steps left" in study("--plan", "true")
    study("--only", "mle")
    runs = tmp_path / "runs/world"
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("trainer_state.json")}
    assert len(before) == 5  # the reference, three rates and the other seed at the chosen one
    assert "nothing is left" in study()
    assert {path: path.stat().st_mtime_ns for path in before} == before

    records = read_records(tmp_path / "results/study-world.json")
    assert {(c.row, c.against, c.seed) for c in records.comparisons} == {
        (row, "mle", seed) for row in ("mle", "bn") for seed in (0, 1)
    }
    for row, choice in records.choices.items():
        truths = {rate: found["truth_logp"] for rate, found in choice["values"].items()}
        assert choice["scores"] == truths
        assert choice["rate"] == float(max(truths, key=lambda rate: truths[rate])), row
    compared = next(c for c in records.comparisons if (c.row, c.seed) == ("bn", 1))
    assert compared.differences["truth_logp"].mean == pytest.approx(
        compared.values["truth_logp"].mean - compared.theirs["truth_logp"].mean, abs=1e-6
    )
    assert compared.values["truth_logp"].n == 24
    assert all(made["tokens"] > 0 and made["steps"] == 2 for made in records.training.values())
    page = (tmp_path / "results/study-world.md").read_text()
    assert "| bn | mle | 2 | " in page
    assert json.loads((runs / "data/counts.json").read_text()) == {"test": 24, "validation": 16, "train": 40}
    assert "nothing is left" in study()
