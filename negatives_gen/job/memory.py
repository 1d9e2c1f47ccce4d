"""How much memory an actor takes, estimated from what is known without loading anything."""

import math
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from data.models import model_directory, tensor_places, vocabulary_size
from negatives_gen.job.actors import Work
from negatives_gen.job.inputs import Shard
from negatives_gen.models.engine import CPU_ENVIRONMENT, CPU_OPTIONS, lora_rank
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

MIB = 2**20
# Ray warns of an actor that takes more than four fifths of what it asked for.
HEADROOM = 1.25
# Interpreter, libraries and what a pass computes, without weights, cache and what an engine holds per logit of a step
# on a CPU (80 bytes). Taken from peaks of small jobs on a CPU; where it is too little, Ray warns.
SAMPLE_BYTES, ASK_BYTES, SCORE_BYTES = 1000 * MIB, 500 * MIB, 1000 * MIB
LOGIT_BYTES, SLOTS = 80, 256
BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
WIDE = (
    "F64",
    "F32",
    "F16",
    "BF16",
)  # what is computed with in another type than it is stored in; not quantised weights
# A token of a list, which is a number and its place, with its text; what else a candidate is.
TOKEN_BYTES, CANDIDATE_BYTES = 48, 1000


def actor_memory(work: Work, *, on_gpu: bool, shard: int = 0, in_flight: int = 1) -> dict[str, int]:
    """Stage -> bytes of an actor's own memory, as Ray measures it (resident, less what is shared with others).

    A model's weights count in the type that it computes in. On a GPU they pass through this memory while they are
    loaded, and an engine's cache and logits lie elsewhere.

    Args:
        shard: bytes of one, see `shard_bytes`.
        in_flight: shards that an engine's actor holds at a time; others hold one.
    """
    dtype = work.engine_options.get("dtype", "auto" if on_gpu else CPU_OPTIONS["dtype"])
    sampler = work.sampler.model if work.sampler else work.model
    engine = weights_bytes(sampler, dtype) + (0 if on_gpu else _cache_bytes() + _logit_bytes(work))
    if work.sampler and work.sampler.adapter:
        engine += _adapter_bytes(sampler, work.sampler.adapter, dtype, on_gpu)
    signals = sum(_signal_bytes(work, options) for options in work.signals.values())
    scorer = weights_bytes(work.model, work.dtype) + signals
    taken = {
        SAMPLE: SAMPLE_BYTES + engine + in_flight * shard,
        ASK: ASK_BYTES + shard,
        SCORE: SCORE_BYTES + scorer + shard,
    }
    return {stage: math.ceil(HEADROOM * size) for stage, size in taken.items()}


def shard_bytes(work: Work, shard: Shard) -> int:
    """Bytes of a shard's groups in memory once all strategies have run.

    What is sampled counts at its longest, what other strategies make at the length of the ground truths.
    """
    groups = shard.groups
    tokens = sum(len(g.prompt_ids) + len(g.response_ids) + sum(len(c.ids) for c in g.negatives) for g in groups)
    candidates = sum(1 + len(g.negatives) for g in groups)
    for name, settings in work.strategies.items():
        lacking = settings["count"] - work.present.get(name, 0)
        if STRATEGIES.load(name).stage == SAMPLE:
            most = settings.get("max_new_tokens", work.context)
            tokens += lacking * sum(min(most, work.context - len(g.prompt_ids)) for g in groups)
        else:
            tokens += lacking * sum(len(g.response_ids) for g in groups)
        candidates += lacking * len(groups)
    return TOKEN_BYTES * tokens + CANDIDATE_BYTES * candidates


def weights_bytes(model: str, dtype: str) -> int:
    """Bytes of a model's weights in a type; in one that is not known, as of "auto", those on the disk."""
    return sum(
        BYTES[dtype] * math.prod(entry["shape"])
        if dtype in BYTES and entry["dtype"] in WIDE
        else entry["data_offsets"][1] - entry["data_offsets"][0]
        for entry in _tensors(model)
    )


def _tensors(model: str) -> list[Mapping[str, Any]]:
    """The entries of a model's safetensors files."""
    return [entry for _, entry, _ in tensor_places(model_directory(model)).values()]


def _adapter_bytes(model: str, adapter: str, dtype: str, on_gpu: bool) -> int:
    """A LoRA adapter, and what vLLM lays beside every matrix of a model that an adapter may be laid over.

    That has room for the adapter's rank, or the next larger one that vLLM takes, on a GPU in the GPU's memory.
    """
    room = 0
    if not on_gpu:
        sides = sum(sum(entry["shape"]) for entry in _tensors(model) if len(entry["shape"]) == 2)
        room = BYTES.get(dtype, 4) * lora_rank(adapter) * sides
    return weights_bytes(adapter, dtype) + room


def _cache_bytes() -> int:
    """What vLLM takes for its key-value cache on a CPU."""
    default = CPU_ENVIRONMENT["VLLM_CPU_KVCACHE_SPACE"]
    given = os.environ.get("VLLM_CPU_KVCACHE_SPACE", default)
    return int(given if given.isdecimal() else default) * 2**30


def _logit_bytes(work: Work) -> int:
    """What vLLM holds of a step of all of its slots."""
    slots = work.engine_options.get("max_num_seqs", SLOTS)
    return LOGIT_BYTES * int(slots) * (vocabulary_size(work.model) or 0)


def _signal_bytes(work: Work, options: Any) -> int:
    """The models that a signal's options name, in float32, as they are computed with; the reference, by its word."""
    named = [(getattr(options, field.name), field.metadata) for field in fields(options)]
    models = [(name, mark.get("words", ())) for name, mark in named if mark.get("is_name") and isinstance(name, str)]
    return sum(weights_bytes(work.model if name in words else name, "float32") for name, words in models)
