"""Shares of a cluster: each actor can be placed on a node, or the job is refused. Without Ray."""

import dataclasses
import gc
import json
import logging
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.command.errors import UserError
from data.command.options import make_config
from data.models import vocabulary_size
from data.schema import Candidate, Group
from data.sources.examples import open_source
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Work
from negatives_gen.job.inputs import Shard
from negatives_gen.job.job import make_work
from negatives_gen.job.memory import SCORE_BYTES, actor_memory, shard_bytes, weights_bytes
from negatives_gen.job.resources import GIB, Node, Resources, Share
from negatives_gen.models.engine import CPU_OPTIONS
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

TP2: dict[str, Any] = {"tensor_parallel_size": 2}
PP2: dict[str, Any] = {"pipeline_parallel_size": 2}
NO_MEMORY = {SAMPLE: 0, ASK: 0, SCORE: 0}


def planned(nodes: Sequence[Node], stages: Sequence[str] = (SAMPLE, SCORE), **options: Any) -> dict[str, Share]:
    given = {"num_engines": None, "engine": {}, "memory": NO_MEMORY, **options}
    return Resources.plan(stages, nodes, **given).shares


def shares(engines: int, engine_gpus: float, scorers: int, scorer_gpus: float, cpus: float) -> dict[str, Share]:
    found = {SAMPLE: Share(engines, cpus, engine_gpus), SCORE: Share(scorers, cpus, scorer_gpus)}
    return {stage: share for stage, share in found.items() if share.actors}


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        ({}, [Node(2)], shares(1, 0, 2, 0, 0.656)),
        ({}, [Node(32)], shares(1, 0, 2, 0, 10)),
        ({}, [Node(16, 1)], shares(1, 0.7, 1, 0.3, 8)),
        # Of four GPUs no more than four have 0.7 left: the scorers lie beside the engines.
        ({}, [Node(16, 4), Node(16, 4)], shares(8, 0.7, 8, 0.3, 2)),
        ({"stages": [SCORE]}, [Node(2)], shares(0, 0, 2, 0, 1)),
        ({"stages": [SCORE]}, [Node(16, 4)], shares(0, 0, 4, 1, 4)),
        ({"num_engines": 6}, [Node(64, 8)], shares(6, 1, 2, 1, 8)),
        ({"engine": TP2, "num_engines": 3}, [Node(64, 8)], shares(3, 2, 2, 1, 12)),
        # An actor lies on one node: two nodes of 5 cores have room for three actors of 2, not of 3.
        ({}, [Node(5), Node(5)], shares(1, 0, 2, 0, 2)),
        ({"num_engines": 2}, [Node(0), Node(4), Node(4)], shares(2, 0, 4, 0, 1)),
        # Whole engines on each node, a scorer for what is left; one engine fewer where that is nothing.
        ({"engine": TP2}, [Node(16, 3), Node(16, 3)], shares(2, 2, 2, 1, 5)),
        ({"engine": TP2}, [Node(16, 4), Node(16, 4)], shares(3, 2, 2, 1, 4)),
        ({"engine": {**TP2, **PP2}}, [Node(16, 4), Node(16, 1)], shares(1, 4, 1, 1, 8)),
        # A node's cores suffice for whatever its GPUs hold.
        ({}, [Node(2), Node(8, 1), Node(3, 1)], shares(2, 0.7, 2, 0.3, 1)),
        # vLLM's workers, on whatever nodes, hold the GPUs: the engine's actor itself needs none.
        ({"engine": {**TP2, "distributed_executor_backend": "ray"}}, [Node(4, 1)] * 4, shares(1, 0, 2, 1, 2)),
    ],
)  # fmt: skip
def test_every_actor_can_be_placed(options: dict, nodes: list[Node], expected: dict[str, Share]) -> None:
    assert planned(nodes, **options) == expected


RAY_TP2: dict[str, Any] = {**TP2, "distributed_executor_backend": "ray"}
ASKED = "{} are asked for: the rest comes in as others' jobs end. To begin, "


