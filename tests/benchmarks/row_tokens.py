"""Tokens per second of packed forward + backward by token budget: `python -m tests.benchmarks.row_tokens`.

A random Llama of 6 M parameters, 12 groups with K = 12 whose lengths are drawn like Dolly's under an 8k tokenizer.
"""

import random
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.logprobs import candidate_logps, layout, prepare_model
from trainer.packing import Continuations

CONFIG = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def draw_group(draw: random.Random) -> Continuations:
    def ids(mean: int) -> list[int]:
        return [draw.randrange(CONFIG["vocab_size"]) for _ in range(min(300, 2 + int(draw.expovariate(1 / mean))))]

    return Continuations(ids(65), [ids(80) for _ in range(12)])


def main() -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG))
    path = prepare_model(model)
    groups = [draw_group(draw) for _ in range(12)]
    tokens = sum(g.packed_length for g in groups)
    print(f"{tokens} packed tokens in {len(groups)} groups, {torch.get_num_threads()} thread(s), {path}")
    for row_tokens in (512, 1024, 2048, 4096):
        started = time.perf_counter()
        for _, batch in layout(groups, path, row_tokens):
            candidate_logps(model, batch).sum().backward()
        print(f"row_tokens {row_tokens}: {tokens / (time.perf_counter() - started):.0f} tokens/s")
        model.zero_grad()


if __name__ == "__main__":
    main()
