"""Which negatives of a group are trained on: `--use an=4:random,bn=3:hard`, `--min_similarity 0.2`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.command.errors import UserError
from data.counts import format_counts, parse_counts
from data.shards import NegativeSet
from trainer.groups.store import COLUMNS, Shard
from trainer.groups.ways import SIMILAR, WAYS

RANDOM = "random"


def parse_use(use: str) -> tuple[dict[str, int], dict[str, str]]:
    """Counts and ways by strategy of --use: "an=4:hard,bn=3" -> {"an": 4, "bn": 3}, {"an": "hard"}.

    Raises:
        UserError: an unknown way, or what `parse_counts` refuses.
    """
    parts = [part.strip() for part in use.split(",")]
    numbers = [part.partition("=")[2].partition(":") for part in parts]
    ways = {part.partition("=")[0].strip(): way for part, (_, colon, way) in zip(parts, numbers, strict=True) if colon}
    if odd := [way for way in ways.values() if way not in (RANDOM, *WAYS)]:
        known = ", ".join(f":{way}" for way in (RANDOM, *WAYS))
        raise UserError(
            f"--use '{use}': ':{odd[0]}' is no way to choose. Behind a number can stand {known}, as in an=4:{RANDOM}."
        )
    plain = ",".join(part.removesuffix(colon + way) for part, (_, colon, way) in zip(parts, numbers, strict=True))
    return parse_counts(plain, "--use"), ways


@dataclass(frozen=True)
class Choice:
    """How many negatives of which strategy, and which.

    Attributes:
        counts: strategy -> negatives per group, in the order in which they follow the ground truth.
        ways: strategy -> RANDOM, of which each epoch draws afresh, or one of `trainer.groups.ways.WAYS`; of the others
            the first ones are taken.
        signal: ranking signal; its similarities order the candidates, and the bounds hold for them.
        min_similarity, max_similarity: negatives outside are passed over, for the next ones of their strategy.
        seed: of the draws.
        held: strategy -> negatives of a group in the set that has the fewest.
    """

    counts: dict[str, int]
    signal: str
    ways: dict[str, str] = field(default_factory=dict)
    min_similarity: float | None = None
    max_similarity: float | None = None
    seed: int = 0
    held: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sets: Sequence[NegativeSet],
        use: str | None = None,
        rank_by: str | None = None,
        *,
        min_similarity: float | None = None,
        max_similarity: float | None = None,
        seed: int = 0,
        learns_order: bool = False,
    ) -> "Choice":
        """The choice of the options --use (None: all that every set holds), --rank_by (None: the first signal).

        Args:
            learns_order: whether the objective needs a value of the signal for every negative.

        Raises:
            UserError: a set has not that many negatives of a strategy, or not that signal, or no values of it where
                they are needed; sets that hold different negatives and no --use.
        """
        stored = [negatives.manifest.stored for negatives in sets]
        if use is None:
            for negatives, counts in zip(sets, stored, strict=True):
                if counts != stored[0]:
                    raise UserError(
                        f"negative set '{sets[0].folder.path}' holds {format_counts(stored[0])} per group, "
                        f"'{negatives.folder.path}' {format_counts(counts)}. Say with --use what to take of both."
                    )
        use, rank_by = short_names(sets, use, rank_by)
        wanted, ways = parse_use(use) if use else ({}, {})
        counts = wanted or stored[0]
        signal = rank_by or sets[0].signals[0]
        for negatives, held in zip(sets, stored, strict=True):
            for strategy, count in counts.items():
                if strategy not in held:
                    raise UserError(
                        f"--use asks for {strategy}={count}, but negative set '{negatives.folder.path}' holds "
                        f"{format_counts(held)} per group, no '{strategy}'. Choose among these."
                    )
                if count > held[strategy]:
                    raise UserError(
                        f"--use asks for {strategy}={count}, but negative set '{negatives.folder.path}' holds "
                        f"{format_counts(held)} per group. Ask for less, or add more by negatives_gen extend."
                    )
            if signal not in negatives.signals:
                raise UserError(
                    f"--rank_by asks for '{signal}', but negative set '{negatives.folder.path}' holds "
                    f"{', '.join(negatives.signals)}. Choose one of them, or add it with "
                    "`python -m negatives_gen extend`."
                )
        fewest = {strategy: min(held[strategy] for held in stored) for strategy in counts}
        choice = cls(counts, signal, ways, min_similarity, max_similarity, seed, fewest)
        for negatives in sets:
            choice._refuse_without_values(negatives, learns_order)
        return choice

    def _refuse_without_values(self, negatives: NegativeSet, learns_order: bool) -> None:
        """Raise UserError where the signal decides something about negatives that it has no values for."""
        manifest, path = negatives.manifest, negatives.folder.path
        lacking = manifest.without_values(self.signal, self.counts)
        similar = [name for name in lacking if self.ways.get(name) == SIMILAR]
        if learns_order:
            needed = "the objective learns their order"
        elif self.filters:
            needed = "--min_similarity and --max_similarity choose them"
        else:
            lacking, needed = similar, f"--use ...:{SIMILAR} chooses them"
        if not lacking:
            return
        having = [part for name, part in self._parts.items() if name not in lacking]
        whole = [name for name in negatives.signals if not manifest.without_values(name, self.counts)]
        ways_out = [f"--use {','.join(having)}"] if having else []
        ways_out += [f"--rank_by {whole[0]}"] if whole else []
        remedy = f" Give {' or '.join(ways_out)}." if ways_out else ""
        more = "" if whole else f" `python -m negatives_gen extend {path} --signals rouge` adds one that all have."
        raise UserError(
            f"ranking signal '{self.signal}' has no values for negatives of '{lacking[0]}' in negative set '{path}', "
            f"and {needed} by it.{remedy}{more}"
        )

    @property
    def record(self) -> dict[str, Any]:
        """What is chosen, as the options of the command say it."""
        bounds = {"min_similarity": self.min_similarity, "max_similarity": self.max_similarity}
        return {"use": ",".join(self._parts.values()), "rank_by": self.signal, **bounds}

    @property
    def _parts(self) -> dict[str, str]:
        """Strategy -> its part of --use."""
        ways = {name: f":{way}" for name, way in self.ways.items()}
        return {name: f"{name}={count}{ways.get(name, '')}" for name, count in self.counts.items()}

    @property
    def shown_per_epoch(self) -> float:
        """How often an epoch shows a negative that may be shown at all: 1, or less where each epoch draws afresh.

        Bounds of similarity are not looked at; where they leave fewer to draw from, it is more.
        """
        random = {strategy for strategy, way in self.ways.items() if way == RANDOM}
        pool = sum(self.held.get(name, count) if name in random else count for name, count in self.counts.items())
        return sum(self.counts.values()) / max(1, pool)

    @property
    def filters(self) -> bool:
        """Whether a negative may be passed over for its similarity."""
        return self.min_similarity is not None or self.max_similarity is not None

    def allowed(self, shard: Shard) -> np.ndarray:
        """[C], True for the negatives of the chosen strategies within the bounds."""
        chosen = np.zeros(len(shard.strategy), dtype=bool)
        for strategy in self.counts:
            chosen |= shard.of_strategy(strategy)
        similarity = shard.similarity[self.signal]
        if self.min_similarity is not None:
            chosen &= similarity >= self.min_similarity
        if self.max_similarity is not None:
            chosen &= similarity <= self.max_similarity
        return chosen

    def negatives(self, shard: Shard, row: int, number: int, epoch: int) -> tuple[np.ndarray, list[str]]:
        """The negatives of a group, as places in the shard's C, and their strategies.

        Args:
            row: of the group in the shard.
            number, epoch: with the seed, what a random choice depends on.
        """
        start, stop = shard.first[row], shard.first[row + 1]
        within = slice(start, stop)
        places, names = [], []
        similarity = shard.similarity[self.signal][within]
        good = np.ones(stop - start, dtype=bool)
        if self.min_similarity is not None:
            good &= similarity >= self.min_similarity
        if self.max_similarity is not None:
            good &= similarity <= self.max_similarity
        for order, (strategy, count) in enumerate(self.counts.items()):
            code = shard.strategies.index(strategy) if strategy in shard.strategies else -1
            there = np.flatnonzero((shard.strategy[within] == code) & good)
            if self.ways.get(strategy) == RANDOM and len(there) > count:
                draw = np.random.default_rng((self.seed, epoch, number, order))
                there = np.sort(draw.choice(there, count, replace=False))
            taken = self._by_way(shard, start + there, strategy)[:count]
            places.append(taken)
            names += [strategy] * len(taken)
        return np.concatenate(places) if places else np.zeros(0, dtype=np.int64), names

    def places_in_groups(self, negatives: NegativeSet, index: int) -> list[list[int]]:
        """The negatives that the first epoch takes of each group of a shard, by their places in the group."""
        shard = Shard.of(negatives.shard_table(index, COLUMNS))
        before = sum(record.rows for record in negatives.manifest.shards[:index])
        taken = [self.negatives(shard, row, before + row, 0)[0] for row in range(len(shard.ids))]
        return [(places - shard.first[row]).tolist() for row, places in enumerate(taken)]

    def _by_way(self, shard: Shard, places: np.ndarray, strategy: str) -> np.ndarray:
        """The places of a group's candidates of a strategy that its way takes, in their order; without a way all."""
        way, count = WAYS.get(self.ways.get(strategy, "")), self.counts[strategy]
        if way is None or len(places) <= count:
            return places
        return places[np.sort(way(shard, places, count, self.signal))]

    def counted(self, shard: Shard) -> np.ndarray:
        """[R], tokens of the negatives that each group will have; where they are drawn, of an average draw."""
        tokens = np.zeros(len(shard.ids))
        lengths = shard.negatives.lengths
        rows = np.repeat(np.arange(len(shard.ids)), np.diff(shard.first))
        allowed = self.allowed(shard)
        for strategy, count in self.counts.items():
            of_it = allowed & shard.of_strategy(strategy)
            if self.ways.get(strategy) in WAYS:
                ends = np.cumsum(np.bincount(rows[of_it], minlength=len(shard.ids)))
                there, of_it = np.flatnonzero(of_it), np.zeros_like(of_it)
                for places in np.split(there, ends[:-1]):
                    of_it[self._by_way(shard, places, strategy)] = True
            its_rows = rows[of_it]
            # Place of each among its group's of the strategy: rows are in order.
            place = np.arange(len(its_rows)) - np.searchsorted(its_rows, its_rows)
            available = np.bincount(its_rows, minlength=len(shard.ids))
            if self.ways.get(strategy) == RANDOM:
                sums = np.bincount(its_rows, weights=lengths[of_it], minlength=len(shard.ids))
                tokens += sums * np.minimum(1, count / np.maximum(1, available))
            else:
                first = place < count
                tokens += np.bincount(its_rows[first], weights=lengths[of_it][first], minlength=len(shard.ids))
        return tokens


def short_names(sets: Sequence[NegativeSet], use: str | None, rank_by: str | None) -> tuple[str | None, str | None]:
    """--use and --rank_by with the sets' own names in place of the import paths of entries from outside.

    No entry is imported: the sets' manifests tell which name an import path has.
    """

    def known(written: str, names: Iterable[str]) -> str:
        return next((name for name in names if name != written), written)

    if use is not None:
        parts = [part.strip().partition("=") for part in use.split(",")]
        strategies = [known(name, (s.manifest.strategy_name(name) for s in sets)) for name, _, _ in parts]
        use = ",".join(f"{name}{equals}{rest}" for name, (_, equals, rest) in zip(strategies, parts, strict=True))
    if rank_by is not None:
        rank_by = known(rank_by, (s.manifest.signal_name(rank_by) for s in sets))
    return use, rank_by
