"""Decodings: the words, and what the engine makes of them with real vLLM, against transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.command.errors import UserError
from data.models import load_tokenizer
from data.schema import Group
from evaluation.answers.decoding import Decoding, parse_decoding
from negatives_gen.models.beam_search import BeamSearch
from negatives_gen.models.engine import Engine
from tests.support.answering import answer_logp, answer_logps, drawn_logp, facts_groups
from trainer.scoring.continuations import Continuations
from trainer.scoring.scorer import Scorer

LIMIT = 16


@pytest.mark.parametrize(
    ("word", "decoding"),
    [
        ("greedy", Decoding("greedy", "greedy")),
        ("sample", Decoding("sample", "sample")),
        ("topk50", Decoding("topk50", "sample", top_k=50)),
        ("topk050", Decoding("topk50", "sample", top_k=50)),
        ("topk1", Decoding("topk1", "sample", top_k=1)),
        ("topk50-p0.7", Decoding("topk50-p0.7", "sample", top_k=50, top_p=0.7)),
        ("topk50-p.70", Decoding("topk50-p0.7", "sample", top_k=50, top_p=0.7)),
        ("topk50-p0.00001", Decoding("topk50-p0.00001", "sample", top_k=50, top_p=0.00001)),
        ("topk50-p1.0", Decoding("topk50", "sample", top_k=50)),
        ("beam2", Decoding("beam2", "beam", beams=2)),
        ("beam04", Decoding("beam4", "beam", beams=4)),
    ],
)
def test_names_of_decodings_give_their_settings(word: str, decoding: Decoding) -> None:
    assert parse_decoding(word) == decoding
    assert parse_decoding(decoding.name) == decoding


@pytest.mark.parametrize(
    "word",
    [
        "", "Greedy", "sample ", "topk", "topk0", "topk-5", "topk5.5", "topk\u0665", "topk50-p", "topk50-p0",
        "topk50-p0.0", "topk50-p1.5", "topk50-p-1", "topk50-pnan", "topk50p0.7", "topk50-p1e-1",
        "beam", "beam0", "beam1", "beam-2", "beam" + 5000 * "9", "topk50-p0." + 5000 * "0" + "1",
    ],
)  # fmt: skip
def test_unknown_decodings_are_refused_with_the_forms_that_exist(word: str) -> None:
    with pytest.raises(UserError) as error:
        parse_decoding(word)
    assert f"unknown decoding '{word}'" in str(error.value)
    assert "topk50-p0.7 or beam4" in str(error.value)


@pytest.fixture(scope="module")
def model(answering_model: Path) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def groups(answering_model: Path) -> list[Group]:
    return facts_groups(answering_model, 8)


@pytest.fixture(scope="module")
def prompts(groups: list[Group]) -> list[list[int]]:
    return [group.prompt_ids for group in groups]


# Of different lengths, so that an answer of one prompt in the place of another's is found out.
def limits(prompts: Sequence[Sequence[int]]) -> list[int]:
    return [LIMIT - 4 * (i % 3) for i in range(len(prompts))]


def generated(model: Any, prompt: list[int], limit: int, **options: Any) -> list[int]:
    """What transformers generates, up to EOS."""
    ids = torch.tensor([prompt])
    made = model.generate(ids, max_new_tokens=limit, do_sample=False, pad_token_id=0, **options)[0, len(prompt) :]
    answer = made.tolist()
    return answer[: answer.index(0) + 1] if 0 in answer else answer


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_greedy_and_beam_search_equal_transformers_generate(
    engine: Engine, model: Any, prompts: list[list[int]], answering_model: Path, beams: int
) -> None:
    samples = engine.decode(prompts, max_tokens=limits(prompts), beams=beams)
    expected = [generated(model, p, n, num_beams=beams) for p, n in zip(prompts, limits(prompts), strict=True)]
    assert [s.ids for s in samples] == expected
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    tokenizer = load_tokenizer(str(answering_model))
    for prompt, sample in zip(prompts, samples, strict=True):
        assert sample.finish_reason == ("stop" if sample.ids[-1] == 0 else "length")
        assert sample.text == tokenizer.decode(sample.ids, skip_special_tokens=True)
        assert sample.logp == pytest.approx(answer_logp(model, prompt, sample.ids), abs=1e-3)
        assert sample.seed is None


def test_beam_search_takes_more_prompts_than_run_at_a_time(engine: Engine, prompts: list[list[int]]) -> None:
    """vLLM runs 256 sequences at a time by default on a CPU, so 100 prompts of 4 beams have to wait for one another."""
    few = engine.decode(prompts[:2], max_tokens=[3, 4], beams=4)
    many = engine.decode(prompts[:2] * 50, max_tokens=[3, 4] * 50, beams=4)
    assert [s.ids for s in many] == [s.ids for s in few] * 50


def test_beam_search_beyond_the_engines_log_probabilities_is_refused(engine: Engine, prompts: list[list[int]]) -> None:
    with pytest.raises(UserError, match=r"width 20 needs 21 .* gives 20.*--engine.max_logprobs 21"):
        engine.decode(prompts, max_tokens=limits(prompts), beams=20)


def test_a_seed_decides_an_answer_whatever_the_other_prompts(engine: Engine, prompts: list[list[int]]) -> None:
    seeds = list(range(len(prompts)))
    samples = engine.decode(prompts, max_tokens=limits(prompts), seeds=seeds)
    assert [s.seed for s in samples] == seeds
    backwards = engine.decode(prompts[::-1], max_tokens=limits(prompts)[::-1], seeds=seeds[::-1])
    assert [s.ids for s in backwards[::-1]] == [s.ids for s in samples]
    others = engine.decode(prompts, max_tokens=limits(prompts), seeds=[seed + 100 for seed in seeds])
    assert [s.ids for s in others] != [s.ids for s in samples]


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (50, 0.5)])
def test_draws_stay_among_the_likeliest(
    engine: Engine, model: Any, prompts: list[list[int]], top_k: int, top_p: float
) -> None:
    many = prompts * 4
    samples = engine.decode(
        many, max_tokens=[LIMIT] * len(many), seeds=list(range(len(many))), top_k=top_k, top_p=top_p
    )
    ranks: set[int] = set()
    for prompt, sample in zip(many, samples, strict=True):
        logps = answer_logps(model, prompt, sample.ids)
        for token, row in zip(sample.ids, logps, strict=True):
            likelier = row[row > row[token] + 1e-4].sort(descending=True).values
            assert len(likelier) < top_k
            kept = row.topk(top_k).values.exp()
            assert likelier.exp().sum() / kept.sum() < top_p
            ranks.add(len(likelier))
        # Of the distribution that was cut, not of the full one.
        expected = drawn_logp(model, prompt, sample.ids, top_k=top_k, top_p=top_p)
        assert sample.logp == pytest.approx(expected, abs=1e-3)
    assert len(ranks) > 1


def test_one_likeliest_token_to_draw_from_is_greedy(engine: Engine, prompts: list[list[int]]) -> None:
    greedy = engine.decode(prompts, max_tokens=limits(prompts))
    drawn = engine.decode(prompts, max_tokens=limits(prompts), seeds=[7] * len(prompts), top_k=1)
    assert [s.ids for s in drawn] == [s.ids for s in greedy]


def test_plain_draws_follow_the_models_distribution(engine: Engine, model: Any, prompts: list[list[int]]) -> None:
    """The mean of log Q over draws from Q is minus the entropy."""
    n, prompt = 1000, prompts[0]
    samples = engine.decode([prompt] * n, max_tokens=[1] * n, seeds=list(range(n)))
    logps = answer_logps(model, prompt, [0])[0].double()
    entropy = -(logps.exp() * logps).sum()
    deviation = (logps.exp() * (logps + entropy) ** 2).sum().sqrt().item()
    mean = sum(s.logp for s in samples) / n
    assert mean == pytest.approx(-entropy.item(), abs=4 * deviation / n**0.5)


def test_the_engines_log_probabilities_are_the_scorers(
    engine: Engine, groups: list[Group], prompts: list[list[int]], answering_model: Path
) -> None:
    samples = engine.decode(prompts, max_tokens=limits(prompts), seeds=list(range(len(prompts))))
    scores = Scorer.load(str(answering_model)).score(
        [Continuations(p, [s.ids]) for p, s in zip(prompts, samples, strict=True)]
    )
    assert [s.logp for s in samples] == pytest.approx([score[0] for score in scores], abs=1e-3)


def test_beam_search_weighs_what_has_ended_per_token() -> None:
    """By hand, with EOS 0: ending at once has -1.0 per token; going on, [1, 0] has (-0.6 - 1.2) / 2 = -0.9."""
    search = BeamSearch(beams=2, limit=3, ends={0})
    search.step([{1: -0.6, 0: -1.0, 2: -5.0}])
    assert [beam.ids for beam in search.ended] == [[0]]
    assert [beam.ids for beam in search.live] == [[1], [2]]
    search.step([{0: -1.2, 3: -1.5, 2: -6.0}, {0: -0.1, 3: -9.0, 1: -9.5}])
    assert [(beam.ids, beam.score) for beam in search.ended] == [([1, 0], pytest.approx(-0.9)), ([0], -1.0)]
    # [1, 3] has -1.05 per token, no better than the worst that ended: transformers gives up here, and so does this.
    assert search.live == []


def test_beam_search_ends_at_its_limit_and_at_any_end_token() -> None:
    search = BeamSearch(beams=2, limit=2, ends={0, 9})
    search.step([{9: -0.5, 1: -1.0, 2: -2.0, 0: -3.0}])
    assert [beam.ids for beam in search.ended] == [[9]]
    search.step([{5: -0.1, 6: -3.0, 0: -4.0, 9: -5.0}, {5: -0.1, 6: -3.0, 0: -4.0, 9: -5.0}])
    assert search.live == []
    assert [beam.ids for beam in search.ended] == [[9], [1, 5]]  # -0.5 and -0.55 per token
