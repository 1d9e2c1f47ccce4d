"""What AN makes of a scripted sampler's answers, and when it asks again."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from data.schema import Candidate, Group
from negatives_gen.models.engine import Sample
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import MAX_ROUNDS, Tools

SETTINGS = {"count": 3, "top_k": 50, "temperature": 1.0, "max_new_tokens": 20}


class ScriptedSamplerStub:
    """Gives each group's scripted texts, one list per request and the last one ever after; keeps what it was asked."""

    def __init__(self, **scripts: list[list[str]]):
        self.scripts = scripts
        self.requests: dict[str, list[dict[str, Any]]] = {name: [] for name in scripts}

    async def sample(self, prompt: Sequence[int], **request: Any) -> list[Sample]:
        name = chr(prompt[0])
        self.requests[name].append(request)
        script = self.scripts[name]
        texts = script[min(len(self.requests[name]), len(script)) - 1]
        return [Sample([len(t), 0], t, "stop", -float(len(t)), 7) for t in texts]


def group(name: str, room: int = 62) -> Group:
    """A group whose prompt leaves so many tokens of a context of 64."""
    return Group(name, f"prompt {name}", " truth", [ord(name)] * (64 - room), [5, 0])


def sample(
    groups: list[Group], sampler: ScriptedSamplerStub, seed: int = 0, count: int = 3
) -> tuple[list[Group], dict[str, str]]:
    """AN's groups, without those that it gave up, and why it did."""
    settings = {**SETTINGS, "count": count}
    short = STRATEGIES.load("an").add(groups, groups, settings, Tools(seed, 64, None, sampler=sampler))
    return [g for g in groups if g.id not in short], short


def texts(kept: list[Group]) -> list[list[str]]:
    return [[c.text for c in g.negatives] for g in kept]


def test_repeats_empties_and_the_ground_truth_are_replaced_by_fresh_draws() -> None:
    sampler = ScriptedSamplerStub(
        x=[[" truth ", "  ", " a"], [" a", " b", " truth"], [" c", " d", " e"]], y=[[" a", " b", " c"]]
    )
    kept, rejects = sample([group("x"), group("y")], sampler)
    assert not rejects
    assert texts(kept) == [[" a", " b", " c"], [" a", " b", " c"]]
    # Only the group that still lacks candidates draws again.
    assert {name: len(requests) for name, requests in sampler.requests.items()} == {"x": 3, "y": 1}


def test_a_group_without_enough_distinct_samples_is_rejected_with_the_count() -> None:
    sampler = ScriptedSamplerStub(x=[[" a", " a", " a"], [" a", " truth", ""]], y=[[" a", " b", " c"]])
    kept, rejects = sample([group("x"), group("y")], sampler)
    assert [g.id for g in kept] == ["y"]
    assert rejects == {"x": f"1 of 3 distinct samples after {MAX_ROUNDS} draws"}
    assert len(sampler.requests["x"]) == MAX_ROUNDS


def test_a_group_does_not_wait_for_the_others_to_draw_again() -> None:
    """Each is asked for again as soon as its own samples are there: it joins the batch that is running."""
    order: list[str] = []

    class SlowSamplerStub(ScriptedSamplerStub):
        """The first request of y ends after the third of x."""

        done = asyncio.Event()

        async def sample(self, prompt: Sequence[int], **request: Any) -> list[Sample]:
            samples = await super().sample(prompt, **request)
            if chr(prompt[0]) == "y":
                await self.done.wait()
            order.append(chr(prompt[0]))
            if order == ["x"] * 3:
                self.done.set()
            return samples

    sampler = SlowSamplerStub(x=[[" a"] * 3, [" b"] * 3, [" c"] * 3], y=[[" a", " b", " c"]])
    kept, _ = sample([group("x"), group("y")], sampler)
    assert order == ["x", "x", "x", "y"]
    assert texts(kept) == [[" a", " b", " c"], [" a", " b", " c"]]


def test_what_goes_wrong_with_one_group_ends_the_shard_with_it() -> None:
    class FailingSamplerStub(ScriptedSamplerStub):
        async def sample(self, prompt: Sequence[int], **request: Any) -> list[Sample]:
            if chr(prompt[0]) == "x":
                raise RuntimeError("the engine has died")
            return await asyncio.get_running_loop().create_future()  # never

    with pytest.raises(RuntimeError, match="the engine has died"):
        sample([group("y"), group("x")], FailingSamplerStub(x=[], y=[]))


def test_a_candidate_keeps_what_the_sampler_said() -> None:
    kept, _ = sample([group("x")], ScriptedSamplerStub(x=[[" a", " bb", " ccc"]]))
    candidate = kept[0].negatives[1]
    assert (candidate.strategy, candidate.ids, candidate.finish_reason) == ("an", [3, 0], "stop")
    assert (candidate.sampler_logp, candidate.seed, candidate.source_id) == (-3.0, 7, None)


def test_length_is_limited_by_the_setting_and_by_the_room_in_the_context() -> None:
    sampler = ScriptedSamplerStub(x=[[" a", " b", " c"]], y=[[" a", " b", " c"]])
    sample([group("x"), group("y", room=14)], sampler)
    [x], [y] = sampler.requests.values()
    assert (x["max_tokens"], y["max_tokens"]) == (20, 14)
    assert (x["n"], x["top_k"], x["temperature"]) == (3, 50, 1.0)


def test_seeds_depend_on_job_group_and_round_alone() -> None:
    def seeds(job_seed: int, *names: str) -> dict[str, list[int]]:
        sampler = ScriptedSamplerStub(**{name: [[" a", " a", " a"]] for name in names})
        sample([group(name) for name in names], sampler, job_seed)
        return {name: [request["seed"] for request in requests[:2]] for name, requests in sampler.requests.items()}

    both = seeds(0, "x", "y")
    assert seeds(0, "y")["y"] == both["y"]
    assert all(0 <= seed < 2**32 for row in both.values() for seed in row)
    assert len({seed for row in [*both.values(), *seeds(1, "y").values()] for seed in row}) == 6


def test_samples_that_a_group_has_are_kept_and_only_what_it_lacks_is_drawn() -> None:
    first = group("x")
    first.negatives = [Candidate("an", [9, 0], " a"), Candidate("tn", [8, 0], " c")]
    sampler = ScriptedSamplerStub(x=[[" a", " b"], [" c", " d"]])
    kept, _ = sample([first], sampler)
    assert [(c.strategy, c.text) for c in kept[0].negatives] == [("an", " a"), ("tn", " c"), ("an", " b"), ("an", " c")]
    # One is lacking in the second round: 1 doubled.
    assert [request["n"] for request in sampler.requests["x"]] == [2, 2]
    fresh = ScriptedSamplerStub(x=[[" a", " b", " c"]])
    sample([group("x")], fresh)
    assert fresh.requests["x"][0]["seed"] != sampler.requests["x"][0]["seed"]


def test_a_set_that_is_extended_draws_in_no_round_what_was_drawn_for_it_before() -> None:
    """A seed that was drawn with gives texts that the group has, so that it might be given up for nothing."""
    first = group("x")
    sampler = ScriptedSamplerStub(x=[[" a", " a"], [" a", " a"], [" b"], [" a", " b", " c"], [" c"], [" d"]])
    sample([first], sampler, count=2)
    asked = len(sampler.requests["x"])
    kept, _ = sample([first], sampler, count=4)
    assert texts(kept) == [[" a", " b", " c", " d"]]
    seeds = [request["seed"] for request in sampler.requests["x"]]
    assert (asked, len(seeds)) == (3, 6)
    assert len(set(seeds)) == 6
