"""What people and clusters see of a running job: groups, rejects, tokens per second, time left."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from data.command.privacy import scrub
from data.command.terminal import say
from data.command.wording import counted, duration, is_or_are
from data.manifest import Manifest, occupancy_of
from data.shard_records import ShardEntry
from negatives_gen.job.attempts import Told
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

# What is said while a stage's worker loads, and of what has been done within a shard (else see `_said`).
LOADING = {
    SAMPLE: "starting the engine (about 60 s)",
    ASK: "preparing to ask the API",
    SCORE: "loading the models that score",
}
DONE = {SAMPLE: "groups sampled", ASK: "answers written", SCORE: "groups scored"}


class Progress:
    """Says after each shard how far the job is.

    Args:
        total: shards of the job.
        done: of them finished by earlier runs.
        log_format: "text", or "json" for one JSON object a line.
    """

    def __init__(self, total: int, done: int, log_format: str):
        self.total, self.done, self.before = total, done, done
        self.json = log_format == "json"
        self.groups = self.rejected = self.tokens = 0
        self.whole: Counter[str] = Counter()  # for trackers: of all runs of the job, rejects by reason among it
        self.slots: dict[str, float] = {"filled": 0.0, "all": 0.0}  # slot-seconds of the engines, of all runs too
        self.spent: Counter[str] = Counter()  # on an API: requests, tokens
        self.started = time.perf_counter()
        self.first: float | None = None  # when the first shard was written
        self._say(
            {"event": "start", "shards": total, "shards_done": done},
            f"{counted(total, 'shard')}, {total - done:,} to do",
        )

    def shard(self, index: int, rows: int, rejected: int, tokens: int, occupancy: float | None = None) -> None:
        """A shard is written: its number, groups, rejects, tokens of negatives, how full the engine was meanwhile."""
        self.done += 1
        self.groups, self.rejected, self.tokens = self.groups + rows, self.rejected + rejected, self.tokens + tokens
        seconds = time.perf_counter() - self.started
        self.first = self.first or time.perf_counter()
        shards = self.done - self.before - 1  # since the first one, or the start of the engine would count as work
        left = None
        if shards or self.done == self.total:
            left = (time.perf_counter() - self.first) / max(1, shards) * (self.total - self.done)
        self._say(
            {
                "event": "shard",
                "shard": index,
                "shards_done": self.done,
                "shards": self.total,
                "groups": self.groups,
                "rejected": self.rejected,
                "tokens": self.tokens,
                "tokens_per_second": round(self.tokens / seconds, 1),
                **({} if occupancy is None else {"occupancy": occupancy}),
                "seconds": round(seconds, 1),
                "seconds_left": None if left is None else round(left, 1),
            },
            f"{self.done:,} of {counted(self.total, 'shard')} written: {counted(self.groups, 'group')}, "
            f"{self.rejected:,} rejected, {counted(self.tokens, 'negative token')}, {self.tokens / seconds:,.0f} "
            "tokens/s with the start counted in"
            f"{'' if occupancy is None else f', engine {occupancy:.0%} occupied'}"
            f"{f', {duration(left)} left' if left and self.done < self.total else ''}",
        )

    def count(self, entry: ShardEntry) -> None:
        """Count a finished shard for trackers, who see one curve of a job that was interrupted."""
        record = entry.record
        self.whole.update(groups=record.rows, rejected=record.rows_rejected, tokens=record.tokens["negatives"])
        self.whole.update(f"rejected_by_reason/{reject.reason}" for reject in entry.rejects)
        for what, seconds in (record.slot_seconds or {}).items():
            self.slots[what] += seconds

    def values(self, entry: ShardEntry) -> dict[str, float | None]:
        """For trackers: how far the job is, with the shard that was written last.

        What is of the shard says so; speed, seconds and what an API took are this run's.
        """
        self.count(entry)
        seconds = time.perf_counter() - self.started
        return {
            "shards": self.done,
            **self.whole,
            "tokens_per_second": self.tokens / seconds,
            "seconds": seconds,
            **{f"shard/seconds/{stage}": value for stage, value in entry.record.seconds.items()},
            "occupancy": occupancy_of([self.slots]),
            "shard/occupancy": entry.record.occupancy,
            **{f"api/{what}": number for what, number in self.spent.items() if self.spent["requests"]},
        }

    def loading(self, stage: str, seconds: float) -> None:
        """A worker loads what a stage needs, for so many seconds by now."""
        what = LOADING[stage]
        text = what if seconds < 1 else f"still {what.partition(' (')[0]}, after {duration(round(seconds))}"
        self._say({"event": "loading", "stage": stage, "seconds": round(seconds, 1)}, text)

    def inside(self, told: Sequence[Told]) -> None:
        """How far stages are within shards."""
        self._say(
            {"event": "progress", "shards": [asdict(one) for one in told]},
            "; ".join(_said(one, self.total) for one in told),
        )

    def _say(self, record: Mapping[str, object], text: str) -> None:
        # On stderr with the log, so that stdout holds the outcome alone.
        say(json.dumps({"time": round(time.time(), 3), **record}) if self.json else text, error=True)


def print_outcome(manifest: Manifest, out: str, log_format: str = "text") -> None:
    """The last words of a job, on stdout."""
    counts, out, occupancy = manifest.counts, scrub(out), manifest.occupancy
    if log_format == "json":
        filled = {} if occupancy is None else {"occupancy": round(occupancy, 4)}
        left_out = {"candidates_left_out": manifest.left_out} if manifest.left_out else {}
        say(json.dumps({"event": "done", "out": out, **counts, **left_out, **filled}))
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by_reason"].items())
    truncated = f", {counts['rows_truncated']} of them cut to the longest length" if counts["rows_truncated"] else ""
    say(
        f"{counted(counts['rows_read'], 'row')} read, {counted(counts['rows_written'], 'group')} written{truncated}, "
        f"{counts['rows_rejected']:,} rejected" + (f" ({reasons})" if reasons else "")
    )
    if left := ", ".join(f"{n} {reason}" for reason, n in manifest.left_out.items()):
        number = sum(manifest.left_out.values())
        say(f"{counted(number, 'candidate')} that these groups' rows list {is_or_are(number)} left out ({left})")
    if occupancy is not None:
        say(f"engine {occupancy:.0%} occupied, over all shards")
    say(f"negative set: {out}")


def _said(told: Told, shards: int) -> str:
    """How far a stage is within a shard, of so many; people count them from 1, the names of their files from 0."""
    if told.signal:
        things = "texts compared"
    elif told.stage == SCORE and told.strategy:
        things = "groups with negatives"
    else:
        things = DONE[told.stage]
    names = ", ".join(name for name in (told.strategy, told.signal, told.part) if name)
    done = f"{told.done:,} of {told.of:,} {things}"
    return f"shard {told.shard + 1:,} of {shards:,}: {done}" + (f" ({names})" if names else "")
