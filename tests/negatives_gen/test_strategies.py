"""What each strategy makes: BN, MN, TN and RN of really tokenised rows."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.command.errors import UserError
from data.command.options import make_config
from data.schema import Candidate, Group
from data.sources.prepare import prepare_groups
from data.tokens import marks_of, never_drawn
from negatives_gen.config import GenerateConfig
from negatives_gen.models.engine import Sample
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import MAX_ROUNDS, Tools
from tests.support.read_examples import load_examples
from trainer.scoring.scorer import Scorer

# --- BN, MN, TN ---


@pytest.fixture(scope="module")
def scorer(reference: Path) -> Scorer:
    return Scorer.load(str(reference))


@pytest.fixture
def pool(tokenizer: Any) -> list[Group]:
    """150 questions of the embedded world in the order of their ids, without negatives."""
    prepared = prepare_groups(
        load_examples("facts", "prompt-completion", "train", 150), "prompt-completion", tokenizer, 64
    )
    return sorted(prepared.groups, key=lambda g: g.id)


@pytest.fixture
def tools(tokenizer: Any, scorer: Scorer) -> Tools:
    return Tools(seed=0, context=64, tokenizer=tokenizer, predictor=scorer)


def fresh(groups: Sequence[Group]) -> list[Group]:
    return [dataclasses.replace(g, negatives=[]) for g in groups]


def made(name: str, pool: Sequence[Group], tools: Tools, **settings: Any) -> dict[str, list[Candidate]]:
    groups = fresh(pool)
    assert STRATEGIES.load(name).add(groups, groups, settings, tools) == {}
    return {g.id: g.negatives for g in groups}


def test_every_module_is_a_strategy_that_says_what_decides_it() -> None:
    config = make_config(GenerateConfig, model="m", dataset="facts", out="o", strategies="bn=3,tn=2,mn=5,an=1")
    assert {"an", "bn", "mn", "tn"} <= set(STRATEGIES.names())
    assert config.strategy_settings() == {
        "an": {"count": 1, "top_k": 50, "temperature": 1.0, "max_new_tokens": 256},
        "bn": {"count": 3, "bn_batch_size": 64, "within": "half"},
        "mn": {"count": 5, "mn_share": 0.15},
        "tn": {"count": 2},
    }


def test_tn_is_a_strict_prefix_of_the_ground_truth_with_eos_and_no_two_are_the_same(
    pool: list[Group], tools: Tools
) -> None:
    cuts = Counter()
    for group_id, negatives in made("tn", pool, tools, count=3).items():
        truth = next(g for g in pool if g.id == group_id).response_ids
        lengths = [len(c.ids) - 1 for c in negatives]
        assert len(set(lengths)) == 3
        for candidate, length in zip(negatives, lengths, strict=True):
            assert 1 <= length < len(truth) - 1
            assert candidate.ids == [*truth[:length], truth[-1]]
            assert candidate.text == tools.tokenizer.decode(truth[:length])
        cuts.update(lengths)
    # Uniform over 1 .. length - 1: each cut is taken about equally often.
    shortest = min(len(g.response_ids) - 2 for g in pool)
    counts = [cuts[length] for length in range(1, shortest + 1)]
    assert min(counts) > 0.5 * np.mean(counts)
    assert max(counts) < 1.5 * np.mean(counts)


def test_tn_gives_up_a_response_with_too_few_cuts(tools: Tools) -> None:
    short = Group("x", "prompt x", "a b", [1], [5, 0])
    assert STRATEGIES.load("tn").add([short], [short], {"count": 1}, tools) == {
        "x": "0 of 1: the response has no other cut with a new text"
    }


def test_bn_borrows_ids_from_other_rows_of_its_batch_alone(pool: list[Group], tools: Tools) -> None:
    negatives = made("bn", pool, tools, count=4, bn_batch_size=16)
    by_id = {g.id: g for g in pool}
    neighbours: dict[str, set[str]] = {g.id: {g.id} for g in pool}
    for group_id, candidates in negatives.items():
        assert len({c.text for c in candidates}) == 4
        for candidate in candidates:
            source = by_id[str(candidate.source_id)]
            assert candidate.source_id != group_id
            assert (candidate.ids, candidate.text) == (source.response_ids, source.response)
            assert candidate.text != by_id[group_id].response
            joined = neighbours[group_id] | neighbours[source.id]
            for member in joined:
                neighbours[member] = joined
    # The connected rows are the batches: 150 rows in ten batches of 15, the fewest that hold at most 16.
    batches = {frozenset(joined) for joined in neighbours.values()}
    assert sorted(len(batch) for batch in batches) == [15] * 10


def test_bn_borrows_within_a_half_so_that_no_held_out_text_is_a_negative_in_training(
    pool: list[Group], tools: Tools
) -> None:
    rows = [dataclasses.replace(group, split="test" if i % 3 == 0 else "train") for i, group in enumerate(pool)]
    split_of = {group.id: group.split for group in rows}
    for group_id, candidates in made("bn", rows, tools, count=6, bn_batch_size=16, within="half").items():
        assert {split_of[str(candidate.source_id)] for candidate in candidates} == {split_of[group_id]}
    few = [*rows[1:3], dataclasses.replace(rows[0], split="test")]
    assert STRATEGIES.load("bn").add(few, few, {"count": 1, "bn_batch_size": 64, "within": "half"}, tools) == {
        few[2].id: "0 of 1: its batch has 0 other rows"
    }


def test_bn_depends_on_the_pool_and_not_on_which_groups_are_left(pool: list[Group], tools: Tools) -> None:
    every = made("bn", pool, tools, count=3, bn_batch_size=32)
    rows = fresh(pool)
    half = rows[::2]
    assert STRATEGIES.load("bn").add(half, rows, {"count": 3, "bn_batch_size": 32}, tools) == {}
    assert {g.id: g.negatives for g in half} == {g.id: every[g.id] for g in half}
    assert made("bn", pool, dataclasses.replace(tools, seed=1), count=3, bn_batch_size=32) != every


def test_bn_passes_over_what_does_not_fit_and_what_repeats(tools: Tools) -> None:
    rows = [
        Group("a", "p", " one", [1] * 60, [5, 0]),
        Group("b", "p", " one ", [1], [6, 0]),
        Group("c", "p", " two", [1], [7, 0]),
        Group("d", "p", " two", [1], [8, 0]),
        Group("e", "p", " long", [1], [9] * 9 + [0]),
    ]
    short = STRATEGIES.load("bn").add(rows, rows, {"count": 2, "bn_batch_size": 64}, tools)
    assert short == {"a": "1 of 2: its batch has 4 other rows"}
    assert {c.text.strip() for c in rows[1].negatives} == {"two", "long"}


def test_mn_redraws_a_share_of_the_positions_and_never_the_eos(pool: list[Group], tools: Tools) -> None:
    truths = {g.id: g.response_ids for g in pool}
    changed = []
    for group_id, candidates in made("mn", pool, tools, count=5, mn_share=0.15).items():
        truth = truths[group_id]
        assert len({tuple(c.ids) for c in candidates}) == 5
        for candidate in candidates:
            assert len(candidate.ids) == len(truth)
            assert candidate.ids[-1] == truth[-1]
            differing = sum(a != b for a, b in zip(candidate.ids, truth, strict=True))
            assert 1 <= differing <= max(1, round(0.15 * (len(truth) - 1)))
            assert not set(candidate.ids[:-1]) & set(tools.tokenizer.all_special_ids)
            assert candidate.text == tools.tokenizer.decode(candidate.ids, skip_special_tokens=True)
            changed += [i for i, (a, b) in enumerate(zip(candidate.ids, truth, strict=True)) if a != b]
    assert len(set(changed)) >= 8  # positions are chosen all over the response


def test_mn_is_the_same_whatever_the_count_and_however_many_groups_want_it(pool: list[Group], tools: Tools) -> None:
    five = made("mn", pool, tools, count=5, mn_share=0.15)
    two = made("mn", pool, tools, count=2, mn_share=0.15)
    assert {k: v[:2] for k, v in five.items()} == two
    rows = fresh(pool)
    for row in rows[::3]:
        row.negatives = list(two[row.id])
    STRATEGIES.load("mn").add(rows[::3], rows, {"count": 5, "mn_share": 0.15}, tools)
    assert {g.id: g.negatives for g in rows[::3]} == {g.id: five[g.id] for g in rows[::3]}


SECOND = {"mn_share": 0.5, "mn_rounds": 2}


def counting(scorer: Scorer) -> tuple[Any, list[int]]:
    """A predictor, and how many continuations each of its passes had."""
    passes: list[int] = []

    class CountingStub:
        def draw(self, groups: Sequence[Any], uniforms: Any, **options: Any) -> Any:
            passes.append(sum(len(g.continuations) for g in groups))
            return scorer.draw(groups, uniforms, **options)

    return CountingStub(), passes


def test_further_rounds_draw_one_position_after_another_in_the_end(pool: list[Group], tools: Tools) -> None:
    """All positions chosen, in as many rounds: what sampling token by token with the same uniforms gives."""
    rows = pool[:5]
    longest = max(len(g.response_ids) for g in rows)
    rounds = [made("mn", rows, tools, count=3, mn_share=1.0, mn_rounds=n) for n in (1, 2, 3, longest, longest + 5)]
    never = never_drawn(tools.tokenizer, marks_of(tools.tokenizer))
    scorer: Any = tools.predictor
    for group in rows:
        uniforms = STRATEGIES.load("mn")._uniforms(group, tools.seed)  # type: ignore[attr-defined]  # of this strategy
        expected = list[list[int]]()
        for number in range(3):
            ids: list[int] = []
            for t in range(len(group.response_ids) - 1):
                with torch.no_grad():
                    logits = scorer.model(input_ids=torch.tensor([[*group.prompt_ids, *ids]])).logits[0, -1].double()
                logits[never] = -torch.inf
                ids.append(int((logits.softmax(-1).cumsum(-1) > uniforms[t, number]).nonzero()[0, 0]))
            expected.append([*ids, group.response_ids[-1]])
        found = [[c.ids for c in by_group[group.id]] for by_group in rounds]
        assert found[-1] == found[-2] == expected  # nothing changes any more
        for after, candidates in zip((1, 2, 3), found[:3], strict=True):
            assert [ids[:after] for ids in candidates] == [ids[:after] for ids in expected]
    assert rounds[0] != rounds[1] != rounds[2]


def test_a_further_round_changes_chosen_positions_alone_and_never_the_end(pool: list[Group], tools: Tools) -> None:
    truths = {g.id: g.response_ids for g in pool}
    special = set(tools.tokenizer.all_special_ids)
    for group_id, candidates in made("mn", pool, tools, count=4, **SECOND).items():
        truth = truths[group_id]
        for candidate in candidates:
            differing = sum(a != b for a, b in zip(candidate.ids, truth, strict=True))
            assert 1 <= differing <= max(1, round(0.5 * (len(truth) - 1)))
            assert candidate.ids[-1] == truth[-1]
            assert not set(candidate.ids[:-1]) & special


def test_further_rounds_are_the_same_whatever_the_count_and_however_many_groups_want_it(
    pool: list[Group], tools: Tools
) -> None:
    rows = fresh(pool[:40])
    nine, two = (made("mn", rows, tools, count=count, **SECOND) for count in (9, 2))
    assert {k: v[:2] for k, v in nine.items()} == two
    for row in rows[::3]:
        row.negatives = list(two[row.id])
    assert STRATEGIES.load("mn").add(rows[::3], rows, {"count": 9, **SECOND}, tools) == {}
    assert {g.id: g.negatives for g in rows[::3]} == {g.id: nine[g.id] for g in rows[::3]}


def test_a_further_round_passes_over_no_more_than_is_wanted_and_still_changes(
    pool: list[Group], scorer: Scorer, tools: Tools
) -> None:
    rows = pool[:10]
    predictor, passes = counting(scorer)
    tools = dataclasses.replace(tools, predictor=predictor)
    made("mn", rows, tools, count=1, mn_share=0.15, mn_rounds=1)
    assert passes == [10]
    passes.clear()
    made("mn", rows, tools, count=1, mn_share=0.001, mn_rounds=9)  # one position each: nothing lies behind it
    assert passes == [10]
    passes.clear()
    made("mn", rows, tools, count=1, **SECOND)
    assert passes[0] == 10
    assert len(passes) <= 1 + 10 + 2  # one each, and some more where a candidate is not new
    assert all(1 <= continuations <= 4 for continuations in passes[1:])


def test_mn_says_after_each_pass_how_many_groups_are_done(pool: list[Group], scorer: Scorer, tools: Tools) -> None:
    told: list[tuple[int, int, str]] = []
    rows = pool[:12]
    tools = dataclasses.replace(tools, tell=lambda done, of, part="": told.append((done, of, part)))
    expected = made("mn", rows, tools, count=2, mn_share=0.15)
    assert told == [(12, 12, "")]  # one pass
    told.clear()
    tools = dataclasses.replace(tools, predictor=dataclasses.replace(scorer, row_tokens=1))
    assert made("mn", rows, tools, count=2, mn_share=0.15) == expected
    assert told == [(number, 12, "") for number in range(1, 13)]
    told.clear()
    made("mn", rows, tools, count=2, **SECOND)
    first = [(number, 12, "first round") for number in range(1, 13)]
    assert told == first + [(number, 12, "further rounds") for number in range(1, 13)]


def test_one_round_is_what_sets_without_the_option_have() -> None:
    mn = STRATEGIES.load("mn")
    assert mn.settings(mn.Options()) == {"mn_share": 0.15}
    assert mn.settings(mn.Options(mn_rounds=2)) == {"mn_share": 0.15, "mn_rounds": 2}
    with pytest.raises(UserError, match="--mn_rounds must be at least 1, got 0"):
        mn.settings(mn.Options(mn_rounds=0))


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_scorer_draws_for_each_continuation_of_a_prefix_what_it_draws_for_it_alone(
    reference: Path, pool: list[Group], layout: str
) -> None:
    from trainer.scoring.continuations import Continuations

    scorer = Scorer.load(str(reference))
    scorer.prepared = dataclasses.replace(scorer.prepared, layout=layout)
    prefix, others = pool[0].prompt_ids, [g.response_ids[:-1] for g in pool[:3]]
    uniforms = [np.random.default_rng(0).random((len(ids), 5)) for ids in others]
    (together,) = scorer.draw([Continuations(prefix, others)], [np.concatenate(uniforms)])
    alone = [scorer.draw([Continuations(prefix, [ids])], [u])[0] for ids, u in zip(others, uniforms, strict=True)]
    assert together.tolist() == np.concatenate(alone).tolist()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_scorer_draws_from_the_teacher_forced_distribution(reference: Path, pool: list[Group], layout: str) -> None:
    """Uniforms on a fine grid give each token as often as the model, given the original history, finds it likely."""
    from trainer.scoring.continuations import Continuations

    scorer = Scorer.load(str(reference))
    scorer.prepared = dataclasses.replace(scorer.prepared, layout=layout)
    groups = [Continuations(g.prompt_ids, [g.response_ids[:-1]]) for g in pool[:7]]
    grid = (np.arange(4000) + 0.5) / 4000
    drawn = scorer.draw(groups, [np.tile(grid, (len(g.continuations[0]), 1)) for g in groups], never=[0])
    for asked, tokens in zip(groups, drawn, strict=True):
        ids = torch.tensor([[*asked.prefix, *asked.continuations[0]]])
        with torch.no_grad():
            logits = scorer.model(input_ids=ids).logits[0, len(asked.prefix) - 1 : -1]
        logits[:, 0] = -torch.inf
        expected = logits.softmax(-1).numpy()
        for position in range(len(tokens)):
            share = np.bincount(tokens[position], minlength=expected.shape[1]) / 4000
            assert share == pytest.approx(expected[position], abs=2 / 4000)


@pytest.mark.seconds
def test_a_seed_changes_every_strategy(pool: list[Group], tools: Tools) -> None:
    for name, settings in (("tn", {}), ("mn", {"mn_share": 0.3}), ("bn", {"bn_batch_size": 64})):
        one = made(name, pool, tools, count=2, **settings)
        assert made(name, pool, tools, count=2, **settings) == one
        assert made(name, pool, dataclasses.replace(tools, seed=1), count=2, **settings) != one


# --- RN ---


class TailSamplerStub:
    """Goes on with one word, another one each time, and the end; keeps what it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.words = sorted(i for t, i in tokenizer.get_vocab().items() if t.isalpha())
        self.requests: list[tuple[list[int], dict[str, Any]]] = []
        self.drawn = 0

    async def sample(self, prompt: Sequence[int], **request: Any) -> list[Sample]:
        self.requests.append((list(prompt), request))
        samples = []
        for _ in range(request["n"]):
            self.drawn += 1
            samples.append(Sample([self.words[self.drawn % len(self.words)], 0], "", "stop", -float(self.drawn), None))
        return samples


