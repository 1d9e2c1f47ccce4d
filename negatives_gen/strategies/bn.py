"""BN: batch negatives, the ground truths of other prefixes in the same batch (paper section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.manifest import HALF
from data.schema import Candidate, Group
from negatives_gen.strategies.base import Strategy, Tools, derive_seed


@dataclass(frozen=True)
class Options:
    """How rows are put into batches."""

    bn_batch_size: int = option(64, "rows of a batch, whose ground truths its groups borrow from one another")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.bn_batch_size < 2:
            raise UserError(f"--bn_batch_size must be at least 2, got {self.bn_batch_size}.")


class Batch(Strategy):
    """Cuts each half of the pool into batches in an order drawn from the seed; a group borrows from its own, in its own
    order. So no held-out row lends its text to training, nor the other way round.

    The settings say so (`within`); those of sets from before do not, and are made as they were.

    Borrowed token ids are taken as they are, EOS included; one that does not fit behind the prefix is passed over.
    """

    name = "bn"
    summary = "batch: ground truths of other prefixes of a batch"
    Options: ClassVar = Options

    def settings(self, options: Any) -> dict[str, Any]:
        return {**super().settings(options), "within": HALF}

    def for_sample(self, settings: dict[str, Any], rows: int, shard_rows: int) -> dict[str, Any]:
        """Batches no smaller than a shard's, as far as the sample goes: rows must find as many others as there.

        They are of both halves, of which a sample may have few rows: what is measured does not depend on that.
        """
        batches = -(-shard_rows // settings["bn_batch_size"]) or 1
        batch = -(-shard_rows // batches)
        if settings["count"] >= batch:
            raise UserError(
                f"bn={settings['count']} needs more than {settings['count']} usable rows of a half in a batch, the "
                f"job's have {batch}. Raise --bn_batch_size or --groups_per_shard, or ask for fewer."
            )
        number = rows // batch or 1
        return {"count": settings["count"], "bn_batch_size": -(-rows // number)}

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        batch_of = {group.id: batch for batch in self._batches(pool, settings, tools.seed) for group in batch}
        short: dict[str, str] = {}
        for group in groups:
            others = [other for other in batch_of[group.id] if other.id != group.id]
            others.sort(key=lambda other: derive_seed(tools.seed, self.name, group.id, other.id))
            borrowed = (
                Candidate(self.name, list(other.response_ids), other.response, source_id=other.id)
                for other in others
                if len(group.prompt_ids) + len(other.response_ids) <= tools.context
            )
            if missing := self.fill(group, borrowed, settings):
                count = settings["count"]
                short[group.id] = f"{count - missing} of {count}: its batch has {len(others)} other rows"
        return short

    def _batches(self, pool: Sequence[Group], settings: dict[str, Any], seed: int) -> list[list[Group]]:
        """Batches of one half each, of equal size in it, give or take one row, of at most bn_batch_size rows."""
        order = sorted(pool, key=lambda group: derive_seed(seed, self.name, group.id))
        if settings.get("within") != HALF:
            return _equal_parts(order, settings["bn_batch_size"])
        halves = [[group for group in order if group.split == split] for split in sorted({g.split for g in pool})]
        return [batch for half in halves for batch in _equal_parts(half, settings["bn_batch_size"])]


def _equal_parts(rows: list[Group], most: int) -> list[list[Group]]:
    number = -(-len(rows) // most)
    return [rows[i * len(rows) // number : (i + 1) * len(rows) // number] for i in range(number)]


STRATEGY = Batch()