@pytest.mark.parametrize(
    ("options", "nodes", "free", "said"),
    [
        ({}, [Node(16, 1)], 1, ""),
        ({"stages": [SCORE]}, [Node(16, 4)], 4, ""),
        (
            {},
            [Node(16, 1)],
            0,
            f"0 of 1 GPUs are free now, {ASKED.format(1)}stage 'sample' needs 0.7 GPUs, stage 'score' needs 0.3 "
            "GPUs",
        ),
        (
            {"engine": TP2, "num_engines": 1},
            [Node(32, 8)],
            2,
            f"2 of 8 GPUs are free now, {ASKED.format(8)}stage 'sample' needs 2 GPUs, stage 'score' needs 1 GPU",
        ),
        (
            {"engine": RAY_TP2, "num_engines": 1},
            [Node(8, 2)] * 2,
            2.5,
            f"2.5 of 4 GPUs are free now, {ASKED.format(4)}stage 'sample' needs 2 GPUs, stage 'score' needs 1 GPU",
        ),
        (
            {"stages": [SCORE]},
            [Node(16, 4)],
            0.5,
            f"0.5 of 4 GPUs are free now, {ASKED.format(4)}stage 'score' needs 1 GPU",
        ),
    ],
)  # fmt: skip
def test_gpus_that_others_hold_are_said_with_what_each_stage_needs_to_begin(
    options: dict[str, Any], nodes: list[Node], free: float, said: str
) -> None:
    given = {"stages": [SAMPLE, SCORE], "num_engines": None, "engine": {}, "memory": NO_MEMORY, **options}
    resources = Resources.plan(given.pop("stages"), nodes, **given)
    assert resources.lack_of_gpus(free, sum(node.gpus for node in nodes), 100) == said
    assert resources.gpu_stages == [stage for stage in (SAMPLE, SCORE) if stage in resources.shares]


def test_of_few_shards_few_gpus_are_asked_for() -> None:
    resources = Resources.plan([SAMPLE, ASK, SCORE], [Node(64, 8)], num_engines=None, engine={}, memory=NO_MEMORY)
    assert [resources.gpus(shards) for shards in (1, 3, 8, 100)] == [1, 3, 8, 8]
    assert resources.lack_of_gpus(3, 8, 3) == ""
    assert resources.gpu_stages == [SAMPLE, SCORE]
    assert Resources.plan([SCORE], [Node(4)], num_engines=None, engine={}, memory=NO_MEMORY).gpu_stages == []


def test_an_engine_that_shares_its_gpu_leaves_room_for_the_scorer() -> None:
    options: dict[str, Any] = {"engine": {}, "memory": NO_MEMORY}
    shared = Resources.plan([SAMPLE, SCORE], [Node(8, 1)], num_engines=None, **options)
    assert shared.engine_options == {"gpu_memory_utilization": 0.6}
    assert Resources.plan([SAMPLE, SCORE], [Node(8, 2)], num_engines=1, **options).engine_options == {}
    assert Resources.plan([SCORE], [Node(8, 1)], num_engines=None, **options).engine_options == {}


