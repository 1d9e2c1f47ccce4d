"""Stage 1 with real Ray: as a Ray job on a running cluster, with real vLLM, and in the command's own Ray."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from data.command.options import make_config
from data.models import load_tokenizer, weights_hash
from data.shards import NegativeSet
from data.tokens import marks_of, text_behind
from negatives_gen.__main__ import main
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.inputs import Shard
from negatives_gen.job.job import generate, make_work
from negatives_gen.job.memory import actor_memory, shard_bytes
from negatives_gen.job.pipeline import CPU_SLOTS, shards_in_flight
from tests.support.answering import drawn_logp
from tests.support.commands import ROOT, ForkedCommand, fork_command
from tests.support.kill_points import arm
from tests.support.outside_entries import SIGNAL, STRATEGY
from tests.support.ray_cluster import RAY, RayCluster
from tests.support.stubs import LENGTH, EngineStub
from tests.support.without_ray import without_ray
from trainer.scoring.continuations import Continuations
from trainer.scoring.scorer import Scorer

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Submitted:
    """A job of the session's cluster: its set, what it and Ray printed, and what its actors asked Ray for, by stage."""

    out: Path
    said: str
    requests: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def submitted(cluster: RayCluster, trained: Path, rows: Path) -> Submitted:
    """The README's `ray job submit`, with paths of its recipe relative to the cluster's root."""
    shutil.copytree(trained, cluster.root / "runs/quickstart/reference")
    command = "job submit --working-dir . -- python -m negatives_gen --config recipes/quickstart.yaml"
    changed = ["--dataset", str(rows), "--strategies", "an=5,rn=2", "--max_new_tokens", "14", "--groups_per_shard", "5"]
    done = subprocess.run(
        [RAY, *command.split(), *changed, "--engine.max_num_seqs", "64", "--verbose"],
        env=cluster.env, cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "14 rows read, 10 groups written, 4 rejected" in done.stdout
    return Submitted(cluster.root / "runs/quickstart/negatives", done.stdout + done.stderr, cluster.requests())


@pytest.fixture(scope="module")
def generated(submitted: Submitted) -> Path:
    """A negative set made by real Ray and real vLLM."""
    return submitted.out


def test_actors_ask_ray_for_the_memory_that_they_take_and_ray_does_not_warn(
    submitted: Submitted, options: dict[str, Any], tmp_path: Path
) -> None:
    """Ray Data warns at a job's end of an actor that took more than four fifths of what it asked for."""
    config = make_config(GenerateConfig, **{**options, "strategies": "an=5,rn=2", "out": str(tmp_path / "set")})
    work = make_work(config, config.open_source(config.dataset, config.split, None, False))
    groups = [dataclasses.replace(group, negatives=[]) for group in NegativeSet(str(submitted.out)).shard(0)]
    size = shard_bytes(work, Shard(groups, groups, []))
    taken = actor_memory(work, on_gpu=False, shard=size, in_flight=min(3, shards_in_flight(work, CPU_SLOTS)))
    [percent] = re.findall(r"(\d+)% of it is asked for", submitted.said) or ["100"]  # on a machine with less
    asked = {stage: resources["memory"] for stage, resources in submitted.requests.items()}
    assert asked == {
        "SampleStage": taken["sample"] * int(percent) // 100,
        "ScoreStage": taken["score"] * int(percent) // 100,
    }
    assert "Ray: stage 'sample': 1 actor with" in submitted.said
    if percent == "100":
        assert not re.findall(r".*(?:of\s+memory\s+per\s+worker|out-of-memory).*", submitted.said)


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
        for strategy, count in (("an", 5), ("rn", 2)):
            found = [c.text.strip() for c in group.negatives if c.strategy == strategy]
            assert len(set(found)) == len(found) == count
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
    """Stage 1's log-probabilities and the trainer's, in nats per continuation; vLLM's of what it sampled from."""
    model: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    groups = list(NegativeSet(str(generated)).groups())
    fresh = Scorer.load(str(trained)).score(
        [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    )
    for group, (truth, *others) in zip(groups, fresh, strict=True):
        assert group.reference_logp == pytest.approx(truth, abs=1e-4)
        for candidate, logp in zip(group.negatives, others, strict=True):
            assert candidate.reference_logp == pytest.approx(logp, abs=1e-4)
            assert candidate.sampler_logp is not None
            assert candidate.sampler_logp > logp  # of the 50 likeliest alone, and of a tail that was resumed
            if candidate.strategy == "an":
                drawn = drawn_logp(model, group.prompt_ids, candidate.ids, top_k=50)
                assert candidate.sampler_logp == pytest.approx(drawn, abs=1e-3)


def test_resumed_negatives_keep_a_share_of_the_truth_and_their_tail_was_sampled(generated: Path, trained: Path) -> None:
    """By real vLLM: `sampler_logp` is that of what follows the tokens that were kept, of 10 to 90% of the truth."""
    model: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    kept = []
    for group in NegativeSet(str(generated)).groups():
        words = min(len(group.response_ids) - 1, 14)
        for candidate in group.negatives:
            if candidate.strategy != "rn":
                continue
            pairs = zip(candidate.ids, group.response_ids, strict=False)
            shared = next((i for i, (own, true) in enumerate(pairs) if own != true), len(candidate.ids))
            fits = [
                length
                for length in range(round(0.1 * words), min(shared, round(0.9 * words)) + 1)
                if drawn_logp(model, [*group.prompt_ids, *candidate.ids[:length]], candidate.ids[length:], top_k=50)
                == pytest.approx(candidate.sampler_logp, abs=1e-3)
            ]
            assert fits, (candidate, group.response_ids)
            kept.append(fits[0])
    assert len(kept) == 20
    assert max(kept) > 0
    assert main(["verify", str(generated), "--model", str(trained)]) == 0


def test_the_trainer_computes_the_log_probabilities_that_the_scorer_stored(
    generated: Path, trained: Path, tmp_path: Path
) -> None:
    """The trainer computes them of the same ids, in rows of its own making, in training mode."""
    import torch

    from trainer.arguments import parse
    from trainer.groups.dataset import Collator, ContrastiveGroups
    from trainer.policy import Policy, prepared_policy
    from trainer.scoring.prepared_model import candidate_logps

    script, _, model_config = parse(["--shards", str(generated), "--model", str(trained), "--output_dir", "unused"])
    policy = prepared_policy(Policy(trained, model_config, from_scratch=False, dropout=script.chosen.dropout).load())
    policy.called.train()
    dataset = ContrastiveGroups.of([NegativeSet(str(generated))], "all")
    passes = Collator(policy.layout, 150, ["an"])([dataset[i] for i in range(len(dataset))])
    assert len(passes) > 1
    for packed in passes:
        logps = candidate_logps(policy, packed.tokens)
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
    assert manifest["job"]["strategies"]["rn"] == {
        "count": 2,
        "top_k": 50,
        "temperature": 1.0,
        "max_new_tokens": 14,
        "rn_share": "0.1-0.9",
    }
    assert manifest["job"]["engine"] == {"max_num_seqs": 64}
    assert manifest["environment"]["packages"]["ray"].startswith("2.60")
    assert [s["rows_read"] for s in manifest["shards"]] == [5, 5, 4]
    assert all(s["seconds"]["an"] > 0 < s["seconds"]["rn"] and s["layout"] == "packed" for s in manifest["shards"])
    assert not list(generated.glob(".tmp-*"))
    assert not (generated / "_job").exists()


def test_the_same_command_again_finds_the_set_complete(
    generated: Path, options: dict[str, object], tmp_path: Path
) -> None:
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in generated.iterdir()}
    limit = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())["limit"]
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({**options, "strategies": "an=5,rn=2", "limit": limit, "out": str(generated)})
    )
    done = fork_command("negatives_gen", "--config", str(tmp_path / "r.yaml"))
    assert done.returncode == 0
    assert "complete already" in done.stderr
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in generated.iterdir()} == before


