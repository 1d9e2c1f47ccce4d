"""Whether speculative decoding keeps the distribution: `python -m tests.benchmarks.speculation`.

A toy model over five tokens, whose continuations of at most three can all be listed: their frequencies among many
samples against their probabilities by transformers, without speculation, with n-grams and with a draft model. An engine
of ours refuses it on a CPU, so these are vLLM's own.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from data.shape import parse_json
from tests.benchmarks.extent import extent

SAMPLES = extent(4000, 200)
PROMPT, LONGEST, END = [1, 2, 1, 2, 1], 3, 0


def main() -> None:
    if len(sys.argv) > 2:
        return sampled(sys.argv[1], parse_json(sys.argv[2].encode()))
    from tests.support.answering import save_toy_model

    with tempfile.TemporaryDirectory() as folder:
        for name, seed in (("model", 0), ("draft", 1)):
            save_toy_model(Path(folder) / name, seed)
        ways: dict[str, Any] = {
            "none": None,
            "n-gram": {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1},
            "draft model": {"method": "draft_model", "model": f"{folder}/draft"},
        }
        print(f"| speculation | total variation from the model, {SAMPLES} samples | log-probability is nan of |")
        for name, way in ways.items():
            way = way and {**way, "num_speculative_tokens": 3}
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.speculation", f"{folder}/model", json.dumps(way)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            rows = [line for line in done.stdout.splitlines() if line.startswith("found ")]
            print(f"| {name} | {rows[-1].removeprefix('found ') if rows else done.stderr.splitlines()[-1]} |")


def sampled(model: str, speculation: Any) -> None:
    """In a process of its own: one engine's samples against all probabilities."""
    from negatives_gen.models.engine import CPU_ENVIRONMENT, CPU_OPTIONS

    os.environ.update(CPU_ENVIRONMENT)
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {**CPU_OPTIONS, "num_gpu_blocks_override": 64, "max_model_len": 64}
    llm = LLM(model=model, logprobs_mode="processed_logprobs", speculative_config=speculation, **options)
    parameters = SamplingParams(n=SAMPLES, max_tokens=LONGEST, logprobs=0, detokenize=False)
    [output] = llm.generate([{"prompt_token_ids": PROMPT}], parameters, use_tqdm=False)  # type: ignore[arg-type]
    counts = Counter(tuple(c.token_ids) for c in output.outputs)
    lost = sum(math.isnan(c.cumulative_logprob or 0.0) for c in output.outputs)
    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    known: dict[tuple[int, ...], float] = {}

    def list_all(ids: tuple[int, ...], probability: float) -> None:
        if len(ids) == LONGEST or (ids and ids[-1] == END):
            known[ids] = probability
            return
        with torch.no_grad():
            following = reference(torch.tensor([[*PROMPT, *ids]])).logits[0, -1].softmax(-1).tolist()
        for token, share in enumerate(following):
            list_all((*ids, token), probability * share)

    list_all((), 1.0)
    distance = sum(abs(known.get(ids, 0) - counts[ids] / SAMPLES) for ids in {*known, *counts}) / 2
    print(f"found {distance:.3f} | {lost / SAMPLES:.0%}")


if __name__ == "__main__":
    main()
