"""What share of an evaluation is spent inside the model, and how long a finished one takes to run again.

`python -m tests.benchmarks.evaluation`: 1,000 Dolly prompts by five decodings, answered by base-6m, judged by nobody.
The rest of the time is tokenisation, keys, tables, statistics and the report; the start of the engine, once per model,
is reported apart. Inside the model: inside vLLM's `LLM.generate`; of that, inside its model runner.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from data.command.options import load_config
from evaluation.config import EvaluateConfig
from evaluation.run import evaluate
from negatives_gen.models.engine import Engine
from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent

PROMPTS, MAX_TOKENS = extent((1000, 16), (16, 4))
DECODINGS = ["greedy", "topk50", "topk50-p0.7", "beam2", "beam4"]


class Clock:
    """Seconds that a method takes, over all calls."""

    def __init__(self, owner: type, name: str):
        self.seconds = 0.0
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, name, timed)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "model": f"base={MODEL}", "dataset": DOLLY, "task": "dolly", "limit": str(PROMPTS), "metrics": "text",
            "max_new_tokens": str(MAX_TOKENS), "out": f"{folder}/evaluation",
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        words += [word for decoding in DECODINGS for word in ("--decode", decoding)]

        start = Clock(Engine, "__init__")
        import vllm
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # the CPU's is made of it

        inside = Clock(vllm.LLM, "generate")
        runner = [Clock(GPUModelRunner, "execute_model"), Clock(GPUModelRunner, "sample_tokens")]
        config = load_config(EvaluateConfig, words, command="python -m evaluation.run")
        config.check()
        started = time.perf_counter()
        print(evaluate(config))
        whole = time.perf_counter() - started - start.seconds
        print(
            f"| {PROMPTS} prompts x {len(DECODINGS)} decodings | {whole:.1f} s, {inside.seconds / whole:.1%} of it "
            f"inside vLLM ({sum(clock.seconds for clock in runner) / whole:.1%} in its model runner); start of the "
            f"engine, apart: {start.seconds:.1f} s |"
        )
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "evaluation.run", *words], check=True, capture_output=True)
        print(f"| the same command again | {time.perf_counter() - started:.1f} s |")


if __name__ == "__main__":
    main()
