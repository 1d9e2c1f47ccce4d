"""A chat model as judge, which is asked in both orders of the two answers."""

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.chat.budget import Budget, Tokens
from data.chat.client import Answer, ChatAPI, read_key
from data.chat.settings import checked_url, public_url
from data.command.cleaning import storable
from data.command.errors import UserError
from data.command.terminal import one_line
from data.command.trackers import report
from data.command.wording import counted, duration
from data.storage import sha256
from evaluation.judging.base import (
    FILTERED,
    ORDERS,
    REFUSAL,
    SAME,
    UNPARSED,
    Asked,
    Comparison,
    JudgeOptions,
    Outcome,
)
from evaluation.judging.interrupts import stopping_at_signals
from evaluation.judging.question import parse_verdict, read_template
from evaluation.judging.verdicts import Verdict, Verdicts

log = logging.getLogger(__name__)

REFUSED = "refused"
PROGRESS_SECONDS = 10.0
LONGEST_QUOTE = 60  # characters of a judge's words in a reason
# What to do where a server does not take what every request of ours has.
REMEDIES = {
    "max_tokens": "Give --judge.max_completion_tokens N: all that it may think and say, e.g. 4096.",
    "max_completion_tokens": "Leave --judge.max_completion_tokens out and give --judge.max_tokens N.",
    "temperature": "Give --judge.temperature none.",
    "seed": "Leave --judge.seed out.",
}


@dataclass(frozen=True)
class Question:
    """One request: a comparison in one order.

    Attributes:
        key: see Verdict.
        shown: "AB" if the answer comes first, else "BA".
    """

    key: str
    shown: str
    prompt_sha256: str
    text: str


