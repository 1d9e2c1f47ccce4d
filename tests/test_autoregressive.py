"""AN's rules on what a sampler returns. The sampler here is a scripted stub: it injects repeats and empties."""

from collections.abc import Sequence
from typing import Any

from data.schema import Group
from negatives_gen.autoregressive import MAX_ROUNDS, AutoregressiveSettings, add_autoregressive
from negatives_gen.engine import Sample

SETTINGS = AutoregressiveSettings(count=3, top_k=50, temperature=1.0, max_new_tokens=20)


class ScriptedSamplerStub:
    """Returns scripted texts, one list per prompt and round, and keeps what it was asked."""

    def __init__(self, *rounds: list[list[str]]):
        self.rounds = list(rounds)
        self.requests: list[dict[str, Any]] = []

    def sample(self, prompts: Sequence[Sequence[int]], **request: Any) -> list[list[Sample]]:
        self.requests.append({"prompts": [list(p) for p in prompts], **request})
        texts = self.rounds[min(len(self.requests), len(self.rounds)) - 1]
        return [[Sample([len(t), 0], t, "stop", -float(len(t)), 7) for t in row] for row in texts]


def group(name: str, response: str = " truth", prompt_ids: tuple[int, ...] = (1, 2)) -> Group:
    return Group(name, f"prompt {name}", response, list(prompt_ids), [5, 0])


def texts(kept: list[Group]) -> list[list[str]]:
    return [[c.text for c in g.negatives] for g in kept]


def test_repeats_empties_and_the_ground_truth_are_replaced_by_fresh_draws() -> None:
    sampler = ScriptedSamplerStub(
        [[" truth ", "  ", " a"], [" a", " b", " c"]],
        [[" a", " b", " truth"]],
        [[" c", " d", " e"]],
    )
    kept, rejects = add_autoregressive([group("x"), group("y")], sampler, SETTINGS, context=64, seed=0)
    assert not rejects
    assert texts(kept) == [[" a", " b", " c"], [" a", " b", " c"]]
    # Only the group that still lacks candidates draws again.
    assert [len(r["prompts"]) for r in sampler.requests] == [2, 1, 1]


def test_a_group_without_enough_distinct_samples_is_rejected_with_the_count() -> None:
    sampler = ScriptedSamplerStub([[" a", " a", " a"], [" a", " b", " c"]], [[" a", " truth", ""]])
    kept, rejects = add_autoregressive([group("x"), group("y")], sampler, SETTINGS, context=64, seed=0)
    assert [g.id for g in kept] == ["y"]
    assert [(r.id, r.reason, r.detail) for r in rejects] == [
        ("x", "too few distinct samples", f"1 of 3 after {MAX_ROUNDS} draws")
    ]
    assert len(sampler.requests) == MAX_ROUNDS


def test_a_candidate_keeps_what_the_sampler_said() -> None:
    sampler = ScriptedSamplerStub([[" a", " bb", " ccc"]])
    kept, _ = add_autoregressive([group("x")], sampler, SETTINGS, context=64, seed=0)
    candidate = kept[0].negatives[1]
    assert (candidate.strategy, candidate.ids, candidate.finish_reason) == ("an", [3, 0], "stop")
    assert (candidate.sampler_logp, candidate.seed, candidate.source_id) == (-3.0, 7, None)


def test_length_is_limited_by_the_setting_and_by_the_room_in_the_context() -> None:
    sampler = ScriptedSamplerStub([[" a", " b", " c"]] * 2)
    groups = [group("x"), group("y", prompt_ids=tuple(range(50)))]
    add_autoregressive(groups, sampler, SETTINGS, context=64, seed=0)
    assert sampler.requests[0]["max_tokens"] == [20, 14]
    assert (sampler.requests[0]["n"], sampler.requests[0]["top_k"]) == (3, 50)


def test_seeds_depend_on_job_group_and_round_alone() -> None:
    def seeds(job_seed: int, groups: list[Group]) -> list[list[int]]:
        sampler = ScriptedSamplerStub([[" a", " a", " a"]] * len(groups))
        add_autoregressive(groups, sampler, SETTINGS, context=64, seed=job_seed)
        return [request["seeds"] for request in sampler.requests[:2]]

    both = seeds(0, [group("x"), group("y")])
    assert seeds(0, [group("y")]) == [[row[1]] for row in both]
    assert both[0] != both[1]
    assert seeds(1, [group("y")]) != [[row[1]] for row in both]
