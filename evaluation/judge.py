"""Win or loss of an answer against another, by a judge; here by a chat model, which is asked in both orders."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.budget import Budget
from data.chat_api import OPENAI_URL, Answer, ChatAPI, read_key
from data.chat_options import check_chat_options, known_options, require_number
from data.errors import UserError
from data.storage import sha256
from evaluation.question import Template, parse_verdict, read_template
from evaluation.store import Store
from evaluation.verdicts import Verdict, Verdicts

log = logging.getLogger(__name__)

# Key of --judge -> default.
DEFAULTS: dict[str, Any] = {
    "model": None,
    "base_url": OPENAI_URL,
    "template": "dolly",
    "orders": "both",
    "temperature": 0.0,
    "max_tokens": 8,
    "seed": None,
    "concurrency": 16,
    "timeout": 60.0,
    "retries": 8,
    "max_requests": None,
    "max_cost": None,
    "input_price": None,
    "output_price": None,
    "reward_model": None,
}
# "AB": the answer comes first. The paper asks once, with the model's answer as A.
ORDERS = {"both": ("AB", "BA"), "paper": ("AB",)}
PRICES = ("input_price", "output_price")
REFUSED = "refused"
PROGRESS_SECONDS = 10.0
LONGEST_QUOTE = 60  # characters of a judge's words in a reason


@dataclass(frozen=True)
class Comparison:
    """An answer and the other one that it is compared with, both to one prompt.

    Attributes:
        query: what a person asked, see `data.tasks.query`.
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


class Judge(Protocol):
    """Compares answers."""

    def identity(self) -> dict[str, Any]:
        """What decides the outcomes, for a report; no key in it."""
        ...

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        """The outcome of each. Raises UserError; run again, it goes on where it stopped."""
        ...

    def spent(self) -> dict[str, float | None]:
        """What this judge took so far.

        requests sent; questions whose verdict was there (reused) or could not be parsed or was refused (unparsed);
        input_tokens and output_tokens that the API reported; cost: the most it can have been, None without prices.
        """
        ...


def make_judge(options: dict[str, Any], store_path: str) -> Judge:
    """The judge of --judge.KEY VALUE options, see DEFAULTS.

    model, base_url: of the chat API; the key comes from $OPENAI_API_KEY. template: "dolly", "wiki" or a file. orders:
    "both" or "paper". temperature (null: not sent), max_tokens, seed (sent if given): of its sampling. concurrency,
    timeout (in seconds), retries: of the requests. max_requests, max_cost: caps of one run. input_price, output_price:
    per million tokens. reward_model: directory or hub id of a reward model, which then is the judge; it takes no other
    option.

    Args:
        store_path: folder of verdicts.sqlite.

    Raises:
        UserError: an option is unknown or out of range, or the key, the template, the model or the store is unusable.
    """
    checked = known_options("judge", options, DEFAULTS)
    if checked["reward_model"] is not None:
        from evaluation.reward_judge import RewardJudge

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
        options: all of DEFAULTS, checked.
    """

    def __init__(self, options: dict[str, Any], template: Template, verdicts: Verdicts):
        self.options, self.template, self.verdicts = options, template, verdicts
        caps = {key: options[key] for key in ("max_requests", "max_cost", *PRICES)}
        self.budget = Budget(**caps)
        self.reused = 0
        self.unparsed: set[str] = set()

    def identity(self) -> dict[str, Any]:
        template = {"template": self.template.name, "template_sha256": self.template.sha256}
        return {**self._sampling(), **template, "orders": self.options["orders"]}

    def spent(self) -> dict[str, float | None]:
        return {
            "requests": self.budget.requests,
            "reused": self.reused,
            "input_tokens": self.budget.used.input,
            "output_tokens": self.budget.used.output,
            "cost": None if self.budget.input_price is None else self.budget.cost,
            "unparsed": len(self.unparsed),
        }

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        asked = [self._questions(comparison) for comparison in comparisons]
        questions = {question.key: question for some in asked for question in some}
        known = self.verdicts.find(questions)
        self.reused += len(known)
        missing = [question for key, question in questions.items() if key not in known]
        if missing:
            self._ask(missing, first=not known)
        # What counts is what the store holds.
        found = self.verdicts.find(questions)
        self.unparsed |= {key for key, verdict in found.items() if read(verdict)[0] == "?"}
        return [outcome([(q.shown, found[q.key]) for q in some]) if some else SAME for some in asked]

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

    def _ask(self, questions: list[Question], *, first: bool) -> None:
        """Ask, and keep each answer when it comes.

        Args:
            first: the store has no verdict beside these: if all are refused it is not a matter of one question.
        """
        log.info("judge: asking %s %d questions", self.options["model"], len(questions))
        keeper = Keeper(self.verdicts, len(questions), self.budget)
        refused: list[Verdict] = []

        async def keep(index: int, answer: Answer) -> None:
            verdict = self._verdict(questions[index], answer)
            if answer.refusal:
                refused.append(verdict)
            else:
                await keeper.keep(verdict)

        try:
            asyncio.run(self._ask_all(questions, keep))
        finally:
            if keeper.kept or not first:
                self.verdicts.add(refused)
        if refused and first and not keeper.kept:
            raise UserError(
                f"{self.options['base_url']} takes every request for a bad one ({refused[0].raw}). Check the --judge "
                "options."
            )
        keeper.report()

    async def _ask_all(self, questions: list[Question], keep: Any) -> None:
        options = {key: self.options[key] for key in ("temperature", "max_tokens", "concurrency", "timeout", "retries")}
        model, base_url = self.options["model"], self.options["base_url"]
        async with ChatAPI(model, base_url, **options, budget=self.budget, group="judge") as api:
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
            batch, self.waiting = self.waiting, []
            await asyncio.to_thread(self.verdicts.add, batch)
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
        return "?", f"the API refuses the question: {verdict.raw}"
    if verdict.finish_reason == "content_filter":
        return "?", "the API's content filter cut the verdict"
    letter = parse_verdict(verdict.raw)
    quote = " ".join(verdict.raw.split())[:LONGEST_QUOTE]
    return letter, f'the verdict cannot be parsed: "{quote}"' if letter == "?" else ""


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
