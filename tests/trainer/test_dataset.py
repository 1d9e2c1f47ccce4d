"""What the trainer takes of a set with several strategies and ranking signals."""

from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.ranks import UNRANKED
from data.schema import Candidate, Group
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.written import job_of, refusal
from trainer.groups.choice import Choice, short_names
from trainer.groups.dataset import Collator, ContrastiveGroups
from trainer.objectives import OBJECTIVES
from trainer.objectives.base import Objective


@pytest.fixture
def mixed(tmp_path: Path) -> NegativeSet:
    """One group: two AN, one BN, two TN; `rouge` orders them the other way round than `embedding`."""
    group = Group("g", "p", "r", [1], [9, 0], reference_logp=-1.0)
    for number, strategy in enumerate(("an", "an", "bn", "tn", "tn")):
        similarity: dict[str, float | None] = {"embedding": 0.9 - 0.1 * number, "rouge": 0.1 * number}
        group.negatives.append(
            Candidate(strategy, [10 + number, 0], f"t{number}", reference_logp=-2.0 - number, similarity=similarity)
        )
    writer = NegativeSetWriter(str(tmp_path), job_of(an=2, bn=1, tn=2), ["embedding", "rouge"])
    writer.begin()
    writer.write_shard(0, [group], [], seconds={}, layout="packed")
    writer.finish(1)
    return NegativeSet(str(tmp_path))


@pytest.mark.parametrize(
    ("use", "tokens"),
    [
        (None, [9, 10, 11, 12, 13, 14]),
        ("tn=1,an=1", [9, 13, 10]),
        ("bn=1,tn=2", [9, 12, 13, 14]),
    ],
)
def test_any_subset_is_taken_from_the_one_store(mixed: NegativeSet, use: str | None, tokens: list[int]) -> None:
    group = ContrastiveGroups.of([mixed], "train", use)[0]
    assert [c[0] for c in group.tokens.continuations] == tokens
    assert list(group.reference_logps) == [-1.0, *(8.0 - token for token in tokens[1:])]


def test_import_paths_become_the_names_of_the_set(tmp_path: Path) -> None:
    outside = {"origin": {"entry": "my.module:MINE", "source_sha256": "0"}}
    job = job_of(mine=1, an=1)
    job["strategies"]["mine"] |= outside
    job["signals"] = {"words": {"origin": {"entry": "my.words:WORDS", "source_sha256": "0"}}}
    group = Group("g", "p", "r", [1], [9, 0], reference_logp=-1.0)
    writer = NegativeSetWriter(str(tmp_path), job, ["words"])
    writer.begin()
    writer.write_shard(0, [group], [], seconds={}, layout="packed")
    writer.finish(1)
    sets = [NegativeSet(str(tmp_path))]
    assert short_names(sets, "my.module:MINE=2:random,an=1", "my.words:WORDS") == ("mine=2:random,an=1", "words")
    assert short_names(sets, "mine=2:random,an=1", "words") == ("mine=2:random,an=1", "words")
    assert short_names(sets, "your.module:YOURS=1", None) == ("your.module:YOURS=1", None)
    assert short_names(sets, None, "rouge") == (None, "rouge")


@pytest.mark.parametrize(
    ("rank_by", "ranks"),
    [(None, [0, 1, 2, 3, 4, 5]), ("embedding", [0, 1, 2, 3, 4, 5]), ("rouge", [0, 5, 4, 3, 2, 1])],
)
def test_the_ranking_signal_is_chosen_and_the_ground_truth_stays_first(
    mixed: NegativeSet, rank_by: str | None, ranks: list[int]
) -> None:
    dataset = ContrastiveGroups.of([mixed], "train", rank_by=rank_by)
    (batch,) = Collator("packed", 100, dataset.strategies)([dataset[0]])
    assert batch.strategy.tolist() == [[-1, 0, 0, 1, 2, 2]]
    assert batch.ranks.tolist() == [ranks]


def test_strategies_and_counts_that_the_set_lacks_are_refused(mixed: NegativeSet) -> None:
    with pytest.raises(UserError, match=r"asks for mn=1, but negative set .* holds an=2,bn=1,tn=2 per group"):
        ContrastiveGroups.of([mixed], "train", "mn=1")
    with pytest.raises(UserError, match=r"asks for 'reward', but negative set .* holds embedding, rouge"):
        ContrastiveGroups.of([mixed], "train", rank_by="reward")


