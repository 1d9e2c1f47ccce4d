"""Win or loss of an answer against another, by a judge; here by a chat model, which is asked in both orders."""

import asyncio
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.chat.budget import Budget, Tokens
from data.chat.client import Answer, ChatAPI, read_key
from data.chat.settings import check_chat_options, known_options, require_number
from data.command.errors import UserError
from data.storage import sha256
from evaluation.answers.cache import Store
from evaluation.config import JUDGE
from evaluation.judging.interrupts import stopping_at_signals
from evaluation.judging.question import Template, parse_verdict, read_template
from evaluation.judging.verdicts import Verdict, Verdicts

log = logging.getLogger(__name__)

# "AB": the answer comes first. The paper asks once and does not say which of the two is A: we take the model's answer.
ORDERS = {"both": ("AB", "BA"), "paper": ("AB",)}
PRICES = ("input_price", "output_price")
REFUSED = "refused"
PROGRESS_SECONDS = 10.0
LONGEST_QUOTE = 60  # characters of a judge's words in a reason


@dataclass(frozen=True)
class Comparison:
    """An answer and the other one that it is compared with, both to one prompt.

    Attributes:
        query: what a person asked, see `data.schema.Group`.
        prompt: as the models were given it, if that is another text.
        messages: of a chat, those that the query is made of, each with role and content.
    """

    id: str
    query: str
    answer: str
    other: str
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a judge makes of a comparison.

    Attributes:
        score: 1 the answer wins, 0.5 a tie, 0 the other one wins; None: not judged.
        flipped: the two orders name different answers.
        verdicts: as given, one for each order: "A" for what was shown first, "B", "?" for neither.
        reason: why it is not judged, or is a tie without being asked.
    """

    score: float | None
    flipped: bool = False
    verdicts: tuple[str, ...] = ()
    reason: str = ""


SAME = Outcome(0.5, reason="the answers are the same")
REFUSAL, FILTERED = "the API refuses the question", "the API's content filter cut the verdict"
UNPARSED = "the verdict cannot be parsed"
# Why a verdict that was given counts for nothing. A refusal is no verdict.
UNREADABLE = (FILTERED, UNPARSED)


class Judge(Protocol):
    """Compares answers."""

    def identity(self) -> dict[str, Any]:
        """What decides the outcomes, for a report; no key in it."""
        ...

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        """The outcome of each. Raises UserError; run again, it goes on where it stopped."""
        ...

    def spent(self) -> Mapping[str, Any]:
        """What was taken so far, for a report, see `ChatJudge.spent`; empty of a judge that sends no requests."""
        ...


def make_judge(options: dict[str, Any], store_path: str) -> Judge:
    """The judge of --judge.KEY VALUE options, see JUDGE.

    model, base_url: of the chat API; the key comes from $OPENAI_API_KEY. template: "dolly", "wiki" or a file. orders:
    "both" or "paper". temperature (null: not sent), max_tokens, seed (sent if given): of its sampling. concurrency,
    timeout (in seconds), retries: of the requests. max_requests, max_cost: caps of one run, see Budget. input_price,
    output_price: per million tokens. reward_model: directory or hub id of a reward model, which then is the judge; it
    takes no other option.

    Args:
        store_path: folder of verdicts.sqlite.

    Raises:
        UserError: an option is unknown or out of range, or the key, the template, the model or the store is unusable.
    """
    checked = known_options("judge", options, JUDGE)
    if checked["reward_model"] is not None:
        from evaluation.judging.reward_judge import RewardJudge

        if others := sorted(options.keys() - {"reward_model"}):
            raise UserError(f"--judge.reward_model takes no other option, got --judge.{others[0]}. Leave one out.")
        return RewardJudge(str(checked["reward_model"]), Store(store_path))
    if not isinstance(checked["model"], str) or not checked["model"]:
        raise UserError(
            "a judge needs --judge.model, the name of a chat model that the API serves, or --judge.reward_model."
        )
    if checked["orders"] not in list(ORDERS):
        raise UserError(f"--judge.orders must be {' or '.join(ORDERS)}, got {checked['orders']!r}.")
    check_chat_options("judge", checked)
    for key in ("max_requests", "max_cost", "seed", *PRICES):
        if checked[key] is not None:
            require_number("judge", checked, key, 0, whole=key in ("max_requests", "seed"))
    prices = [checked[key] is not None for key in PRICES]
    if any(prices) != all(prices) or (checked["max_cost"] is not None and not all(prices)):
        raise UserError(
            "costs need both --judge.input_price and --judge.output_price, each per million tokens; for a server that "
            "takes no money leave --judge.max_cost and both prices out."
        )
    read_key(checked["base_url"], "judge")
    return ChatJudge(checked, read_template(str(checked["template"])), Verdicts(store_path))


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
        options: all of JUDGE, checked.
    """

    def __init__(self, options: dict[str, Any], template: Template, verdicts: Verdicts):
        self.options, self.template, self.verdicts = options, template, verdicts
        caps = {key: options[key] for key in ("max_requests", "max_cost", *PRICES)}
        self.budget = Budget(**caps)
        # By key, of all questions so far: verdicts, and what the API refused. That may be the fault of a limit that is
        # raised before the next run, so it is not stored.
        self.found: dict[str, Verdict] = {}
        self.refused: dict[str, Verdict] = {}
        self.reused = 0

    def identity(self) -> dict[str, Any]:
        """base_url is that of this run; what the store held may come from another, see `spent`."""
        template = {"template": self.template.name, "template_sha256": self.template.sha256}
        address = {"base_url": self.options["base_url"]}
        return {**self._sampling(), **template, "orders": self.options["orders"], **address}

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
        elsewhere = Counter(v.base_url for v in new if v.base_url != self.options["base_url"])
        if elsewhere:
            log.warning(
                "judge: %d of %d stored verdicts that are used again came from another server than %s: %s",
                elsewhere.total(), len(new), self.options["base_url"],
                ", ".join(f"{number} from {url}" for url, number in sorted(elsewhere.items())),
            )  # fmt: skip

    def _sampling(self) -> dict[str, Any]:
        settings = {key: self.options[key] for key in ("model", "temperature", "max_tokens", "seed")}
        if settings["temperature"] is not None:
            settings["temperature"] = float(settings["temperature"])  # 0 and 0.0 are one key
        return settings

    def _questions(self, comparison: Comparison) -> list[Question]:
        """One for each order; none if there is nothing to compare."""
        if comparison.answer.strip() == comparison.other.strip():
            return []
        questions = []
        for shown in ORDERS[self.options["orders"]]:
            pair = (comparison.answer, comparison.other)
            text = self.template.fill(comparison.query, *(pair if shown == "AB" else pair[::-1]))
            decides = {**self._sampling(), "messages": [{"role": "user", "content": text}]}
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
            prompt_sha256 = sha256(comparison.query.encode("utf-8", "replace"))
            questions.append(Question(key, shown, prompt_sha256, text))
        return questions

    def _ask(self, questions: list[Question]) -> None:
        """Ask, and keep each answer when it comes.

        Raises:
            UserError: see `ChatAPI.ask`; or all are refused and nothing was ever answered, so that it is no matter of
                one question.
            KeyboardInterrupt, SystemExit: of SIGINT and SIGTERM, when the requests under way are answered and kept.
        """
        log.info("judge: asking %s %d questions", self.options["model"], len(questions))
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
                f"{self.options['base_url']} takes every request for a bad one "
                f"({next(iter(self.refused.values())).raw}). Check the --judge options."
            )
        keeper.report()

    async def _ask_all(self, questions: list[Question], keep: Any) -> None:
        options = {key: self.options[key] for key in ("temperature", "max_tokens", "concurrency", "timeout", "retries")}
        model, base_url = self.options["model"], self.options["base_url"]
        async with ChatAPI(model, base_url, **options, budget=self.budget, group="judge") as api:

            def stop(error: BaseException) -> None:
                log.warning(
                    "judge: interrupted; waiting for %d requests under way, at most %g s. Ctrl+C ends at once.",
                    api.running, self.options["timeout"],
                )  # fmt: skip
                api.stop(error)

            with stopping_at_signals(stop):
                await api.ask((question.text for question in questions), [self.options["seed"]] * len(questions), keep)

    def _verdict(self, question: Question, answer: Answer) -> Verdict:
        return Verdict(
            key=question.key,
            model=self.options["model"],
            template_sha256=self.template.sha256,
            prompt_sha256=question.prompt_sha256,
            shown=question.shown,
            raw=(answer.refusal or answer.text).encode("utf-8", "replace").decode(),
            verdict="?" if answer.refusal else parse_verdict(answer.text),
            finish_reason=REFUSED if answer.refusal else answer.finish_reason,
            input_tokens=answer.tokens.input if answer.tokens else None,
            output_tokens=answer.tokens.output if answer.tokens else None,
            base_url=self.options["base_url"],
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
        self.kept, self.reported = 0, time.monotonic()

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
        if time.monotonic() - self.reported > PROGRESS_SECONDS:
            self.report()

    def report(self) -> None:
        """Log how far it is."""
        self.reported = time.monotonic()
        log.info("judge: %d of %d questions answered; %s", self.kept, self.expected, self.budget)


def read(verdict: Verdict) -> tuple[str, str]:
    """ "A", "B" or "?" with the reason; parsed anew, so that a better parser needs no new answers."""
    if verdict.finish_reason == REFUSED:
        return "?", f"{REFUSAL}: {verdict.raw}"
    if verdict.finish_reason == "content_filter":
        return "?", FILTERED
    letter = parse_verdict(verdict.raw)
    quote = " ".join(verdict.raw.split())[:LONGEST_QUOTE]
    return letter, f'{UNPARSED}: "{quote}"' if letter == "?" else ""


def outcome(verdicts: Sequence[tuple[str, Verdict]]) -> Outcome:
    """Of the verdicts on one comparison, each with "AB" if its answer was shown first, else "BA".

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
