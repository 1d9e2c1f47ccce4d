"""What the sampler could have said: AN's rule, several strategies, and the column of a set that was really scored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.command.options import make_config
from data.schema import Group
from data.shards import NegativeSet
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.job.reachable import in_support
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools
from negatives_gen.verbs.extend import ExtendConfig, extend
from tests.support.older_schemas import write_as_schema
from tests.support.stubs import EngineStub
from tests.support.without_ray import without_ray

TOOLS = Tools(seed=0, context=10, tokenizer=None)
FIVE = Group("g", "p", "r", [1, 2, 3], [5, 6, 7, 8, 0])  # five tokens, the end among them


def settings(top_k: int = 50, max_new_tokens: int = 256) -> dict[str, Any]:
    return {"count": 1, "top_k": top_k, "temperature": 1.0, "max_new_tokens": max_new_tokens}


@pytest.mark.parametrize(
    ("top_k", "max_new_tokens", "context", "rank", "expected"),
    [
        (50, 256, 10, 49, True),  # 49 tokens are likelier: it is the 50th
        (50, 256, 10, 50, False),
        (50, 256, 10, None, None),
        (1, 256, 10, 0, True),
        (0, 256, 10, 30_000, True),
        (0, 256, 10, None, True),  # no rank matters
        (50, 5, 10, 0, True),  # as long as the cap, and the end is its last token
        (50, 4, 10, 0, False),
        (0, 4, 10, None, False),
        (50, 4, 10, None, False),  # too long, whatever the ranks
        (50, 256, 8, 0, True),  # 3 of the prompt and 5
        (50, 256, 7, 0, False),
    ],
)
def test_an_reaches_what_is_among_its_k_tokens_and_within_its_length(
    top_k: int, max_new_tokens: int, context: int, rank: int | None, expected: bool | None
) -> None:
    tools = Tools(seed=0, context=context, tokenizer=None)
    assert STRATEGIES.load("an").supports(FIVE, rank, settings(top_k, max_new_tokens), tools) is expected
    assert in_support(FIVE, rank, {"an": settings(top_k, max_new_tokens)}, tools) is expected


def test_rn_reaches_what_an_does_or_a_set_with_both_would_not_know_it() -> None:
    both = {"an": settings(), "rn": {**settings(), "rn_share": "0.1-0.9"}}
    assert in_support(FIVE, 49, both, TOOLS) is True
    assert in_support(FIVE, 50, both, TOOLS) is False


@pytest.mark.parametrize(
    ("said", "expected"),
    [([], None), ([False, True], True), ([None, True], True), ([False, None], None), ([False, False], False)],
)
def test_of_several_strategies_one_that_reaches_it_is_enough(
    said: list[bool | None], expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {f"s{number}": answer for number, answer in enumerate(said)}

    class StrategyStub:
        def __init__(self, name: str):
            self.name = name

        def supports(self, *_: Any) -> bool | None:
            return answers[self.name]

    monkeypatch.setattr(STRATEGIES, "load", StrategyStub)
    assert in_support(FIVE, 3, {name: {} for name in answers}, TOOLS) is expected


def test_strategies_that_sample_nothing_do_not_say() -> None:
    said = [STRATEGIES.load(name).supports(FIVE, 0, {}, TOOLS) for name in ("bn", "mn", "tn", "un")]
    assert said == [None] * 4


def made(reference: Path, out: Path, strategies: str, **options: Any) -> Path:
    config = make_config(
        GenerateConfig, model=str(reference), out=str(out), dataset="facts", limit=16, strategies=strategies,
        groups_per_shard=8, embedder="reference", **options,
    )  # fmt: skip
    with without_ray():
        generate(config, Components(engine=EngineStub))
    return out


def support_of(path: Path) -> list[bool | None]:
    return [group.in_support for group in NegativeSet(str(path)).groups()]


@pytest.fixture(scope="module")
def ranks(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """The largest rank of each ground truth's tokens, by the model's own forward."""
    from transformers import AutoModelForCausalLM

    path = made(reference, tmp_path_factory.mktemp("ranks") / "set", "tn=1")
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    found = []
    for group in NegativeSet(str(path)).groups():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*group.prompt_ids, *group.response_ids]])).logits[0]
        logits, ids = logits[len(group.prompt_ids) - 1 : -1], torch.tensor(group.response_ids)
        found.append(int((logits > logits.gather(-1, ids[:, None])).sum(-1).max()))
    return found


@pytest.mark.seconds
def test_a_set_says_which_truths_its_sampler_could_have_said_however_it_was_made(
    reference: Path, ranks: list[int], tmp_path: Path
) -> None:
    k = sorted(ranks)[len(ranks) // 2] + 1
    expected = [rank < k for rank in ranks]
    assert 0 < sum(expected) < len(ranks)
    whole = made(reference, tmp_path / "whole", "an=1,tn=1", top_k=k)
    assert support_of(whole) == expected
    # Nothing samples; then something does; then an older set, of which it is not known, gets a signal only.
    plain = made(reference, tmp_path / "plain", "tn=1")
    assert support_of(plain) == [None] * len(ranks)
    for source, name, options in (
        (plain, "sampled", {"strategies": "an=1", "top_k": k}),
        (whole, "older", {"signals": "rouge"}),
    ):
        before = [group.reference_logp for group in NegativeSet(str(source)).groups()]
        if name == "older":
            write_as_schema(3, source)
        with without_ray():
            config = make_config(ExtendConfig, out=str(tmp_path / name), **options)
            extend(str(source), config, Components(engine=EngineStub))
        assert support_of(tmp_path / name) == expected
        assert [group.reference_logp for group in NegativeSet(str(tmp_path / name)).groups()] == before
