"""Earlier: candidates that an earlier set holds for the same group, such as those of the round before."""

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.command.errors import UserError
from data.command.options import option, resolve_path
from data.counts import format_counts, parse_counts
from data.manifest import MANIFEST
from data.schema import Candidate, Group
from data.shards import NegativeSet
from data.storage import sha256
from data.tokens import declared
from negatives_gen.strategies.base import Strategy, Tools

log = logging.getLogger(__name__)

# What is kept of a candidate: all but the strategy's name and the scores, which are another reference's.
KEPT = ("ids", "text", "finish_reason", "source_id", "seed", "sampler_logp")
COLUMNS = ("id", "prompt_ids", *(f"negatives.list.element.{name}" for name in ("strategy", *KEPT)))


@dataclass(frozen=True)
class Options:
    """Which set is meant, and what of it."""

    earlier_set: str | None = option(
        None, "finished set of the same tokenizer and data whose candidates are taken", is_name=True, metavar="DIR"
    )
    earlier_use: list[str] = option(
        [], "at most so many of these strategies of it, e.g. an=4 (default: all, in its order)", metavar="NAME=N"
    )

    def check(self) -> None:
        """Raise UserError where the set is not named, or counts are none."""
        if not self.earlier_set:
            raise UserError("strategy 'earlier' needs --earlier_set: the finished set whose candidates are taken.")
        if self.earlier_use:
            parse_counts(self.earlier_use, "--earlier_use")


