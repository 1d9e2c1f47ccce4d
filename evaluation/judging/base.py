"""What is judged, what comes of it, and what every judge can do. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from data.chat.settings import OPENAI_URL, check_chat_options, require_number
from data.command.errors import UserError
from data.command.options import option

# "AB": the answer comes first. The paper asks once and does not say which of the two is A: we take the model's answer.
ORDERS = {"both": ("AB", "BA"), "paper": ("AB",)}
PRICES = ("input_price", "output_price")


@dataclass(frozen=True)
class JudgeOptions:
    """Options of the judge, `--judge.KEY VALUE`. The key of the API comes from $OPENAI_API_KEY."""

    model: list[str] = option(
        [], "name of a chat model that the API serves; several are a panel, whose majority decides", metavar="NAME"
    )
    base_url: str = option(OPENAI_URL, "address of any OpenAI-compatible server", decides=False, metavar="URL")
    template: str = option("dolly", "the question: dolly, wiki or a file with three fields {}", metavar="NAME|FILE")
    orders: str = option("both", "both orders of the two answers, or the paper's one", metavar="both|paper")
    temperature: float | None = option(0.0, "of its sampling; none: not sent, as reasoning models want it")
    max_tokens: int = option(8, "length of a verdict, at most")
    max_completion_tokens: int | None = option(
        None, "sent in place of max_tokens: for reasoning models, whose thinking counts too"
    )
    seed: int | None = option(None, "of its sampling, sent if given")
    concurrency: int = option(16, "requests at a time", decides=False)
    timeout: float = option(60.0, "seconds to wait for an answer", decides=False, metavar="SECONDS")
    retries: int = option(8, "of a request that fails", decides=False)
    max_requests: int | None = option(None, "cap of one run, of all judges together", decides=False)
    max_cost: float | None = option(None, "cap of one run, likewise, in the currency of the prices", decides=False)
    input_price: list[float] | None = option(None, "per million tokens; of a panel one, or one each", decides=False)
    output_price: list[float] | None = option(None, "per million tokens, likewise", decides=False)
    reward_model: str | None = option(
        None,
        "directory or hub id of a local reward model, which then is the judge; takes no other option",
        metavar="PATH",
    )

    def check(self) -> None:
        """Raise UserError for options that do not fit together or are out of range."""
        if self.reward_model is not None:
            given = [key for key, value in asdict(self).items() if value != getattr(JudgeOptions(), key)]
            if others := [key for key in given if key != "reward_model"]:
                raise UserError(f"--judge.reward_model takes no other option, got --judge.{others[0]}. Leave one out.")
            return
        if not self.model:
            raise UserError(
                "a judge needs --judge.model, the name of a chat model that the API serves, or --judge.reward_model."
            )
        if twice := [name for number, name in enumerate(self.model) if name in self.model[:number]]:
            raise UserError(f"--judge.model names '{twice[0]}' twice. Name each judge of a panel once.")
        if self.orders not in ORDERS:
            raise UserError(f"--judge.orders must be {' or '.join(ORDERS)}, got {self.orders!r}.")
        options = asdict(self)
        check_chat_options("judge", options)
        for key in ("max_requests", "max_cost", "seed"):
            if options[key] is not None:
                require_number("judge", options, key, 0, whole=key != "max_cost")
        if self.max_completion_tokens is not None:
            require_number("judge", options, "max_completion_tokens", 1, whole=True)
            if self.max_tokens != JudgeOptions.max_tokens:
                raise UserError("--judge.max_completion_tokens is sent in place of --judge.max_tokens. Give one.")
        for key in PRICES:
            for price in options[key] or ():
                require_number("judge", {key: price}, key, 0)
            if options[key] is not None and len(options[key]) not in (1, len(self.model)):
                raise UserError(
                    f"--judge.{key} lists {len(options[key])} prices for {len(self.model)} models. Give one price, or "
                    "one for each --judge.model."
                )
        prices = [options[key] is not None for key in PRICES]
        if any(prices) != all(prices) or (self.max_cost is not None and not all(prices)):
            raise UserError(
                "costs need both --judge.input_price and --judge.output_price, each per million tokens; for a server "
                "that takes no money leave --judge.max_cost and both prices out."
            )

    def prices(self) -> list[tuple[float | None, float | None]]:
        """The prices of each model, of input and of output."""
        ins, outs = self.input_price or [None], self.output_price or [None]
        return [(ins[n % len(ins)], outs[n % len(outs)]) for n in range(len(self.model))]


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
        reason: why it is not judged, or is a tie without being asked; of a panel how it voted.
        votes: of a panel, the outcome of each judge in its order.
    """

    score: float | None
    flipped: bool = False
    verdicts: tuple[str, ...] = ()
    reason: str = ""
    votes: tuple["Outcome", ...] = ()


SAME = Outcome(0.5, reason="the answers are the same")
REFUSAL, FILTERED = "the API refuses the question", "the API's content filter cut the verdict"
UNPARSED = "the verdict cannot be parsed"
# Why a verdict that was given counts for nothing. A refusal is no verdict.
UNREADABLE = (FILTERED, UNPARSED)


class Asked(Protocol):
    """What a judge must know of a prompt, as groups and comparisons have it."""

    @property
    def query(self) -> str:
        """What a person asked."""
        ...

    @property
    def messages(self) -> list[dict[str, str]] | None:
        """Messages of a chat that make up the query; None where it is none."""
        ...


class Judge(Protocol):
    """What every judge can do: compare answers."""

    @property
    def members(self) -> Sequence[str]:
        """Names of a panel's judges, in the order of an outcome's votes; none of a judge that is alone."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the outcomes, for a report; no key in it."""
        ...

    def look_at(self, prompts: Sequence[Asked]) -> None:
        """Raise UserError for prompts that it could not judge answers to; called before any is answered."""
        ...

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        """The outcome of each comparison. Raises UserError; run again, it goes on where it stopped."""
        ...

    def spent(self) -> Mapping[str, Any]:
        """What the judge took so far, for a report, see `ChatJudge.spent`; empty of a judge that sends no requests."""
        ...

    def drop(self) -> None:
        """Free what a judge's model takes; it is loaded again where it is needed."""
        ...
