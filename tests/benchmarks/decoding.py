"""What share of making an evaluation's answers is spent inside the engine, and what taking them from the store costs.

`python -m tests.benchmarks.decoding`: 200 Dolly prompts by five decodings on base-6m. The rest of the time is keys,
seeds, tables and files; starting the engine is reported apart.
"""

import tempfile
import time
from functools import cache

from data.identity import context_length, load_tokenizer
from evaluation.decoding import parse_decoding
from evaluation.generations import generate, identify_model
from evaluation.store import Store
from negatives_gen.engine import Engine
from tests.benchmarks.dolly import MODEL, dolly_groups

PROMPTS, MAX_TOKENS = 200, 64
DECODINGS = ("greedy", "sample", "topk50", "topk50-p0.7", "beam2")


def main() -> None:
    groups, tokenizer = dolly_groups(PROMPTS), load_tokenizer(MODEL)
    starts: list[float] = []

    @cache
    def engine() -> Engine:
        started = time.perf_counter()
        made = Engine(MODEL)
        starts.append(time.perf_counter() - started)
        return made

    with tempfile.TemporaryDirectory() as folder:
        for turn in ("made", "taken from the store"):
            started, inside, before = time.perf_counter(), 0.0, sum(starts)
            identity = identify_model(MODEL, tokenizer)
            for word in DECODINGS:
                begun = time.perf_counter()
                decoding, context = parse_decoding(word), context_length(MODEL)
                made = generate(Store(folder), identity, {}, decoding, groups, MAX_TOKENS, context, 0, engine)
                tokens = sum(len(s.ids) for s in made.samples)
                if not made.reused:
                    inside += made.seconds
                print(f"| {word} | {turn} | {time.perf_counter() - begun:.2f} s | {tokens} tokens |")
            whole = time.perf_counter() - started - (sum(starts) - before)
            print(f"{turn}: {whole:.2f} s, {inside / whole:.2%} of it inside the engine")
        print(f"start of the engine: {starts[0]:.1f} s")


if __name__ == "__main__":
    main()