class Earlier(Strategy):
    """Takes a group's candidates in the order of the earlier set, ids and text as they are there.

    How they were drawn stays too (`sampler_logp` is the density under what they were sampled from, an earlier model);
    scores are made anew, by this set's reference. Passed over are those with the text of the ground truth or of one
    that was taken before, and those that this set's reference does not take: too long, or ids beyond its embedding.
    """

    name = "earlier"
    summary = "earlier: candidates of an earlier set, scored by the new reference (--earlier_set)"
    Options: ClassVar = Options

    def settings(self, options: Any) -> dict[str, Any]:
        """The set's hash decides, whatever it is called."""
        settings = super().settings(options)
        negatives = NegativeSet(resolve_path(options.earlier_set), current=True)
        if not settings.pop("earlier_use"):
            return {**settings, "earlier_sha256": _hash_of(negatives)}
        counts = parse_counts(options.earlier_use, "--earlier_use", negatives.manifest.strategy_name)
        stored = negatives.manifest.stored
        for name, count in counts.items():
            if count > stored.get(name, 0):
                raise UserError(
                    f"--earlier_use {name}={count}: the set '{options.earlier_set}' has {format_counts(stored)}. Ask "
                    "for what it has."
                )
        use = [f"{name}={counts[name]}" for name in sorted(counts)]
        return {**settings, "earlier_use": use, "earlier_sha256": _hash_of(negatives)}

    def for_job(self, settings: dict[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
        named, path = f"--earlier_set '{settings['earlier_set']}'", resolve_path(settings["earlier_set"])
        negatives = NegativeSet(path, current=True)
        log.info("earlier: %s", negatives.summary)
        manifest = negatives.manifest
        theirs, ours = manifest.job["tokenizer"], job["tokenizer"]
        if theirs["sha256"] != ours["sha256"]:
            raise UserError(
                f"{named} was made with tokenizer {theirs['sha256'][:16]}, this job's reference has tokenizer "
                f"{ours['sha256'][:16]}: ids would be other texts. Give a set of the same tokenizer."
            )
        # As `describe_ends` writes them; a manifest that readers take need not have them.
        ends, own = (of.get("end_token_ids", [of.get("eos_token_id")]) for of in (theirs, ours))
        if ends != own:
            raise UserError(
                f"{named}: its continuations end with the ids {ends}, this job's with {own} (EOS, "
                "generation_config.json, chat template). Give a set of a reference with the same ends."
            )
        most = sum((_counts(settings) or manifest.stored).values())
        if most < settings["count"]:
            raise UserError(
                f"earlier={settings['count']}: a group of {named} has {most} such candidates. Ask for as many or fewer."
            )
        known = [of.get("data", {}).get("examples_sha256") for of in (manifest.job, job)]
        if None not in known and known[0] != known[1]:
            log.warning(
                "%s was made of other examples than this job (other data, split or limit): groups that it lacks are "
                "rejected",
                named,
            )
        return {**settings, "earlier_set": path}

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        earlier = _opened(settings["earlier_set"], settings["earlier_sha256"])
        by_id, found = {group.id: group for group in groups}, dict[str, str]()
        for row in earlier.rows(list(by_id)):
            group = by_id[row["id"]]
            if row["prompt_ids"] != list(group.prompt_ids):
                found[group.id] = "the earlier set has this group behind another prompt (template or length)"
                continue
            candidates = (_candidate(entry) for entry in _chosen(row["negatives"], settings))
            self.fill(group, (c for c in candidates if _fits(c, group, tools)), settings)
            found[group.id] = f"of the {len(row['negatives'])} there, those that repeat or do not fit are passed over"
        return {
            group.id: f"{settings['count'] - self.missing(group, settings)} of {settings['count']}: "
            + found.get(group.id, "the earlier set has no such group")
            for group in groups
            if self.is_short(group, settings)
        }


class _EarlierSet:
    """A set that is read shard by shard, and where each of its groups lies: 12 bytes a group.

    Args:
        expected: SHA-256 of its manifest when the job began.

    Raises:
        UserError: another set lies there by now, or a damaged one.
    """

    def __init__(self, path: str, expected: str):
        self.negatives = NegativeSet(path, current=True)
        if _hash_of(self.negatives) != expected:
            raise UserError(
                f"the earlier set '{path}' has changed since this job began. Restore it, or choose another --out."
            )
        parts = [_keys(self.negatives.peek(i, "id").to_pylist()) for i in range(len(self.negatives.manifest.shards))]
        keys = np.concatenate([np.zeros(0, np.uint64), *parts])
        shards = np.repeat(np.arange(len(parts), dtype=np.uint32), [len(part) for part in parts])
        order = np.argsort(keys)
        self.keys, self.shards = keys[order], shards[order]

    def rows(self, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The groups of these ids that the set has, as rows of COLUMNS; one shard at a time is in memory."""
        if not len(self.keys):
            return
        wanted = _keys(ids)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        there = self.keys[places] == wanted
        for shard in sorted(set(self.shards[places[there]].tolist())):
            table = self.negatives.shard_table(shard, COLUMNS)
            mine = pc.is_in(table["id"], pa.array(ids, pa.string()))  # type: ignore[attr-defined]  # made at run time
            yield from table.filter(mine).to_pylist()


@functools.lru_cache(maxsize=1)  # a stage asks for each of its shards
def _opened(path: str, expected: str) -> _EarlierSet:
    return _EarlierSet(path, expected)


def _hash_of(negatives: NegativeSet) -> str:
    return sha256(negatives.folder.read(MANIFEST))


def _keys(ids: Sequence[str]) -> np.ndarray:
    """64 bits of each id, [N] uint64: two ids of one key would be looked for in one shard."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, np.uint64)


def _counts(settings: Mapping[str, Any]) -> dict[str, int]:
    return parse_counts(settings["earlier_use"], "--earlier_use") if "earlier_use" in settings else {}


def _chosen(entries: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The candidates that are meant: the first ones of each strategy that is named, or all."""
    counts, taken = _counts(settings), Counter[str]()
    for entry in entries:
        taken[entry["strategy"]] += 1
        if not counts or taken[entry["strategy"]] <= counts.get(entry["strategy"], 0):
            yield entry


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    return Candidate(Earlier.name, **{name: entry[name] for name in KEPT})


def _fits(candidate: Candidate, group: Group, tools: Tools) -> bool:
    rows = declared(tools.tokenizer).rows
    return (
        len(group.prompt_ids) + len(candidate.ids) <= tools.context
        and candidate.ids != []
        and (rows is None or max(candidate.ids) < rows)
    )


STRATEGY = Earlier()
