"""The engine's samples: log-densities under what they were drawn from. Real vLLM, against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.command.errors import UserError
from negatives_gen.models.engine import Engine, Request
from tests.support.answering import DrawingEngine, answer_logp, drawn_logp, facts_groups


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


def test_the_engine_refuses_the_option_logprobs_mode() -> None:
    with pytest.raises(UserError, match=r"--engine\.logprobs_mode is not an option"):
        Engine("m", options={"logprobs_mode": "raw_logprobs"})
