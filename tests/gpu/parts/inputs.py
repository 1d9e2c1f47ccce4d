"""Models of random weights, made where they are used, and groups as long as Dolly's: nothing needs to be at hand."""

import math
import random
from contextlib import nullcontext
from typing import Any

import torch

from tests.benchmarks.extent import extent
from trainer.groups.dataset import TrainingGroup
from trainer.scoring.continuations import Continuations

# K, groups of a step, tokens of a packed row.
K, STEP, ROW_TOKENS = extent((12, 16, 8192), (3, 2, 256))
BETA = 5.0

_SMALL = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 2}
# GPT-2, GPT-2 XL (a billion and a half) and OpenLLaMA-3B, the paper's two; in small a GPT-2 and a Llama of two layers.
SHAPES: dict[str, dict[str, Any]] = extent(
    {
        "124M": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12},
        "1.5B": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
        "3B": {
            "model_type": "llama", "vocab_size": 32000, "hidden_size": 3200, "intermediate_size": 8640,
            "num_hidden_layers": 26, "num_attention_heads": 32, "max_position_embeddings": 2048,
        },
    },
    {
        "124M": _SMALL,
        "1.5B": _SMALL,
        "3B": {
            "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 1024,
        },
    },
)  # fmt: skip
# Tokens of prompt and response of the first rows of Dolly's training half under GPT-2's tokenizer, those cut at 256.
DOLLY_LENGTHS = (
    (42, 173), (41, 47), (36, 38), (44, 70), (40, 69), (132, 52), (36, 82), (39, 256), (338, 21), (36, 93), (43,
    37), (36, 94), (48, 33), (195, 4), (35, 54), (47, 149), (352, 27), (45, 30), (34, 79), (60, 10), (44, 2), (46,
    156), (46, 56), (38, 58), (37, 2), (88, 49), (45, 12), (41, 4), (128, 18), (42, 8), (36, 183), (35, 92), (57,
    23), (40, 46), (36, 72), (58, 27), (45, 12), (298, 63), (37, 98), (44, 17), (37, 80), (34, 93), (41, 25), (46,
    22), (46, 13), (48, 144), (54, 149), (36, 26), (34, 7), (41, 256), (186, 29), (53, 45), (339, 204), (38, 18),
    (42, 212), (41, 95), (40, 102), (317, 14), (59, 67), (39, 164), (50, 57), (481, 21), (44, 65), (149, 122), (56,
    32), (59, 31), (516, 54), (47, 15), (39, 38), (40, 157), (136, 83), (41, 3), (63, 32), (45, 61), (38, 186),
    (618, 21), (46, 14), (44, 28), (279, 70), (41, 41), (343, 15), (213, 18), (46, 12), (45, 82), (46, 12), (46,
    29), (40, 101), (166, 12), (346, 35), (122, 21), (43, 58), (42, 22), (60, 44), (40, 77), (83, 39), (45, 13),
)  # fmt: skip


def make_model(size: str, device: str | None, dtype: torch.dtype) -> Any:
    """A causal language model of random weights, drawn on the device (None: torch's default); no dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[size])
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    with torch.device(device) if device else nullcontext():
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def make_groups(size: str, count: int, negatives: int = K - 1) -> list[TrainingGroup]:
    """Groups with Dolly's lengths and random tokens; a negative is as long as another row's response."""
    draw = random.Random(0)
    vocabulary = SHAPES[size].get("vocab_size", 50257)
    longest = extent(256, 16)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(min(length, 3 * longest))]

    def group(number: int) -> TrainingGroup:
        prompt, response = DOLLY_LENGTHS[number % len(DOLLY_LENGTHS)]
        others = [length for _, length in draw.sample(DOLLY_LENGTHS, negatives)]
        continuations = [tokens(min(length, longest)) for length in (response, *others)]
        return TrainingGroup(
            str(number),
            Continuations(tokens(prompt), continuations),
            # About what a model of random weights gives: so no group is decided from the start.
            reference_logps=[-math.log(vocabulary) * len(c) for c in continuations],
            similarity=[1.0, *[0.5] * negatives],
            strategies=["an"] * negatives,
        )

    return [group(number) for number in range(count)]
