"""`python -m negatives_gen stats DIR`: counts, lengths, ranking signals and duplicates by strategy."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data.command.errors import UserError, exit_on_user_error
from data.command.fitting import Column, tables
from data.command.options import load_config, option, resolve_path
from data.command.terminal import say
from data.command.usage import answered
from data.command.wording import counted, duration, is_or_are, size
from data.reach import FEW, why_unknown
from data.shards import NegativeSet
from data.soundness import floats_of
from negatives_gen.signals import models_of
from negatives_gen.strategies import STRATEGIES
from negatives_gen.verbs.advice import advice
from negatives_gen.verbs.reading import console, number

if TYPE_CHECKING:
    from rich.table import Table

USAGE = "python -m negatives_gen stats DIR [--json]"
ABOUT = """
What a negative set holds, by strategy and for the ground truth, from its shards (one in memory at a time) and manifest:

  tokens           of a continuation: mean, median, 95th percentile, longest
  cut              share of the sampled negatives that end by length instead of an end
  duplicates       share of the negatives whose text another negative of their group has, of whatever strategy
  = truth          share whose text is the ground truth's; texts are compared without surrounding white space
  log p per token  the reference model's, in nats: sum over all tokens divided by their number
  likelier         share to which the reference gives a higher summed log p than to the ground truth
  in reach         of the ground truths, how many the sampler could have said itself (every token within --top_k, length
                   within --max_new_tokens); what it could not say, no negative is ever like. At least so many, where a
                   strategy is given part of a ground truth (rn). Or of how many that is not known and why
  ranking signal   of each, with its model, a histogram of ten bins between its lowest and its highest value in the set,
                   of the strategies that have values of it; each one's fullest bin has a bar of full length

