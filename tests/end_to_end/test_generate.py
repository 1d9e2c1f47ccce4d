"""Stage 1 with real Ray and real vLLM: in this process's Ray, and as a Ray job on a running cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from data.models import load_tokenizer, weights_hash
from data.shards import NegativeSet
from tests.support.commands import ROOT, run_command
from trainer.scoring.logprobs import Scorer
from trainer.scoring.packing import Continuations

RAY = str(Path(sys.executable).parent / "ray")
BAD_ROWS = [
    {"prompt": "Question: nothing?\nAnswer:", "completion": ""},
    {"prompt": "Say Belada. " * 60, "completion": " yes."},
    {"prompt": "   ", "completion": " yes."},
]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten questions of the embedded world, one of them twice, and three bad rows."""
    from data.sources import facts

    records = facts.examples()[:10]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*records, records[3], *BAD_ROWS]))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that has learnt where answers end, so that its samples stop before and after the limit."""
    from data.blank import BlankConfig, write_blank_model
    from trainer.run import main

    folder = tmp_path_factory.mktemp("trained")
    write_blank_model(BlankConfig(out=str(folder / "blank"), hidden_size=64, num_layers=1, num_heads=2))
    options = {
        "objective": "mle", "from_scratch": "true", "model": str(folder / "blank"), "dataset": "facts",
        "output_dir": str(folder / "model"), "max_steps": "60", "per_device_train_batch_size": "32",
        "learning_rate": "1e-2", "use_cpu": "true", "save_strategy": "no", "disable_tqdm": "true",
    }  # fmt: skip
    assert main([word for key, value in options.items() for word in (f"--{key}", value)]) == 0
    return folder / "model"


@pytest.fixture(scope="session")
def options(trained: Path, rows: Path) -> dict[str, object]:
    return {
        "model": str(trained),
        "dataset": str(rows),
        "task": "prompt-completion",
        "split": "all",
        "strategies": "an=5",
        "max_new_tokens": 14,
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


def test_ids_end_with_eos_exactly_where_the_model_stopped(generated: Path, trained: Path) -> None:
    tokenizer = load_tokenizer(str(trained))
    reasons = set()
    for group in NegativeSet(str(generated)).groups():
        assert group.response_ids[-1] == tokenizer.eos_token_id
        assert group.prompt_ids == tokenizer(group.prompt)["input_ids"]
        for candidate in group.negatives:
            reasons.add(candidate.finish_reason)
            stopped = candidate.finish_reason == "stop"
            assert (candidate.ids[-1] == tokenizer.eos_token_id) == stopped
            assert len(candidate.ids) <= 14
            assert stopped or len(candidate.ids) == 14
            assert tokenizer.decode(candidate.ids, skip_special_tokens=True) == candidate.text
    assert reasons == {"stop", "length"}


def test_sampler_scorer_and_a_fresh_scorer_agree_on_the_same_ids(generated: Path, trained: Path) -> None:
    """vLLM's log-probabilities, stage 1's and the trainer's, in nats per continuation."""
    groups = list(NegativeSet(str(generated)).groups())
    fresh = Scorer.load(str(trained)).score(
        [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    )
    for group, (truth, *others) in zip(groups, fresh, strict=True):
        assert group.reference_logp == pytest.approx(truth, abs=1e-4)
        for candidate, logp in zip(group.negatives, others, strict=True):
            assert candidate.reference_logp == pytest.approx(logp, abs=1e-4)
            assert candidate.sampler_logp == pytest.approx(logp, abs=1e-3)


def test_the_trainer_computes_the_log_probabilities_that_the_scorer_stored(
    generated: Path, trained: Path, tmp_path: Path
) -> None:
    """Of the same ids, in rows of its own making, in training mode."""
    import torch

    from trainer.arguments import parse
    from trainer.groups.dataset import Collator, ContrastiveGroups
    from trainer.run import _load_model
    from trainer.scoring.logprobs import candidate_logps

    script, _, model_config = parse(["--shards", str(generated), "--model", str(trained), "--output_dir", "unused"])
    model, path = _load_model(script, model_config, trained)
    model.train()
    dataset = ContrastiveGroups.of([NegativeSet(str(generated))], "all")
    passes = Collator(path, 150, ["an"])([dataset[i] for i in range(len(dataset))])
    assert len(passes) > 1
    for packed in passes:
        logps = candidate_logps(model, packed.tokens)
        torch.testing.assert_close(logps, packed.reference_logps, rtol=0, atol=1e-4)


def test_similarity_is_the_cosine_of_stored_and_recomputed_embeddings(generated: Path, trained: Path) -> None:
    from negatives_gen.models.embedder import Embedder

    embedder = Embedder("reference", str(trained))
    group = next(NegativeSet(str(generated)).groups())
    truth = embedder.embed([group.response])[0]
    assert group.response_embedding == pytest.approx(truth.tolist(), abs=1e-5)
    assert float(truth @ truth) == pytest.approx(1.0, abs=1e-5)
    for candidate in group.negatives:
        expected = float(embedder.embed([candidate.text])[0] @ truth)
        assert candidate.similarity["embedding"] == pytest.approx(expected, abs=1e-4)


def test_the_manifest_says_what_made_the_set(generated: Path, trained: Path) -> None:
    manifest = json.loads((generated / "manifest.json").read_text())
    assert manifest["job"]["model"]["weights_sha256"] == weights_hash(str(trained))
    assert manifest["job"]["strategies"]["an"] == {
        "count": 5,
        "top_k": 50,
        "temperature": 1.0,
        "max_new_tokens": 14,
    }
    assert manifest["job"]["engine"] == {"max_num_seqs": 64}
    assert manifest["environment"]["packages"]["ray"].startswith("2.60")
    assert [s["rows_read"] for s in manifest["shards"]] == [5, 5, 4]
    assert all(s["seconds"]["an"] > 0 and s["layout"] == "packed" for s in manifest["shards"])
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


def test_the_trainer_starts_at_log_k_on_sampled_negatives(generated: Path, trained: Path, tmp_path: Path) -> None:
    import math

    done = run_command(
        "trainer.run", "--shards", str(generated), "--model", str(trained), "--objective", "cpo", "--use", "an=5",
        "--split", "all", "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--logging_steps", "1",
        "--per_device_train_batch_size", "10", "--use_cpu", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert float(history[0]["loss"]) == pytest.approx(math.log(6), abs=5e-3)
    assert "differs from the reference" not in done.stderr


def test_an_interrupted_job_goes_on_and_leaves_finished_shards_as_they_are(
    generated: Path, options: dict[str, object], tmp_path: Path
) -> None:
    """The state that a kill leaves: two of three shards with their records, a temporary file, no manifest."""
    out = tmp_path / "set"
    (out / "_job").mkdir(parents=True)
    manifest = json.loads((generated / "manifest.json").read_text())
    claim = {**manifest["job"], "ranking signals": manifest["signals"], "parent": None, "schema_version": 3}
    (out / "_job/job.json").write_text(json.dumps(claim))
    (out / ".tmp-half").write_bytes(b"PAR1")
    rejects = [vars(r) for r in NegativeSet(str(generated)).rejects()]
    for index in (0, 2):
        record = manifest["shards"][index]
        mine, rejects = rejects[: record["rows_rejected"]], rejects[record["rows_rejected"] :]
        if index == 0:
            rejects = rejects[manifest["shards"][1]["rows_rejected"] :]
        shutil.copy2(generated / record["file"], out)
        (out / f"_job/shard-{index:05d}.json").write_text(json.dumps({"record": record, "rejects": mine}))
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("*.parquet")}

    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**options, "out": str(out)}))
    done = run_command("negatives_gen", "--config", str(tmp_path / "r.yaml"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3 shards, 1 of them to do" in done.stderr
    assert {n: (p.read_bytes(), p.stat().st_mtime_ns) for n, p in ((n, out / n) for n in before)} == before
    whole, resumed = NegativeSet(str(generated)), NegativeSet(str(out))
    assert [g.id for g in resumed.groups()] == [g.id for g in whole.groups()]
    assert resumed.rejects() == whole.rejects()
    assert resumed.manifest.counts == whole.manifest.counts
    assert not [p for p in out.iterdir() if p.name.startswith((".", "_"))]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray cluster of its own, as the README starts one; relative paths of its jobs count from tmp_path."""
    port = 20000 + os.getpid() % 10000
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "NEGATIVES_GEN_ROOT": str(tmp_path),
        "RAY_worker_niceness": "0",
        # The job's `python` is the first on the cluster's PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port + 1}",
    }
    env.pop("RAY_ADDRESS", None)
    ports = [f"--port={port}", f"--dashboard-port={port + 1}", f"--dashboard-agent-listen-port={port + 2}"]
    # Its own process group: `ray stop` would stop every cluster on the machine.
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", *ports],
        env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(env)
        yield env
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)


def wait_until_up(env: dict[str, str]) -> None:
    for _ in range(60):
        if subprocess.run([RAY, "job", "list"], env=env, capture_output=True, timeout=60).returncode == 0:
            return
        time.sleep(1)
    raise AssertionError("the Ray cluster did not come up")


def test_ray_job_submit_makes_the_set_where_relative_paths_point(
    cluster: dict[str, str], trained: Path, tmp_path: Path
) -> None:
    """The command of the README, with the repository as working directory and paths relative to the root."""
    shutil.copytree(trained, tmp_path / "runs/quickstart/reference")
    command = "job submit --working-dir . -- python -m negatives_gen --config recipes/quickstart.yaml"
    smaller = ["--limit", "8", "--groups_per_shard", "4", "--strategies", "an=3", "--max_new_tokens", "8"]
    done = subprocess.run(
        [RAY, *command.split(), *smaller], env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert re.search(r"8 rows read, 8 groups written, 0 rejected", done.stdout)
    negatives = NegativeSet(str(tmp_path / "runs/quickstart/negatives"))
    assert len(negatives) == 8
    assert sorted(g.split for g in negatives.groups()) == ["test"] * 4 + ["train"] * 4


def test_an_engine_that_cannot_start_ends_the_job_in_one_line(options: dict[str, object], tmp_path: Path) -> None:
    """Ray would restart the actor for ever; here the job ends."""
    recipe = {**options, "out": str(tmp_path / "set"), "engine": {"nonsense": 1}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = run_command("negatives_gen", "--config", str(tmp_path / "r.yaml"))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "nonsense" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()
