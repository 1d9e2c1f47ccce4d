"""AN stage against bare vLLM, against transformers.generate and against one request per sample, side by side.

`python -m tests.benchmarks.engine`. One process, one engine, the same prompts, n, lengths and sampling settings, after
a warm-up; the order of the contestants changes from round to round.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from data.models import context_length
from data.schema import Group
from negatives_gen.job.batching import Admission, EngineLoop, ShardSampler
from negatives_gen.models.engine import Engine
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools
from tests.benchmarks.dolly import MODEL, dolly_groups
from tests.benchmarks.extent import extent

GROUPS, MAX_TOKENS, ROUNDS = extent((96, 64, 5), (8, 4, 1))
N, TOP_K = 11, 50


def contestants(engine: Engine, groups: list[Group], context: int, max_tokens: int) -> dict[str, Callable[[], int]]:
    """What samples for the prompts of the groups, by name, the AN stage first: calls that return a number of tokens."""
    from vllm import SamplingParams

    prompts = [group.prompt_ids for group in groups]
    loop = EngineLoop(lambda: engine)
    settings = {"count": N, "top_k": TOP_K, "temperature": 1.0, "max_new_tokens": max_tokens}

    def bare(n: int = N, repeat: int = 1, logprobs: int | None = 0, seeded: bool = False) -> int:
        """vLLM's own API. `sampler_logp` needs `logprobs=0`, so a user who wants what the set holds asks for it."""
        requests = [{"prompt_token_ids": ids} for ids in prompts for _ in range(repeat)]
        parameters = [
            SamplingParams(
                n=n, top_k=TOP_K, temperature=1.0, max_tokens=max_tokens, logprobs=logprobs,
                seed=number if seeded else None,
            )
            for number in range(len(requests))
        ]  # fmt: skip
        outputs = engine.llm.generate(requests, parameters, use_tqdm=False)  # type: ignore[arg-type]  # a TypedDict
        return sum(len(c.token_ids) for output in outputs for c in output.outputs)

    def ours() -> int:
        fresh = [dataclasses.replace(group, negatives=[]) for group in groups]
        sampler = ShardSampler(loop, Admission(lambda: 0, 1), 0)
        STRATEGIES.load("an").add(fresh, fresh, settings, Tools(0, context, engine.tokenizer, sampler=sampler))
        return sum(len(c.ids) for group in fresh for c in group.negatives)

    return {
        "AN stage": ours,
        "bare vLLM, n = 11, the same settings": bare,
        "bare vLLM, n = 11, without log-probabilities": lambda: bare(logprobs=None),
        "bare vLLM, one request per sample": lambda: bare(1, N),
        "bare vLLM, n = 11, a seed for each request": lambda: bare(seeded=True),
    }


def speeds(calls: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each call in each round, after one to warm up; the order changes from round to round."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds):
        for name in sorted(calls, reverse=round_number % 2 == 1):
            started = time.perf_counter()
            tokens = calls[name]()
            found[name].append(tokens / (time.perf_counter() - started))
    return found


def main() -> None:
    groups = dolly_groups(GROUPS)
    engine = Engine(MODEL, options={"max_num_seqs": 256})
    found = speeds(contestants(engine, groups, context_length(MODEL), MAX_TOKENS), ROUNDS)
    hub = _transformers_speed([group.prompt_ids for group in groups])
    print(f"base-6m, {GROUPS} Dolly prompts, n = {N}, at most {MAX_TOKENS} tokens, median of {ROUNDS} rounds (range)")
    median = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        share = median["AN stage"] / median[name]
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"| {name} | {median[name]:.0f} tokens/s ({spread}) | AN stage is {share:.2f} x |")
    share = median["AN stage"] / hub
    print(f"| transformers.generate, best batch size | {hub:.0f} tokens/s | AN stage is {share:.2f} x |")


def _transformers_speed(prompts: list[list[int]]) -> float:
    """The best of several batch sizes, on a part of the prompts, left-padded, sorted by length."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    part = sorted(prompts[:24], key=len)
    best = 0.0
    for batch in (2, 4, 8):
        started, tokens = time.perf_counter(), 0
        for start in range(0, len(part), batch):
            rows = part[start : start + batch]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=True, top_k=TOP_K, temperature=1.0,
                    max_new_tokens=MAX_TOKENS, num_return_sequences=N, pad_token_id=0,
                )  # fmt: skip
            new = out[:, width:]
            ended = (new == 0).int().cumsum(-1)
            tokens += int((ended == 0).sum() + (ended[:, -1] > 0).sum())  # up to EOS, which counts
        best = max(best, tokens / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