RN = {"count": 4, "top_k": 50, "temperature": 1.0, "max_new_tokens": 64, "rn_share": "0.2-0.8"}


def resumed(pool: Sequence[Group], tools: Tools, **settings: Any) -> tuple[list[Group], TailSamplerStub]:
    groups, sampler = fresh(pool), TailSamplerStub(tools.tokenizer)
    lent = dataclasses.replace(tools, sampler=sampler)
    assert STRATEGIES.load("rn").add(groups, groups, {**RN, **settings}, lent) == {}
    return groups, sampler


def test_rn_goes_on_from_a_share_of_the_ground_truth(pool: list[Group], tools: Tools) -> None:
    groups, sampler = resumed(pool, tools)
    tails = {tuple(prompt): request for prompt, request in sampler.requests}
    shares = list[float]()
    for group in groups:
        tokens = group.response_ids[:-1]
        for candidate in group.negatives:
            *kept, own, end = candidate.ids
            assert kept == tokens[: len(kept)]
            assert candidate.sampler_logp is not None  # of the tail alone
            assert (own, end) == (sampler.words[int(-candidate.sampler_logp) % len(sampler.words)], 0)
            assert tails[(*group.prompt_ids, *kept)]["max_tokens"] == min(64, 64 - len(group.prompt_ids)) - len(kept)
            assert round(0.2 * len(tokens)) <= len(kept) <= min(round(0.8 * len(tokens)), len(tokens) - 1)
            shares.append(len(kept) / len(tokens))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.std(shares) > 0.1


