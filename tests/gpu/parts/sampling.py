"""The AN stage against bare vLLM on one engine: `tests.benchmarks.engine` with a model of random weights."""

import statistics
import tempfile
from typing import Any

import torch

from data.schema import Group
from negatives_gen.models.engine import Engine
from tests.benchmarks.engine import N, contestants, speeds
from tests.benchmarks.extent import extent
from tests.gpu.parts.checks import at_least
from tests.gpu.parts.inputs import DOLLY_LENGTHS

PROMPTS, MAX_TOKENS, ROUNDS = extent((192, 64, 3), (4, 4, 1))  # twice the slots; twenty calls with warm-ups
# A Llama of 1.2 billion parameters, most of them outside of its small vocabulary.
SHAPE = extent(
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 32},
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
)
CONTEXT = 1024
TARGET = extent(0.95, 0.0)  # of bare vLLM with the same settings, as on CPUs


def an(_: str) -> dict[str, Any]:
    """Tokens per second of the AN stage and of vLLM's own calls for the same prompts; medians, and the range."""
    with tempfile.TemporaryDirectory() as folder:
        _save_model(folder)
        engine = Engine(folder, options={"max_num_seqs": extent(1024, 16), "max_model_len": CONTEXT})
        found = speeds(contestants(engine, _groups(len(engine.tokenizer)), CONTEXT, MAX_TOKENS), ROUNDS)
    rows = [
        {"name": name, "tokens_per_second": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in found.items()
    ]
    ours, bare = (row["tokens_per_second"] for row in rows[:2])
    check = at_least("AN stage, of bare vLLM with the same settings", ours / bare, TARGET)
    return {"checks": [check], "sampling": rows, "prompts": PROMPTS, "n": N, "max_tokens": MAX_TOKENS}


def _save_model(folder: str) -> None:
    """Made on the CPU, so that this process has not touched the GPU when vLLM starts its own."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from data.blank import BlankConfig, write_blank_model

    write_blank_model(BlankConfig(out=folder, max_length=CONTEXT))
    size = len(AutoTokenizer.from_pretrained(folder))
    config = AutoConfig.from_pretrained(folder)
    config.update({**SHAPE, "num_key_value_heads": SHAPE["num_attention_heads"], "vocab_size": size})
    config.head_dim = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _groups(vocabulary: int) -> list[Group]:
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> list[int]:
        return torch.randint(3, vocabulary, (length,), generator=generator).tolist()

    lengths = [DOLLY_LENGTHS[number % len(DOLLY_LENGTHS)][0] for number in range(PROMPTS)]
    return [
        Group(id=str(number), split="train", prompt="", response="", prompt_ids=tokens(length), response_ids=[0])
        for number, length in enumerate(lengths)
    ]