A line that begins with ! is advice. Tables fit the terminal's width: what does not stands below.
"""

LOW_REACH = 0.5  # share of the ground truths within the sampler's reach below which there is advice
BINS = 10
BAR = 24  # characters
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass
class StatsConfig:
    """How the statistics of a set are printed."""

    json: bool = option(False, "print it as JSON, shares from 0 to 1")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, StatsConfig, usage=USAGE, about=ABOUT):
        return
    at = next((i for i, word in enumerate(argv) if not word.startswith("-")), None)
    if at is None:
        raise UserError("python -m negatives_gen stats needs one negative set: stats DIR [--json].")
    config = load_config(StatsConfig, [*argv[:at], *argv[at + 1 :]], command="python -m negatives_gen stats")
    negatives = NegativeSet(resolve_path(argv[at]))
    found = statistics(negatives)
    if config.json:
        say(json.dumps(found, indent=2, allow_nan=False))
    else:
        print_statistics(found, negatives.manifest.origin)


@dataclass
class Tally:
    """Running sums over continuations of one kind.

    Attributes:
        lengths: [longest + 1], how many continuations have so many tokens.
        scored_tokens: tokens of those that have a log-probability, whose sum is `logp` in nats.
        sampled: continuations with a finish reason, of which `cut` end by length.
        compared: those with a log-probability beside the ground truth's, of which `likelier` have the higher one.
        bins: ranking signal -> [BINS], how many similarities lie in each.
    """

    count: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    logp: float = 0.0
    scored_tokens: int = 0
    sampled: int = 0
    cut: int = 0
    duplicates: int = 0
    equal_truth: int = 0
    compared: int = 0
    likelier: int = 0
    bins: dict[str, np.ndarray] = field(default_factory=lambda: defaultdict(lambda: np.zeros(BINS, np.int64)))
    similarity_sum: Counter[str] = field(default_factory=Counter)

    def add_continuations(self, lengths: np.ndarray, logps: np.ndarray) -> None:
        """Count continuations: their lengths in tokens and log-probabilities, nan where there is none; both [n]."""
        self.count += len(lengths)
        seen = np.bincount(lengths, minlength=len(self.lengths))
        seen[: len(self.lengths)] += self.lengths
        self.lengths = seen
        scored = np.isfinite(logps)
        self.logp += float(logps[scored].sum())
        self.scored_tokens += int(lengths[scored].sum())

    def tokens(self) -> dict[str, float | int | None]:
        """Mean, median, 95th percentile (the least length that so many do not exceed) and longest."""
        total = int(self.lengths @ np.arange(len(self.lengths)))
        up_to = np.cumsum(self.lengths)
        p50, p95 = (int(np.searchsorted(up_to, -(-self.count * q // 100))) if self.count else None for q in (50, 95))
        longest = int(np.flatnonzero(self.lengths)[-1]) if self.count else None
        return {"mean": _ratio(total, self.count), "p50": p50, "p95": p95, "max": longest, "total": total}


def statistics(negatives: NegativeSet) -> dict[str, Any]:
    """All that `stats` says about a set, JSON-like; shares are from 0 to 1, log-probabilities in nats.

    Reads the shards twice, one at a time: the ranges of the histograms must be known first.
    """
    manifest = negatives.manifest
    edges = _edges(negatives)
    truth = Tally()
    tallies: dict[str, Tally] = defaultdict(Tally)
    splits: Counter[str] = Counter()
    reach: Counter[bool | None] = Counter()
    columns = ["response", "split", "response_ids", "reference_logp", "negatives"]
    for table in negatives.tables([*columns, *(["in_support"] if negatives.knows_support else [])]):
        if table.num_rows:
            splits.update(table["split"].to_pylist())
            reach.update(table["in_support"].to_pylist() if negatives.knows_support else [None] * table.num_rows)
            _add_shard(table, truth, tallies, edges)
    seconds: Counter[str] = Counter()
    for shard in manifest.shards:
        seconds.update(shard.seconds)
    return {
        "groups": truth.count,
        "splits": dict(sorted(splits.items())),
        "lends_across_halves": manifest.lends_across_halves,
        "in_support": {
            "known": reach[True] + reach[False],
            "count": reach[True],
            "share": None if reach[None] else _ratio(reach[True], truth.count),
            "unknown": why_unknown(negatives).cause if reach[None] else None,
            "at_least_by": _reaching_more(manifest.job["strategies"]),
        },
        "rows_read": manifest.counts["rows_read"],
        "rows_rejected": manifest.counts["rows_rejected"],
        "rejected_by_reason": manifest.counts["rejected_by_reason"],
        "candidates_left_out": manifest.left_out,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "seconds": {stage: round(total, 3) for stage, total in seconds.items()},
        "occupancy": manifest.occupancy,
        "ground_truth": {"count": truth.count, "tokens": truth.tokens(), "logp_per_token": _logp(truth)},
        "strategies": {name: _summary(tallies[name]) for name in sorted(tallies)},
        "similarity": {
            signal: {
                "models": models_of(signal, manifest.job),
                "edges": [float(edge) for edge in edges[signal]],
                "counts": {name: tally.bins[signal].tolist() for name, tally in having.items()},
                "mean": {
                    name: tally.similarity_sum[signal] / int(tally.bins[signal].sum()) for name, tally in having.items()
                },
            }
            for signal in edges
            for having in [{name: tallies[name] for name in sorted(tallies) if tallies[name].bins[signal].any()}]
        },
    }


def _reaching_more(strategies: Mapping[str, dict[str, Any]]) -> list[str]:
    """The strategies for whose sake the ground truths in reach are at least so many: a bound from below."""
    known = set(STRATEGIES.names())
    cutting = [name for name, settings in strategies.items() if name in known and settings.get("top_k")]
    return [name for name in cutting if STRATEGIES.load(name).reaches_more]


def _edges(negatives: NegativeSet) -> dict[str, np.ndarray]:
    """Signal -> [BINS + 1] edges of equal bins from the lowest to the highest similarity in the set."""
    ranges: dict[str, tuple[float, float]] = {}
    for table in negatives.tables(["negatives"]):
        candidates = _flat(table["negatives"])
        for signal in negatives.signals:
            values = _similarities(candidates, signal)
            values = values[np.isfinite(values)]
            if len(values):
                low, high = ranges.get(signal, (np.inf, -np.inf))
                ranges[signal] = (min(low, float(values.min())), max(high, float(values.max())))
    return {signal: np.histogram_bin_edges([], BINS, between) for signal, between in ranges.items()}


def _add_shard(table: pa.Table, truth: Tally, tallies: dict[str, Tally], edges: dict[str, np.ndarray]) -> None:
    truth_logps = floats_of(table["reference_logp"].combine_chunks())
    truth.add_continuations(_lengths(table["response_ids"].combine_chunks()), truth_logps)

    candidates = _flat(table["negatives"])
    group = table["negatives"].combine_chunks().value_parent_indices().to_numpy()  # row of each candidate
    strategies = np.array(candidates.field("strategy").to_pylist(), dtype=object)
    lengths = _lengths(candidates.field("ids"))
    logps = floats_of(candidates.field("reference_logp"))
    reasons = np.array(candidates.field("finish_reason").to_pylist(), dtype=object)
    duplicate, equal_truth = _repetitions(candidates.field("text"), table["response"], group)
    similarities = {signal: _similarities(candidates, signal) for signal in edges}
    for strategy in set(strategies):
        tally, mine = tallies[strategy], strategies == strategy
        tally.add_continuations(lengths[mine], logps[mine])
        tally.sampled += sum(reason is not None for reason in reasons[mine])
        tally.cut += int((reasons[mine] == "length").sum())
        tally.duplicates += int(duplicate[mine].sum())
        tally.equal_truth += int(equal_truth[mine].sum())
        own, true = logps[mine], truth_logps[group[mine]]
        tally.compared += int((np.isfinite(own) & np.isfinite(true)).sum())
        tally.likelier += int((own > true).sum())
        for signal, values in similarities.items():
            found = values[mine][np.isfinite(values[mine])]
            tally.bins[signal] += np.histogram(found, edges[signal])[0]
            # A Counter adds floats as well, but is typed for whole numbers.
            tally.similarity_sum[signal] += float(found.sum())  # type: ignore[assignment]  # as said above


def _repetitions(texts: pa.Array, responses: pa.ChunkedArray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[candidates] whether another one of the group has the text; [candidates] whether the ground truth has it."""
    both = [text.strip() for part in (texts, responses) for text in part.to_pylist()]  # as `Novelty` compares them
    codes = pa.array(both, pa.string()).dictionary_encode().indices.to_numpy()
    own, true = codes[: len(texts)], codes[len(texts) :]
    _, which, counts = np.unique(np.stack([group, own]), axis=1, return_inverse=True, return_counts=True)
    return counts[which.ravel()] > 1, own == true[group]