def test_rn_asks_for_each_draw_by_itself_with_a_seed_of_its_own(pool: list[Group], tools: Tools) -> None:
    groups, sampler = resumed(pool[:20], tools, rn_share="0.5")
    assert {request["n"] for _, request in sampler.requests} == {1}
    assert len({request["seed"] for _, request in sampler.requests}) == len(sampler.requests)
    prompts = [prompt for prompt, _ in sampler.requests]
    for group in groups:
        tokens = len(group.response_ids) - 1
        kept = group.response_ids[: min(round(0.5 * tokens), tokens - 1)]
        assert prompts.count([*group.prompt_ids, *kept]) >= 4


def test_rn_depends_on_seed_and_group_and_on_what_a_group_has(pool: list[Group], tools: Tools) -> None:
    def asked(groups: Sequence[Group], seed: int = 0) -> dict[str, list[tuple[int, int]]]:
        sampler = TailSamplerStub(tools.tokenizer)
        lent = dataclasses.replace(tools, seed=seed, sampler=sampler)
        found = {}
        for group in groups:
            sampler.requests = []
            STRATEGIES.load("rn").add([group], [group], RN, lent)
            found[group.id] = [(len(prompt), request["seed"]) for prompt, request in sampler.requests]
        return found

    few = pool[:8]
    assert asked(fresh(few)) == {**asked(fresh(few[::-1]))}
    assert asked(fresh(few)) != asked(fresh(few), seed=1)
    having = fresh(few)
    for group in having:
        group.negatives = [Candidate("rn", [7, 0], " something")]
    assert asked(having).items().isdisjoint(asked(fresh(few)).items())