@pytest.mark.parametrize(
    ("options", "nodes", "said"),
    [
        (
            {"engine": TP2},
            [Node(8, 1)] * 4,
            "an engine needs 2 GPUs on one node (tensor_parallel_size x pipeline_parallel_size = 2), the cluster's "
            "nodes have at most 1.",
        ),
        ({"engine": PP2}, [Node(8, 1)] * 4, "an engine needs 2 GPUs on one node"),
        ({"engine": {**TP2, **PP2}}, [Node(8, 2)], "1 engine of 4 GPUs needs 4 GPUs, the cluster has 2."),
        ({"engine": TP2, "num_engines": 4}, [Node(8, 4)], "4 engines of 2 GPUs need 8 GPUs, the cluster has 4."),
        (
            {"engine": TP2, "num_engines": 2},
            [Node(8, 3), Node(8, 1)],
            "2 engines of 2 GPUs need 4 GPUs, the cluster has 4, whose nodes hold 1 of these engines.",
        ),
        (
            {"engine": TP2, "num_engines": 2},
            [Node(8, 4)],
            "no GPU is left for a scorer: 2 engines of 2 GPUs (tensor_parallel_size x pipeline_parallel_size = 2), the "
            "cluster has 4.",
        ),
        ({"engine": TP2}, [Node(8, 2)], "1 engine of 2 GPUs"),
        ({"engine": {"tensor_parallel_size": "two"}}, [Node(8, 2)], "must be a whole number, at least 1, got 'two'"),
        ({}, [Node(0)], "3 actors cannot be placed: the cluster has 0 CPU on 1 node."),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_numbers(options: dict, nodes: list[Node], said: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(nodes, **options)
    assert said in str(caught.value)


def test_actors_ask_for_the_memory_that_they_take() -> None:
    memory = {SAMPLE: 4 * GIB, ASK: GIB, SCORE: 2 * GIB}
    found = planned([Node(4, memory=8 * GIB), Node(4, memory=2 * GIB)], [SAMPLE, ASK, SCORE], memory=memory)
    assert {stage: share.memory for stage, share in found.items()} == memory


def test_memory_that_no_node_offers_is_asked_for_in_part_and_said(caplog: pytest.LogCaptureFixture) -> None:
    memory = {SAMPLE: 6 * GIB, SCORE: 2 * GIB}
    with caplog.at_level(logging.WARNING):
        found = planned([Node(4, memory=5 * GIB)], memory=memory)
    assert {stage: share.memory for stage, share in found.items()} == {SAMPLE: 3 * GIB, SCORE: GIB}
    assert [record.getMessage() for record in caplog.records] == [
        "the actors take about 10.0 GiB of memory, the nodes offer 5.0 GiB to Ray: 50% of it is asked for"
    ]


def work_of(reference: Path, tmp_path: Path, **options: Any) -> Work:
    config = make_config(
        GenerateConfig,
        model=str(reference), dataset="facts", out=str(tmp_path / "set"), embedder="reference",
        scorer_dtype="bfloat16", limit=20, **{"strategies": "an=1", **options},
    )  # fmt: skip
    return make_work(config, open_source("facts", "prompt-completion", "train", 20))


def test_an_actors_memory_is_that_of_its_models_in_their_types(reference: Path, tmp_path: Path) -> None:
    work = work_of(reference, tmp_path)
    stored = weights_bytes(str(reference), "auto")
    assert CPU_OPTIONS["dtype"] == "float32"
    assert weights_bytes(str(reference), "float32") == stored == 2 * weights_bytes(str(reference), "bfloat16") > 0
    on_cpu, on_gpu = actor_memory(work, on_gpu=False), actor_memory(work, on_gpu=True)
    logits = 80 * 256 * (vocabulary_size(str(reference)) or 0)
    assert logits
    assert on_cpu[SAMPLE] - on_gpu[SAMPLE] == pytest.approx(1.25 * (GIB + logits), abs=1)
    assert on_cpu[SCORE] == pytest.approx(1.25 * (SCORE_BYTES + 0.5 * stored + stored), abs=1)


def test_quantised_weights_take_what_they_are_stored_in(tmp_path: Path) -> None:
    save_file(
        {"codes": torch.zeros(64, 32, dtype=torch.int8), "scale": torch.ones(64, 1, dtype=torch.float32)},
        tmp_path / "model.safetensors",
    )
    assert weights_bytes(str(tmp_path), "bfloat16") == 64 * 32 + 2 * 64
    assert weights_bytes(str(tmp_path), "auto") == 64 * 32 + 4 * 64


def test_an_adapter_takes_its_own_room_and_that_of_its_rank_beside_each_matrix(reference: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 12, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    weights = {"lora_A": torch.zeros(12, 64), "lora_B": torch.zeros(64, 12)}
    save_file(weights, adapter / "adapter_model.safetensors")
    bare, adapted = work_of(reference, tmp_path), work_of(reference, tmp_path, sampler=str(adapter))
    matrices = [t for t in load_file(reference / "model.safetensors").values() if t.dim() == 2]
    beside = 4 * 16 * sum(sum(matrix.shape) for matrix in matrices)  # vLLM has room for ranks 8, 16, 32 ...
    own = 4 * 2 * 12 * 64
    for on_gpu, more in ((False, own + beside), (True, own)):
        before, after = actor_memory(bare, on_gpu=on_gpu), actor_memory(adapted, on_gpu=on_gpu)
        assert after[SAMPLE] - before[SAMPLE] == pytest.approx(1.25 * more, abs=1)
        assert after[SCORE] == before[SCORE]


def test_an_actor_takes_the_shards_that_it_has_in_flight(reference: Path, tmp_path: Path) -> None:
    work, size = work_of(reference, tmp_path), 100 * 2**20
    without, with_shards = (actor_memory(work, on_gpu=False, shard=shard, in_flight=3) for shard in (0, size))
    more = {stage: with_shards[stage] - without[stage] for stage in without}
    assert more == pytest.approx({SAMPLE: 3.75 * size, ASK: 1.25 * size, SCORE: 1.25 * size}, abs=1)


@pytest.mark.parametrize("length", [4, 200])
def test_a_shards_bytes_are_those_of_its_groups_at_their_longest(reference: Path, tmp_path: Path, length: int) -> None:
    """Against what Python allocates for the groups; short candidates are more than their tokens."""
    work = dataclasses.replace(
        work_of(reference, tmp_path, strategies="an=4,tn=2", max_new_tokens=length), present={"an": 1}, context=1024
    )

    def ids(number: int) -> list[int]:
        return [random.randrange(1000, 50000) for _ in range(number)]

    def candidate(strategy: str) -> Candidate:
        return Candidate(strategy, ids(length), "word" * length, "stop", sampler_logp=random.random(), similarity={})

    def shard(negatives: list[str]) -> Shard:
        groups = [
            Group(
                f"{n:032x}",
                "word" * 50,
                "word" * length,
                ids(50),
                ids(length),
                negatives=list(map(candidate, negatives)),
            )
            for n in range(100)
        ]
        return Shard(groups, groups, [])

    expected = shard_bytes(work, shard(["an"]))
    assert expected == 100 * (48 * (50 + length + length + 5 * length) + 1000 * 7)
    gc.collect()
    tracemalloc.start()
    whole = shard(["an"] * 4 + ["tn"] * 2)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(whole.groups[0].negatives) == 6
    assert taken <= expected <= 2.5 * taken