def _flat(negatives: pa.ChunkedArray) -> pa.StructArray:
    """The candidates of all groups, one after another."""
    return negatives.combine_chunks().flatten()


def _similarities(candidates: pa.StructArray, signal: str) -> np.ndarray:
    return floats_of(candidates.field("similarity").field(signal))


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return lists.value_lengths().to_numpy()


def _summary(tally: Tally) -> dict[str, Any]:
    return {
        "count": tally.count,
        "tokens": tally.tokens(),
        "cut": _ratio(tally.cut, tally.sampled),
        "duplicates": _ratio(tally.duplicates, tally.count),
        "equal_truth": _ratio(tally.equal_truth, tally.count),
        "logp_per_token": _logp(tally),
        "likelier_than_truth": _ratio(tally.likelier, tally.compared),
    }


def _logp(tally: Tally) -> float | None:
    return _ratio(tally.logp, tally.scored_tokens)


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def print_statistics(found: dict[str, Any], origin: str) -> None:
    """The result of `statistics` as tables, with advice where something stands out.

    Args:
        origin: what the set was made from, in words.
    """
    out = console()
    splits = ", ".join(f"{count:,} {split}" for split, count in found["splits"].items())
    held = f"{counted(found['groups'], 'group')} ({splits or 'none'}) in {counted(found['shards'], 'shard')}"
    out.print(f"{held}, {size(found['bytes'])}")
    out.print(f"from {origin}")
    out.print(f"{counted(found['rows_read'], 'row')} read, {found['rows_rejected']:,} rejected")
    for reason, count in found["rejected_by_reason"].items():
        out.print(f"  {count:>6} {reason}")
    if left := found["candidates_left_out"]:
        number = sum(left.values())
        out.print(f"{counted(number, 'candidate')} that the rows of groups list {is_or_are(number)} left out")
        for reason, count in left.items():
            out.print(f"  {count:>6} {reason}")
    for line in _reach(found):
        out.print(line)
    for line in advice(found):
        out.print(f"! {line}")
    out.print(*_by_strategy(found, out.width), sep="\n")
    for signal, histogram in found["similarity"].items():
        lacking = [name for name in found["strategies"] if name not in histogram["counts"]]
        out.print(*_histogram(signal, histogram, lacking, out.width), sep="\n")
    if found["seconds"]:
        out.print("time: " + ", ".join(f"{stage} {duration(total)}" for stage, total in found["seconds"].items()))
    if found["occupancy"] is not None:
        out.print(f"engine {found['occupancy']:.0%} occupied, over all shards")