def test_rn_draws_for_a_set_that_is_extended_what_it_has_not_drawn_in_any_round(
    pool: list[Group], tools: Tools
) -> None:
    class RepeatingSamplerStub(TailSamplerStub):
        """All that it says is what it said before."""

        async def sample(self, prompt: Sequence[int], **request: Any) -> list[Sample]:
            self.drawn = 0
            return await super().sample(prompt, **{**request, "n": 1}) * request["n"]

    def seeds(group: Group, count: int) -> list[int]:
        sampler = RepeatingSamplerStub(tools.tokenizer)
        lent, settings = dataclasses.replace(tools, sampler=sampler), {**RN, "rn_share": "0.5", "count": count}
        assert STRATEGIES.load("rn").add([group], [group], settings, lent)  # it is given up
        return [request["seed"] for _, request in sampler.requests]

    (group,) = fresh(pool[:1])
    first = seeds(group, 2)
    group.negatives.append(Candidate("rn", [7, 0], " something"))  # what another draw of the first job gave it
    then = seeds(group, 3)
    assert len({*first, *then}) == len(first) + len(then) >= 2 * MAX_ROUNDS


def test_rn_keeps_no_end_and_leaves_room_for_a_token(tools: Tools) -> None:
    short = Group("x", "p", " a", [1, 2, 3], [9, 0])
    _, sampler = resumed([short], tools, rn_share="0.9")
    assert sampler.requests[0][0] == [1, 2, 3]  # one token before the end: it is sampled
    long = Group("y", "p", " b", [1], [*range(20, 40), 0])
    _, sampler = resumed([long], tools, rn_share="0.9", max_new_tokens=5)
    assert (len(sampler.requests[0][0]), sampler.requests[0][1]["max_tokens"]) == (1 + 4, 1)  # of the five that fit