class ChatJudge:
    """A chat model as judge. What its store holds is not asked again.

    Args:
        options: that have passed their `check`.
        model: one of theirs.
        budget: counts its requests, and caps them.
        store_path: folder of verdicts.sqlite.

    Raises:
        UserError: the key, the template or the store is unusable.
    """

    members: Sequence[str] = ()

    def __init__(self, options: JudgeOptions, model: str, budget: Budget, store_path: str):
        self.options, self.model, self.budget = options, model, budget
        self.address = checked_url("judge", options.base_url)
        self.base_url = public_url(self.address)
        read_key(self.base_url, "judge")
        self.template, self.verdicts = read_template(options.template), Verdicts(store_path)
        # By key, of all questions so far: verdicts, and what the API refused. That may be the fault of a limit that is
        # raised before the next run, so it is not stored.
        self.found: dict[str, Verdict] = {}
        self.refused: dict[str, Verdict] = {}
        self.reused = 0

    def drop(self) -> None:
        """Close the file of verdicts, which opens again where it is needed; a chat judge holds no model."""
        self.verdicts.close()

    def look_at(self, prompts: Sequence[Asked]) -> None:
        """Do nothing: any text can be asked about, and what the API refuses is counted."""

    def identity(self) -> dict[str, Any]:
        """What decides the verdicts; base_url is that of this run, kept verdicts may come from another, see `spent`."""
        template = {"template": self.template.name, "template_sha256": self.template.sha256}
        return {**self._sampling(), **template, "orders": self.options.orders, "base_url": self.base_url}

    def spent(self) -> dict[str, Any]:
        """What the verdicts took, whichever run asked for them, and what this run sent.

        verdicts: used so far, each once; input_tokens and output_tokens: theirs, as the API reported them;
        without_tokens: those of which it reported none; cost: of these tokens at the prices given, None without
        prices; unparsed: those that name no answer; refused: questions that the API refused in this run; base_urls:
        where the verdicts came from. this_run: requests sent, retries among them; reused: verdicts that were there;
        input_tokens, output_tokens; cost: the most that its requests can have cost.
        """
        counted = [v for v in self.found.values() if v.input_tokens is not None and v.output_tokens is not None]
        used = Tokens(sum(v.input_tokens or 0 for v in counted), sum(v.output_tokens or 0 for v in counted))
        priced = self.budget.input_price is not None
        return {
            "verdicts": len(self.found),
            "input_tokens": used.input,
            "output_tokens": used.output,
            "without_tokens": len(self.found) - len(counted),
            "cost": self.budget.price(used) if priced else None,
            "unparsed": sum(read(verdict)[0] == "?" for verdict in self.found.values()),
            "refused": len(self.refused),
            "base_urls": sorted({verdict.base_url for verdict in self.found.values()}),
            "this_run": {
                "requests": self.budget.requests,
                "reused": self.reused,
                "input_tokens": self.budget.used.input,
                "output_tokens": self.budget.used.output,
                "cost": self.budget.cost if priced else None,
            },
        }

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        asked = [self._questions(comparison) for comparison in comparisons]
        questions = {question.key: question for some in asked for question in some}
        known = self.verdicts.find(questions)
        self._note_reuse(known)
        missing = [q for key, q in questions.items() if key not in known and key not in self.refused]
        if missing:
            self._ask(missing)
            known = self.verdicts.find(questions)  # what counts is what the store holds
            self.found |= known
        known = {**self.refused, **known}
        return [outcome([(q.shown, known[q.key]) for q in some]) if some else SAME for some in asked]

    def _note_reuse(self, known: Mapping[str, Verdict]) -> None:
        """Count verdicts that were there, and warn of those that another server gave."""
        new = [verdict for key, verdict in known.items() if key not in self.found]
        self.reused += len(new)
        self.found |= known
        elsewhere = Counter(v.base_url for v in new if v.base_url != self.base_url)
        if elsewhere:
            log.warning(
                "judge: %d of %d stored verdicts that are used again came from another server than %s: %s",
                elsewhere.total(), len(new), self.base_url,
                ", ".join(f"{number} from {url}" for url, number in sorted(elsewhere.items())),
            )  # fmt: skip

    def _sampling(self) -> dict[str, Any]:
        limit = "max_tokens" if self.options.max_completion_tokens is None else "max_completion_tokens"
        return {"model": self.model, **{key: getattr(self.options, key) for key in ("temperature", limit, "seed")}}

    def _questions(self, comparison: Comparison) -> list[Question]:
        """One for each order; none if there is nothing to compare."""
        if comparison.answer.strip() == comparison.other.strip():
            return []
        questions = []
        for shown in ORDERS[self.options.orders]:
            pair = (comparison.answer, comparison.other)
            text = self.template.fill(comparison.query, *(pair if shown == "AB" else pair[::-1]))
            decides = {**self._sampling(), "messages": [{"role": "user", "content": text}]}
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
            prompt_sha256 = sha256(storable(comparison.query).encode())
            questions.append(Question(key, shown, prompt_sha256, text))
        return questions

    def _ask(self, questions: list[Question]) -> None:
        """Ask, and keep each answer when it comes.

        Raises:
            UserError: see `ChatAPI.ask`; or all are refused and nothing was ever answered, so that it is no matter of
                one question.
            KeyboardInterrupt, SystemExit: of SIGINT and SIGTERM, when the requests under way are answered and kept.
        """
        log.info("judge: asking %s %s", self.model, counted(len(questions), "question"))
        keeper = Keeper(self.verdicts, len(questions), self.budget)

        async def keep(index: int, answer: Answer) -> None:
            verdict = self._verdict(questions[index], answer)
            if answer.refusal:
                self.refused[verdict.key] = verdict
            else:
                await keeper.keep(verdict)

        asyncio.run(self._ask_all(questions, keep))
        if not keeper.kept and not self.found and self.refused:
            raise UserError(
                f"{self.base_url} takes every request for a bad one "
                f"({next(iter(self.refused.values())).raw}). Check the --judge options."
            )
        keeper.report()
        if keeper.cut:
            limit = "max_tokens" if self.options.max_completion_tokens is None else "max_completion_tokens"
            log.warning(
                "judge: %d of %d verdicts of %s were cut at --judge.%s %d before they named an answer; a model that "
                "thinks first needs some thousand: --judge.max_completion_tokens 4096",
                keeper.cut, keeper.kept, self.model, limit, getattr(self.options, limit),
            )  # fmt: skip

    async def _ask_all(self, questions: list[Question], keep: Any) -> None:
        sending = ("temperature", "max_tokens", "max_completion_tokens", "concurrency", "timeout", "retries")
        options = {key: getattr(self.options, key) for key in sending}
        options |= {"budget": self.budget, "group": "judge", "remedies": REMEDIES}
        async with ChatAPI(self.model, self.address, **options) as api:

            def stop(error: BaseException) -> None:
                log.warning(
                    "judge: interrupted; waiting for %s under way, at most %s. Ctrl+C ends at once.",
                    counted(api.running, "request"), duration(self.options.timeout),
                )  # fmt: skip
                api.stop(error)

            with stopping_at_signals(stop):
                await api.ask((question.text for question in questions), [self.options.seed] * len(questions), keep)

    def _verdict(self, question: Question, answer: Answer) -> Verdict:
        return Verdict(
            key=question.key,
            model=self.model,
            template_sha256=self.template.sha256,
            prompt_sha256=question.prompt_sha256,
            shown=question.shown,
            raw=answer.refusal or answer.text,
            verdict="?" if answer.refusal else parse_verdict(answer.text),
            finish_reason=REFUSED if answer.refusal else answer.finish_reason,
            input_tokens=answer.tokens.input if answer.tokens else None,
            output_tokens=answer.tokens.output if answer.tokens else None,
            base_url=self.base_url,
            time=time.time(),
        )


