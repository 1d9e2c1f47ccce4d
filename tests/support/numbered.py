"""Sets of groups by number, whose tokens tell which group and which candidate they are."""

from pathlib import Path

from data.schema import Candidate, Group, example_id
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.written import job_of


def group(number: int, split: str = "train") -> Group:
    """Tokens tell group and candidate: candidate c of group n holds 100 n + c, similarity (c + 1) / 10."""
    made = Group(example_id(str(number), "r"), "p", "r", [number] * (1 + number % 3), [7, 0], split, float(-number))
    for c in range(6):
        ids = [100 * number + c] * (1 + (number + c) % 4)
        made.negatives.append(
            Candidate(
                "an" if c < 4 else "bn", ids, "t", reference_logp=-1.0 * c, similarity={"embedding": (c + 1) / 10}
            )
        )
    return made


def write(path: Path, groups: list[Group], shard: int, split: str | None = None, **job: object) -> NegativeSet:
    content = {**job_of(an=4, bn=2), **({"data": {"split": split}} if split else {}), **job}
    writer = NegativeSetWriter(str(path), content, ["embedding"])
    writer.begin()
    parts = [groups[i : i + shard] for i in range(0, len(groups), shard)]
    for index, part in enumerate(parts):
        writer.write_shard(index, part, [], seconds={}, layout="packed")
    writer.finish(len(parts))
    return NegativeSet(str(path))
