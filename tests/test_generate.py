"""Stage 1 with real Ray and real vLLM: in this process's Ray, and as a Ray job on a running cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from data.identity import load_tokenizer, weights_hash
from data.shards import NegativeSet
from tests.conftest import ROOT, run_command
from trainer.logprobs import Scorer
from trainer.packing import Continuations

BAD_ROWS = [
    {"prompt": "Question: nothing?\nAnswer:", "completion": ""},
    {"prompt": "Say Belada. " * 60, "completion": " yes."},
    {"prompt": "   ", "completion": " yes."},
]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten questions of the embedded world, one of them twice, and three bad rows."""
    from data import facts

    records = facts.examples()[:10]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*records, records[3], *BAD_ROWS]))
    return path


@pytest.fixture(scope="session")
def options(reference: Path, rows: Path) -> dict[str, object]:
    return {
        "model": str(reference),
        "dataset": str(rows),
        "task": "prompt-completion",
        "split": "all",
        "strategies": "an=5",
        "max_new_tokens": 12,
        "embedder": "reference",
        "groups_per_shard": 5,
        "engine": {"max_num_seqs": 64},
    }


@pytest.fixture(scope="session")
def generated(options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A negative set made by `python -m negatives_gen`, which starts Ray in-process."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**options, "out": str(folder / "set")}))
    done = run_command("negatives_gen", "--config", str(folder / "recipe.yaml"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "14 rows read, 10 groups written, 4 rejected" in done.stdout
    return folder / "set"


def test_every_row_is_a_group_or_a_reject_with_a_reason(generated: Path) -> None:
    negatives = NegativeSet(str(generated))
    counts = negatives.manifest.counts
    assert counts["rows_read"] == counts["rows_written"] + counts["rows_rejected"] == 14
    assert {r.reason for r in negatives.rejects()} == {
        "duplicate",
        "empty response",
        "prompt too long",
        "empty prompt",
    }
    assert len({g.id for g in negatives.groups()}) == 10
    assert {g.split for g in negatives.groups()} == {"train", "test"}


def test_negatives_are_distinct_non_empty_and_not_the_ground_truth(generated: Path) -> None:
    for group in NegativeSet(str(generated)).groups():
        found = [c.text.strip() for c in group.negatives]
        assert len(set(found)) == len(found) == 5
        assert "" not in found
        assert group.response.strip() not in found


def test_ids_end_with_eos_exactly_where_the_model_stopped(generated: Path, reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    reasons = set()
    for group in NegativeSet(str(generated)).groups():
        assert group.response_ids[-1] == tokenizer.eos_token_id
        assert group.prompt_ids == tokenizer(group.prompt)["input_ids"]
        for candidate in group.negatives:
            reasons.add(candidate.finish_reason)
            stopped = candidate.finish_reason == "stop"
            assert (candidate.ids[-1] == tokenizer.eos_token_id) == stopped
            assert len(candidate.ids) <= 12
            assert stopped or len(candidate.ids) == 12
            assert tokenizer.decode(candidate.ids, skip_special_tokens=True) == candidate.text
    assert "length" in reasons


def test_sampler_scorer_and_a_fresh_scorer_agree_on_the_same_ids(generated: Path, reference: Path) -> None:
    """vLLM's log-probabilities, stage 1's and the trainer's, in nats per continuation."""
    groups = list(NegativeSet(str(generated)).groups())
    fresh = Scorer.load(str(reference)).score(
        [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    )
    for group, (truth, *others) in zip(groups, fresh, strict=True):
        assert group.reference_logp == pytest.approx(truth, abs=1e-4)
        for candidate, logp in zip(group.negatives, others, strict=True):
            assert candidate.reference_logp == pytest.approx(logp, abs=1e-4)
            assert candidate.sampler_logp == pytest.approx(logp, abs=1e-3)


def test_similarity_is_the_cosine_of_stored_and_recomputed_embeddings(generated: Path, reference: Path) -> None:
    from negatives_gen.embedder import Embedder

    embedder = Embedder("reference", str(reference))
    group = next(NegativeSet(str(generated)).groups())
    truth = embedder.embed([group.response])[0]
    assert group.response_embedding == pytest.approx(truth.tolist(), abs=1e-5)
    assert float(truth @ truth) == pytest.approx(1.0, abs=1e-5)
    for candidate in group.negatives:
        expected = float(embedder.embed([candidate.text])[0] @ truth)
        assert candidate.similarity["embedding"] == pytest.approx(expected, abs=1e-4)


def test_the_manifest_says_what_made_the_set(generated: Path, reference: Path) -> None:
    manifest = json.loads((generated / "manifest.json").read_text())
    assert manifest["job"]["model"]["weights_sha256"] == weights_hash(str(reference))
    assert manifest["job"]["strategies"]["an"] == {
        "count": 5,
        "top_k": 50,
        "temperature": 1.0,
        "max_new_tokens": 12,
    }
    assert manifest["job"]["engine"] == {"max_num_seqs": 64}
    assert manifest["environment"]["packages"]["ray"].startswith("2.60")
    assert [s["rows_read"] for s in manifest["shards"]] == [5, 5, 4]
    assert all(s["seconds"]["sample"] > 0 and s["attention_path"] == "packed" for s in manifest["shards"])
    assert not list(generated.glob(".tmp-*"))
    assert not (generated / "_job").exists()


def test_the_same_command_again_finds_the_set_complete(
    generated: Path, options: dict[str, object], tmp_path: Path
) -> None:
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in generated.iterdir()}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**options, "out": str(generated)}))
    done = run_command("negatives_gen", "--config", str(tmp_path / "r.yaml"))
    assert done.returncode == 0
    assert "complete already" in done.stderr
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in generated.iterdir()} == before