@pytest.fixture
def scored(tmp_path: Path) -> NegativeSet:
    """One group: two GIVEN with scores, one BN without; `rouge` has values of all."""
    group = Group("g", "p", "r", [1], [9, 0], reference_logp=-1.0)
    for number, (strategy, score) in enumerate((("bn", None), ("given", 2.0), ("given", 4.0))):
        similarity: dict[str, float | None] = {"given": score, "rouge": 0.1 * number}
        group.negatives.append(
            Candidate(strategy, [10 + number, 0], f"t{number}", reference_logp=-2.0, similarity=similarity)
        )
    job = {**job_of(bn=1, given=2), "signals": {"given": {"only_of": ["given"]}, "rouge": {}}}
    writer = NegativeSetWriter(str(tmp_path / "scored"), job, ["given", "rouge"])
    writer.begin()
    writer.write_shard(0, [group], [], seconds={}, layout="packed")
    writer.finish(1)
    return NegativeSet(str(tmp_path / "scored"))


def test_a_candidate_without_a_value_of_the_signal_has_no_rank(scored: NegativeSet) -> None:
    dataset = ContrastiveGroups.of([scored], "train")
    (batch,) = Collator("packed", 100, dataset.strategies)([dataset[0]])
    assert batch.ranks.tolist() == [[0, UNRANKED, 2, 1]]


@pytest.mark.parametrize(
    ("use", "rank_by", "options", "said"),
    [
        (None, None, {"learns_order": True}, "order by it. Give --use given=2 or --rank_by rouge."),
        ("bn=1", "given", {"learns_order": True}, "order by it. Give --rank_by rouge."),
        ("bn=1,given=1:hard", None, {"learns_order": True}, "Give --use given=1:hard or --rank_by rouge."),
        (None, None, {"max_similarity": 3.0}, "choose them by it. Give --use given=2 or --rank_by rouge."),
        ("bn=1:similar,given=2", None, {}, "--use ...:similar chooses them by it. Give --use given=2 or"),
    ],
)
def test_what_goes_by_a_signal_is_refused_for_candidates_without_its_values(
    scored: NegativeSet, use: str | None, rank_by: str | None, options: dict[str, Any], said: str
) -> None:
    message = refusal(lambda: ContrastiveGroups.of([scored], "train", use, rank_by, **options))
    assert message.startswith("ranking signal 'given' has no values for negatives of 'bn' in negative set '")
    assert said in message


@pytest.mark.parametrize(
    ("use", "rank_by", "options", "tokens"),
    [
        ("given=2", None, {"learns_order": True, "min_similarity": 3.0}, [9, 12]),
        (None, "rouge", {"learns_order": True, "min_similarity": 0.05}, [9, 11, 12]),
        ("bn=1,given=1:similar", None, {}, [9, 10, 12]),
        (None, None, {}, [9, 10, 11, 12]),
    ],
)
def test_what_needs_no_values_that_are_not_there_is_taken(
    scored: NegativeSet, use: str | None, rank_by: str | None, options: dict[str, Any], tokens: list[int]
) -> None:
    group = ContrastiveGroups.of([scored], "train", use, rank_by, **options)[0]
    assert [c[0] for c in group.tokens.continuations] == tokens


def test_where_no_signal_is_of_all_one_can_be_added(tmp_path: Path) -> None:
    writer = NegativeSetWriter(
        str(tmp_path), {**job_of(bn=1, given=2), "signals": {"given": {"only_of": ["given"]}}}, ["given"]
    )
    writer.begin()
    writer.finish(0)
    message = refusal(lambda: Choice.of([NegativeSet(str(tmp_path))], learns_order=True))
    assert message.endswith(
        f"Give --use given=2. `python -m negatives_gen extend {tmp_path} --signals rouge` adds one that all have."
    )


def test_an_objective_that_does_not_say_is_taken_to_learn_the_order() -> None:
    assert {name for name in OBJECTIVES.names() if not OBJECTIVES.load(name).learns_order} == {"cpo", "dpo", "nca"}
    assert Objective.learns_order
