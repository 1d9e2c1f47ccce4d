"""What is judged, what comes of it, and what every judge can do. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from data.chat.settings import OPENAI_URL, check_chat_options, require_number
from data.command.errors import UserError
from data.command.options import option
from data.schema import Group

# "AB": the answer comes first. The paper asks once and does not say which of the two is A: we take the model's answer.
ORDERS = {"both": ("AB", "BA"), "paper": ("AB",)}
PRICES = ("input_price", "output_price")


@dataclass(frozen=True)
class JudgeOptions:
    """Options of the judge, `--judge.KEY VALUE`. The key of the API comes from $OPENAI_API_KEY."""

    model: str | None = option(None, "name of a chat model that the API serves", metavar="NAME")
    base_url: str = option(OPENAI_URL, "address of any OpenAI-compatible server", decides=False, metavar="URL")
    template: str = option("dolly", "the question: dolly, wiki or a file with three fields {}", metavar="NAME|FILE")
    orders: str = option("both", "both orders of the two answers, or the paper's one", metavar="both|paper")
    temperature: float | None = option(0.0, "of its sampling; null: not sent")
    max_tokens: int = option(8, "length of a verdict, at most")
    seed: int | None = option(None, "of its sampling, sent if given")
    concurrency: int = option(16, "requests at a time", decides=False)
    timeout: float = option(60.0, "seconds to wait for an answer", decides=False, metavar="SECONDS")
    retries: int = option(8, "of a request that fails", decides=False)
    max_requests: int | None = option(None, "cap of one run", decides=False)
    max_cost: float | None = option(None, "cap of one run, in the currency of the prices", decides=False)
    input_price: float | None = option(None, "per million tokens", decides=False)
    output_price: float | None = option(None, "per million tokens", decides=False)
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
        if self.orders not in ORDERS:
            raise UserError(f"--judge.orders must be {' or '.join(ORDERS)}, got {self.orders!r}.")
        options = asdict(self)
        check_chat_options("judge", options)
        for key in ("max_requests", "max_cost", "seed", *PRICES):
            if options[key] is not None:
                require_number("judge", options, key, 0, whole=key in ("max_requests", "seed"))
        prices = [options[key] is not None for key in PRICES]
        if any(prices) != all(prices) or (self.max_cost is not None and not all(prices)):
            raise UserError(
                "costs need both --judge.input_price and --judge.output_price, each per million tokens; for a server "
                "that takes no money leave --judge.max_cost and both prices out."
            )


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
    """What every judge can do: compare answers."""

    def identity(self) -> dict[str, Any]:
        """What decides the outcomes, for a report; no key in it."""
        ...

    def look_at(self, prompts: Sequence[Group]) -> None:
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
