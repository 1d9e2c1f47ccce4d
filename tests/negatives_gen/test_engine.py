"""The engine's samples: log-densities under what they were drawn from. Real vLLM, against transformers."""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.command.errors import UserError
from data.models import load_tokenizer
from negatives_gen.models.engine import Engine, Request, Sample
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools
from tests.support.answering import BLOCKS, DrawingEngine, answer_logp, drawn_logp, facts_groups
from tests.support.commands import CONTEXT


@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 5), (1.3, 0), (1.0, 50)])
def test_a_samples_log_density_is_that_after_temperature_and_top_k(
    engine: DrawingEngine, answering_model: Path, temperature: float, top_k: int
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32).eval()
    prompts = [group.prompt_ids for group in facts_groups(answering_model, 6)]
    drawn = engine.draw([Request(prompt, 4, top_k, temperature, 12, seed) for seed, prompt in enumerate(prompts)])
    others = []
    for prompt, samples in zip(prompts, drawn, strict=True):
        for sample in samples:
            expected = drawn_logp(model, prompt, sample.ids, temperature=temperature, top_k=top_k)
            assert sample.logp == pytest.approx(expected, abs=1e-5 * len(sample.ids))
            others.append(abs(expected - answer_logp(model, prompt, sample.ids)))
    assert max(others) > 0.1  # before temperature and top-k it would be another number


def test_what_is_sampled_depends_on_the_request_alone(engine: DrawingEngine, answering_model: Path) -> None:
    """Neither on the order of the requests nor on what shares a step with them."""
    prompts = [group.prompt_ids for group in facts_groups(answering_model, 12)]
    requests = [Request(prompt, 3, 50, 1.0, 12, seed) for seed, prompt in enumerate(prompts)]
    together = engine.draw(requests)
    backwards = engine.draw(requests[::-1])[::-1]
    alone = [engine.draw([request])[0] for request in requests]
    ids = [[[sample.ids for sample in samples] for samples in drawn] for drawn in (together, backwards, alone)]
    assert ids[0] == ids[1] == ids[2]
    assert all(len({tuple(sample) for sample in samples}) > 1 for samples in ids[0])  # not one draw three times


def test_a_request_that_vllm_refuses_is_a_value_error_and_harms_no_other(engine: DrawingEngine) -> None:
    with pytest.raises(ValueError, match="vLLM refuses a prompt of 100000 tokens"):
        engine.start("long", Request([1] * 100_000, 1, 0, 1.0, 4, 0))
    assert [len(samples) for samples in engine.draw([Request([1, 2], 3, 0, 1.0, 4, 0)])] == [3]


def test_rns_tails_have_the_log_density_of_what_follows_the_kept_tokens(
    engine: DrawingEngine, answering_model: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(answering_model))

    class DrawnSampler:
        async def sample(self, prompt: Sequence[int], **asked: Any) -> list[Sample]:
            return engine.draw([Request(prompt, **asked)])[0]

    groups = facts_groups(answering_model, 3)
    settings = {"count": 3, "top_k": 50, "temperature": 1.0, "max_new_tokens": 32, "rn_share": "0.3-0.7"}
    STRATEGIES.load("rn").add(groups, groups, settings, Tools(0, 128, tokenizer, sampler=DrawnSampler()))
    for group in groups:
        for candidate in group.negatives:
            kept = next(
                length
                for length in range(len(group.response_ids), -1, -1)
                if candidate.ids[:length] == group.response_ids[:length]
            )
            # Where the tail begins like the ground truth, it is one of the shorter ones.
            expected = [
                drawn_logp(model, [*group.prompt_ids, *candidate.ids[:length]], candidate.ids[length:], top_k=50)
                for length in range(kept + 1)
            ]
            assert any(candidate.sampler_logp == pytest.approx(logp, abs=1e-3) for logp in expected)


def drawn_beside(model: str, requests: list[Request]) -> tuple[str, list[list[Sample]], list[int | None]]:
    """The class of the engine's core in a process of its own, what it samples, and `running` before and after."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    with mock.patch("vllm.v1.engine.utils.get_mp_context", return_value=multiprocessing.get_context("fork")):
        engine = DrawingEngine(model, options={"num_gpu_blocks_override": BLOCKS})
    core: Any = engine.llm.llm_engine.engine_core
    try:
        before = engine.running
        return type(core).__name__, engine.draw(requests), [before, engine.running]
    finally:
        core.shutdown()


def test_an_engine_in_processes_as_on_gpus_samples_the_same(engine: DrawingEngine, answering_model: Path) -> None:
    prompts = [group.prompt_ids for group in facts_groups(answering_model, 4)]
    requests = [Request(prompt, 3, 50, 1.0, 12, seed) for seed, prompt in enumerate(prompts)]
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        core, samples, running = pool.submit(drawn_beside, str(answering_model), requests).result(timeout=300)
    assert core == "SyncMPClient"
    assert [[s.ids for s in drawn] for drawn in samples] == [[s.ids for s in drawn] for drawn in engine.draw(requests)]
    assert running[0] is None
    assert running[1] in range(1, 13)  # of the last step


def test_the_engine_refuses_the_option_logprobs_mode() -> None:
    with pytest.raises(UserError, match=r"--engine\.logprobs_mode is not an option"):
        Engine("m", options={"logprobs_mode": "raw_logprobs"})