def test_the_trainer_starts_at_log_k_on_sampled_negatives(generated: Path, trained: Path, tmp_path: Path) -> None:
    import math

    done = fork_command(
        "trainer.run", "--shards", str(generated), "--model", str(trained), "--objective", "cpo", "--use", "an=5",
        "--split", "all", "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--logging_steps", "1",
        "--per_device_train_batch_size", "10", "--use_cpu", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert float(history[0]["loss"]) == pytest.approx(math.log(6), abs=5e-3)
    assert "differs from the reference" not in done.stderr


def test_rn_is_added_to_a_set_without_it_on_a_cluster(cluster: RayCluster, reference: Path, tmp_path: Path) -> None:
    """`extend` under Ray with a stub engine: what the set has stays, what is added is what one go would have made."""
    added = {"strategies": "rn=3", "rn_share": "0.5"}
    for name, options in {"parent": {"strategies": "an=2"}, "whole": {**added, "strategies": "an=2,rn=3"}}.items():
        config = make_config(
            GenerateConfig,
            model=str(reference), dataset="facts", limit=20, groups_per_shard=8, signals="rouge",
            out=str(tmp_path / name), **options,
        )  # fmt: skip
        with without_ray():
            generate(config, Components(engine=EngineStub))
    done = fork_command(
        "tests.support.stubs", "extend", str(tmp_path / "parent"), "--out", str(tmp_path / "more"),
        *(word for key, value in added.items() for word in (f"--{key}", value)), env=cluster.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    parent, whole, more = (NegativeSet(str(tmp_path / name)) for name in ("parent", "whole", "more"))
    tokenizer = load_tokenizer(str(reference))
    ends = marks_of(tokenizer).ends
    assert more.manifest.job["strategies"] == whole.manifest.job["strategies"]
    for before, one_go, group in zip(parent.groups(), whole.groups(), more.groups(), strict=True):
        assert group.negatives[:2] == before.negatives
        unscored, expected = (
            [dataclasses.replace(c, reference_logp=None) for c in made.negatives] for made in (group, one_go)
        )
        assert unscored == expected
        kept = round(0.5 * (len(group.response_ids) - 1))
        for candidate, other in zip(group.negatives[2:], one_go.negatives[2:], strict=True):
            assert candidate.strategy == "rn"
            assert candidate.ids[:kept] == group.response_ids[:kept]
            assert len(candidate.ids) == kept + LENGTH + 1
            assert candidate.sampler_logp == -1.0
            assert candidate.text == text_behind(tokenizer, group.prompt_ids, candidate.ids, ends)
            assert candidate.reference_logp == pytest.approx(other.reference_logp, abs=1e-4)
    assert len(more) == 20


def test_an_engine_that_cannot_start_ends_the_job_in_one_line(
    cluster: RayCluster, options: dict[str, object], tmp_path: Path
) -> None:
    """Ray would restart the actor for ever; here the job ends. What vLLM itself says: test_generate_without_ray."""
    recipe = {**options, "out": str(tmp_path / "set"), "engine": {"refuses": "an engine that cannot start"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    nothing = str(arm(tmp_path / "armed"))
    done = fork_command("tests.support.kill_points", nothing, "--config", str(tmp_path / "r.yaml"), env=cluster.env)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    written = tmp_path / "set/_job/log"
    assert errors == [f"error: an engine that cannot start. What libraries printed is in '{written}'."]
    assert "Traceback" not in done.stderr
    assert not_ours(done.stderr) == []
    assert "Ray" in written.read_text() or "ray" in written.read_text()
    assert [path for path in (tmp_path / "set").rglob("*") if path.is_file()] == [written]


def not_ours(stderr: str) -> list[str]:
    """Lines of a generation's stderr that are neither of our loggers nor its progress."""
    logged = r"(INFO|WARNING|ERROR) (data|negatives_gen|trainer)\..*|error: .*"
    ours = rf"{logged}|\d+ shards, .*|\d+ of \d+ shards written: .*|shard \d+.*|starting the .*|loading the .*"
    ours += (
        r"|<frozen runpy>.*|(Generating \w+ split.*)?"  # the fork's; the bar of reading, before the directory is ours
    )
    return [line for line in stderr.splitlines() if not re.fullmatch(ours, line)]


def test_a_strategy_and_a_signal_from_outside_of_the_repository_reach_the_workers(
    reference: Path, tmp_path: Path
) -> None:
    """The modules of both lie where the command runs, on no other path: the actors must find them by import path.

    The command starts Ray in its process, as it does where there is no cluster. What Ray and its workers print goes to
    the job's log while there is one.
    """
    sources = {"rotated_outside": STRATEGY, "brevity_outside": SIGNAL}
    for module, source in sources.items():
        (tmp_path / f"{module}.py").write_text(source)
    command = ForkedCommand.start(
        "negatives_gen", "--model", str(reference), "--dataset", "facts", "--limit", "8", "--groups_per_shard", "4",
        "--strategies", "rotated_outside:ROTATED=2", "tn=1", "--shift", "2", "--signals", "brevity_outside:BREVITY",
        "--scale", "0.5", "--out", "set", cwd=tmp_path,
    )  # fmt: skip
    written = ""
    try:
        while command.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                written = (tmp_path / "set/_job/log").read_text()
            time.sleep(0.1)
    finally:
        command.kill()
    assert command.poll() == 0, command.stderr[-3000:]
    assert not_ours(command.stderr) == []
    assert len(command.stdout.splitlines()) == 2
    assert "loading the models that score\n" in command.stderr
    assert "WARNING negatives_gen.brevity: in a worker: long ones are far\n" in command.stderr
    assert "Progress bars disabled" in written  # Ray says so, in the driver
    assert "pid=" in written  # of its workers
    negatives = NegativeSet(str(tmp_path / "set"))
    hashes = {module: hashlib.sha256(source.encode()).hexdigest() for module, source in sources.items()}
    job = negatives.manifest.job
    assert job["strategies"]["rotated"]["origin"] == {
        "entry": "rotated_outside:ROTATED",
        "source_sha256": hashes["rotated_outside"],
    }
    assert job["signals"]["brevity"]["origin"] == {
        "entry": "brevity_outside:BREVITY",
        "source_sha256": hashes["brevity_outside"],
    }
    groups = list(negatives.groups())
    assert len(groups) == 8
    for group in groups:
        *tokens, eos = group.response_ids
        first, second, other = group.negatives
        assert [first.strategy, second.strategy, other.strategy] == ["rotated", "rotated", "tn"]
        assert first.ids == [*tokens[2:], *tokens[:2], eos]
        assert [c.similarity for c in group.negatives] == [{"brevity": -0.5 * len(c.ids)} for c in group.negatives]