def _reach(found: dict[str, Any]) -> list[str]:
    """How many ground truths the sampler could have said, and what to do where they are few."""
    reach, groups = found["in_support"], found["groups"]
    if not groups:
        return []
    if not reach["known"]:
        return [f"in reach of the sampler: unknown for {_all(groups)}: {reach['unknown']}"]
    # A share of some would be none of all: where the ranks are unknown, those that are known are the too long ones.
    if unknown := groups - reach["known"]:
        out = reach["known"] - reach["count"]
        return [
            f"in reach of the sampler: {reach['count']} of {groups} ground truths, out of reach {out}, unknown "
            f"{unknown}: {reach['unknown']}"
        ]
    share = reach["share"]
    least = "at least " if reach["at_least_by"] else ""
    lines = [f"in reach of the sampler: {least}{reach['count']} of {groups} ground truths ({_percent(share)})"]
    if share < LOW_REACH:
        longest = found["ground_truth"]["tokens"]["max"]
        kept = ", or train with --in_support true" if share >= FEW else ""
        given = f" At least: {', '.join(by)} is given part of a ground truth." if (by := reach["at_least_by"]) else ""
        lines.append(
            f"  few: training favours whatever the sampler cannot say. Sample with --top_k 0 and --max_new_tokens "
            f"{longest} (the longest ground truth){kept}.{given}"
        )
    return lines


def _by_strategy(found: dict[str, Any], width: int) -> "list[Table]":
    rows = {"truth": found["ground_truth"], **found["strategies"]}
    columns = {
        "count": [str(row["count"]) for row in rows.values()],
        "tokens": [number(row["tokens"]["mean"], 1) for row in rows.values()],
        **{key: [number(row["tokens"][key], 0) for row in rows.values()] for key in ("p50", "p95", "max")},
        "cut": [_percent(row.get("cut")) for row in rows.values()],
        "duplicates": [_percent(row.get("duplicates")) for row in rows.values()],
        "= truth": [_percent(row.get("equal_truth")) for row in rows.values()],
        "log p/tok": [number(row["logp_per_token"], 2) for row in rows.values()],
        "likelier": [_percent(row.get("likelier_than_truth")) for row in rows.values()],
    }
    others = [Column(heading, cells) for heading, cells in columns.items()]
    return tables(None, [Column("strategy", list(rows), right=False)], others, width)


def _histogram(signal: str, histogram: dict[str, Any], lacking: Sequence[str], width: int) -> "list[Table]":
    """A column for each strategy, a row for each bin; each strategy's fullest bin has a bar of full length.

    Args:
        lacking: strategies without values.
        width: columns of the terminal.
    """
    edges, strategies = histogram["edges"], histogram["counts"]
    first = [Column("from", [f"{e:.2f}" for e in edges[:-1]]), Column("to", [f"{e:.2f}" for e in edges[1:]])]
    longest = max(4, min(BAR, 72 // max(1, len(strategies)) - 9))
    others = []
    for name, counts in strategies.items():
        bars = [_bar(count / (max(counts) or 1), longest) for count in counts]
        cells = [f"{bar} {count}".strip() for bar, count in zip(bars, counts, strict=True)]
        others.append(Column(f"{name}, mean {number(histogram['mean'][name], 2)}", cells, right=False))
    known = [f"{option} {model}" for option, model in histogram["models"].items()]
    known += [f"{', '.join(lacking)}: -"] if lacking else []
    title = f"ranking signal {signal}" + (f" ({'; '.join(known)})" if known else "")
    return tables(title, first, others, width)


def _bar(share: float, width: int) -> str:
    """A bar of `width` characters at a share of 1, in steps of an eighth of one; none at all only at 0."""
    full, rest = divmod(max(round(share * width * 8), int(share > 0)), 8)
    return "█" * full + EIGHTHS[rest].strip()


def _all(groups: int) -> str:
    return "the one group" if groups == 1 else f"all {groups:,} groups"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