def test_a_plan_counts_as_given_what_rn_keeps_of_the_truth_and_the_cap(pool: list[Group], tools: Tools) -> None:
    truth = Group("x", "p", "r", [1], [*range(20, 40), 0])  # 20 tokens before its end; a context of 64

    def given(group: Group, **settings: Any) -> float:
        return STRATEGIES.load("rn").given_tokens(group, {**RN, **settings}, tools)

    assert given(truth, rn_share="0.2-0.4") == pytest.approx(0.3 * 20)
    assert given(truth, rn_share="0.2-0.4", max_new_tokens=5) == pytest.approx(0.3 * 5)
    assert given(truth, rn_share="0.9", max_new_tokens=5) == 4  # one at least is sampled
    assert given(dataclasses.replace(truth, prompt_ids=[1] * 54)) == pytest.approx(0.5 * 10)  # the context's room
    assert given(dataclasses.replace(truth, response_ids=[9, 0])) == 0
    assert STRATEGIES.load("an").given_tokens(truth, RN, tools) == 0
    groups, _ = resumed(pool, tools)
    kept = sum(len(candidate.ids) - 2 for group in groups for candidate in group.negatives)  # the stub's tails are two
    assert kept == pytest.approx(4 * sum(map(given, groups)), rel=0.05)


@pytest.mark.parametrize("share", ["0", "1", "0.8-0.2", "half", "0.2-", "-0.5", "0.1-1", "nan"])
def test_rn_refuses_a_share_that_is_none(share: str) -> None:
    config = make_config(GenerateConfig, model="m", dataset="facts", out="o", strategies="rn=1", rn_share=share)
    with pytest.raises(UserError, match=r"--rn_share must be a share between 0 and 1, or a range such as 0.2-0.8, got"):
        config.check()