class Keeper:
    """Writes verdicts as they come, and says now and then how far it is.

    A commit waits for the disk. Verdicts that come meanwhile go into the next one together, and requests go on.
    """

    def __init__(self, verdicts: Verdicts, expected: int, budget: Budget):
        self.verdicts, self.expected, self.budget = verdicts, expected, budget
        self.waiting: list[Verdict] = []
        self.writing = asyncio.Lock()
        self.kept, self.cut, self.reported = 0, 0, time.monotonic()

    async def keep(self, verdict: Verdict) -> None:
        """The verdict is on the disk when this returns. Raises UserError if it cannot be written."""
        self.waiting.append(verdict)
        async with self.writing:
            if verdict not in self.waiting:  # the one before us took it along
                return
            batch = list(self.waiting)
            await asyncio.to_thread(self.verdicts.add, batch)
            self.waiting = self.waiting[len(batch) :]
            self.kept += len(batch)
            self.cut += sum(v.verdict == "?" and v.finish_reason == "length" for v in batch)
        if time.monotonic() - self.reported > PROGRESS_SECONDS:
            self.report()

    def report(self) -> None:
        """Log how far the judge is, and tell trackers."""
        self.reported = time.monotonic()
        log.info("judge: %d of %d questions answered; %s", self.kept, self.expected, self.budget)
        report(
            {
                "judge/answered": self.kept,
                "judge/questions": self.expected,
                "judge/requests": self.budget.requests,
                "judge/input_tokens": self.budget.used.input,
                "judge/output_tokens": self.budget.used.output,
                "judge/cost": None if self.budget.input_price is None else self.budget.cost,
            }
        )


def read(verdict: Verdict) -> tuple[str, str]:
    """ "A", "B" or "?" with the reason; parsed anew, so that a better parser needs no new answers."""
    if verdict.finish_reason == REFUSED:
        return "?", f"{REFUSAL}: {verdict.raw}"
    if verdict.finish_reason == "content_filter":
        return "?", FILTERED
    letter = parse_verdict(verdict.raw)
    quote = one_line(verdict.raw)[:LONGEST_QUOTE]
    return letter, f'{UNPARSED}: "{quote}"' if letter == "?" else ""


def outcome(verdicts: Sequence[tuple[str, Verdict]]) -> Outcome:
    """The outcome of the verdicts on one comparison, each with "AB" if its answer was shown first, else "BA".

    All name the same answer: it wins. They differ: a tie, flipped. One cannot be read: not judged.
    """
    read_ones = [read(verdict) for _, verdict in verdicts]
    letters = tuple(letter for letter, _ in read_ones)
    if "?" in letters:
        return Outcome(None, verdicts=letters, reason=read_ones[letters.index("?")][1])
    wins = {shown[("A", "B").index(letter)] == "A" for (shown, _), letter in zip(verdicts, letters, strict=True)}
    if len(wins) == 2:
        return Outcome(0.5, flipped=True, verdicts=letters)
    return Outcome(float(wins.pop()), verdicts=letters)