def test_the_trainer_starts_at_log_k_on_sampled_negatives(generated: Path, reference: Path, tmp_path: Path) -> None:
    import math

    done = run_command(
        "trainer.run", "--shards", str(generated), "--model", str(reference), "--objective", "cpo", "--use", "an=5",
        "--split", "all", "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--logging_steps", "1",
        "--per_device_train_batch_size", "10", "--use_cpu", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert float(history[0]["loss"]) == pytest.approx(math.log(6), abs=5e-3)
    assert "differs from the reference" not in done.stderr


def ray_command(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).parent / "ray"), *arguments],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray cluster started as the README says; relative paths of its jobs count from tmp_path."""
    env = {**os.environ, "RAY_AUTH_MODE": "token", "NEGATIVES_GEN_ROOT": str(tmp_path)}
    env.pop("RAY_ADDRESS", None)
    # The job's `python` is the first on the cluster's PATH.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    port = 20000 + os.getpid() % 10000
    ports = ["--port", str(port), "--dashboard-port", str(port + 1)]
    started = ray_command("start", "--head", "--disable-usage-stats", *ports, env=env)
    assert started.returncode == 0, started.stderr
    try:
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port + 1}"}
    finally:
        ray_command("stop", "--force", env=env)


def test_ray_job_submit_makes_the_set_where_relative_paths_point(
    cluster: dict[str, str], generated: Path, reference: Path, rows: Path, tmp_path: Path
) -> None:
    """The command of the README, with the repository as working directory and paths relative to the root."""
    shutil.copytree(reference, tmp_path / "runs/quickstart/reference")
    done = ray_command(
        "job", "submit", "--working-dir", ".", "--",
        "python", "-m", "negatives_gen", "--config", "recipes/quickstart.yaml",
        "--limit", "8", "--groups_per_shard", "4", "--strategies", "an=3", "--max_new_tokens", "8",
        env=cluster,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert re.search(r"8 rows read, 8 groups written, 0 rejected", done.stdout)
    negatives = NegativeSet(str(tmp_path / "runs/quickstart/negatives"))
    assert len(negatives) == 8
    assert sorted(g.split for g in negatives.groups()) == ["test"] * 4 + ["train"] * 4


def test_an_engine_that_cannot_start_ends_the_job_in_one_line(options: dict[str, object], tmp_path: Path) -> None:
    """Ray would restart the actor for ever; the job ends, and the directory can be finished later."""
    recipe = {**options, "out": str(tmp_path / "set"), "engine": {"nonsense": 1}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = run_command("negatives_gen", "--config", str(tmp_path / "r.yaml"))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "nonsense" in errors[0]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "set").glob("*.parquet"))
