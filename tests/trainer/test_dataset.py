"""What the trainer takes of a set with several strategies and ranking signals."""

from pathlib import Path

import pytest

from data.command.errors import UserError
from data.schema import Candidate, Group
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.written import job_of
from trainer.groups.choice import short_names
from trainer.groups.dataset import Collator, ContrastiveGroups


@pytest.fixture
def mixed(tmp_path: Path) -> NegativeSet:
    """One group: two AN, one BN, two TN; `rouge` orders them the other way round than `embedding`."""
    group = Group("g", "p", "r", [1], [9, 0], reference_logp=-1.0)
    for number, strategy in enumerate(("an", "an", "bn", "tn", "tn")):
        similarity = {"embedding": 0.9 - 0.1 * number, "rouge": 0.1 * number}
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
