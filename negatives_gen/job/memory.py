"""How much memory an actor takes, estimated from what is known without loading anything."""

import math
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from data.models import model_directory, tensor_places, vocabulary_size
from negatives_gen.job.actors import Work
from negatives_gen.models.engine import CPU_ENVIRONMENT, CPU_OPTIONS
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

MIB = 2**20
# Ray warns of an actor that takes more than four fifths of what it asked for.
HEADROOM = 1.25
# Interpreter, libraries and what a pass computes, without weights, cache and what an engine holds per logit of a step
# on a CPU (80 bytes); measured: docs/benchmarks.md, "Memory of actors".
SAMPLE_BYTES, ASK_BYTES, SCORE_BYTES = 1000 * MIB, 500 * MIB, 1000 * MIB
LOGIT_BYTES, SLOTS = 80, 256
BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


def actor_memory(work: Work, *, on_gpu: bool) -> dict[str, int]:
    """Stage -> bytes of an actor's own memory, as Ray measures it (resident, less what is shared with others).

    A model's weights count in the type that it computes in. On a GPU they pass through this memory while they are
    loaded, and an engine's cache and logits lie elsewhere.
    """
    dtype = work.engine_options.get("dtype", "auto" if on_gpu else CPU_OPTIONS["dtype"])
    sampler = work.sampler.model if work.sampler else work.model
    engine = weights_bytes(sampler, dtype) + (0 if on_gpu else _cache_bytes() + _logit_bytes(work))
    signals = sum(_signal_bytes(work, options) for options in work.signals.values())
    scorer = weights_bytes(work.model, work.dtype) + signals
    taken = {SAMPLE: SAMPLE_BYTES + engine, ASK: ASK_BYTES, SCORE: SCORE_BYTES + scorer}
    return {stage: math.ceil(HEADROOM * size) for stage, size in taken.items()}


def weights_bytes(model: str, dtype: str) -> int:
    """Bytes of a model's weights in a type; in one that is not known, as of "auto", those on the disk."""
    entries: list[Mapping[str, Any]] = [entry for _, entry, _ in tensor_places(model_directory(model)).values()]
    if dtype not in BYTES:
        return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries)
    return BYTES[dtype] * sum(math.prod(entry["shape"]) for entry in entries)


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
