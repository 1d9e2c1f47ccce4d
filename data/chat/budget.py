"""What an API may cost: caps on requests and on money, kept by reservation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from data.command.wording import counted

MILLION = 1_000_000


class Tokens(NamedTuple):
    """Tokens of a request and of its answer."""

    input: int
    output: int


NOTHING = Tokens(0, 0)
# What a server's chat template puts around one message, at first guess: role marks, a system message.
TEMPLATE = Tokens(256, 0)


class Reservation(NamedTuple):
    """What is set aside for the request that was sent as the number-th, from 1."""

    asked: Tokens
    number: int


def asked_tokens(prompt: str, max_tokens: int) -> Tokens:
    """The most that a prompt and its answer take by themselves: no tokenizer makes more tokens than there are bytes."""
    return Tokens(len(prompt.encode()), max_tokens)


@dataclass
class Budget:
    """Counts what is spent on an API and says when the next request might exceed a cap.

    The most that a request can take is reserved before it is sent: what is asked, and what the server may add to that.
    What an answer reports takes the place of the reservation; where nothing is known (a time-out, half an answer) it
    stays. What a server adds is known by its answers only: at most all input tokens of the first, and of each later one
    that took more than was reserved for it. So until the first answer, and from one that took more until a request that
    was sent after it did not, requests are to go one at a time (see `one_at_a_time`).

    `max_requests` holds to the request. `max_cost` holds if the server reports its tokens and adds to no request more
    than to the first that it answers; only what is sent up to that answer may cost more than was thought, and exceed a
    cap that leaves no room for it. If the server adds more later, the requests that are under way then may exceed the
    cap. Of a server that reports no tokens only TEMPLATE can be assumed.

    Attributes:
        max_requests: requests that may be sent, retries among them; None: any number.
        max_cost: in the currency of the prices; None: any sum.
        input_price: of a million tokens; None where nobody asks for costs.
        output_price: likewise.
        requests: sent.
        used: tokens that answers reported.
        open: requests under way, and those that may have cost something.
        asked: tokens of these by themselves.
        added: tokens that the server may add to a request's input and, beyond what was asked for, to its output.
        grown_at: requests that had been sent when an answer last took more than was reserved.
        settled: whether one that was sent later did not.
        others: budgets that the caps are shared with, each of another model's requests; they are spent in turn.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    requests: int = 0
    used: Tokens = NOTHING
    open: int = 0
    asked: Tokens = NOTHING
    added: Tokens = TEMPLATE
    grown_at: int = 0
    settled: bool = False
    others: Sequence["Budget"] = field(default=(), repr=False)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the next request is to wait for those under way."""
        return self.max_cost is not None and not self.settled

    def dearest(self, asked: Tokens) -> Tokens:
        """The most that a request can take, by what is known of the server."""
        return _sum(asked, self.added)

    def cap_against(self, asked: Tokens) -> str:
        """The cap that a request of so many tokens might exceed, "max_requests" or "max_cost"; "" if none."""
        if self.max_requests is not None and self._of_all("requests") >= self.max_requests:
            return "max_requests"
        if self.max_cost is not None and self._of_all("cost") + self.price(self.dearest(asked)) > self.max_cost:
            return "max_cost"
        return ""

    def reserve(self, asked: Tokens) -> Reservation:
        """Count a request that is now sent."""
        self.requests += 1
        self.open += 1
        self.asked = _sum(self.asked, asked)
        return Reservation(asked, self.requests)

    def release(self, reserved: Reservation) -> None:
        """Count a request as free."""
        self.open -= 1
        self.asked = Tokens(self.asked.input - reserved.asked.input, self.asked.output - reserved.asked.output)

    def settle(self, reserved: Reservation, used: Tokens | None) -> None:
        """Count what a request took instead of what was reserved for it; None: its answer does not say."""
        if used is not None:
            self.release(reserved)
            first, dearest = self.used == NOTHING, self.dearest(reserved.asked)
            self.used = _sum(self.used, used)
            within = used.input <= dearest.input and used.output <= dearest.output
            if first or not within:
                over = used.output - reserved.asked.output
                self.added = Tokens(max(self.added.input, used.input), max(self.added.output, over))
            if not first and not within:
                self.grown_at, self.settled = self.requests, False
        if reserved.number > self.grown_at:
            self.settled = True

    def price(self, tokens: Tokens) -> float:
        """The price of so many tokens; 0 without prices."""
        return (tokens.input * (self.input_price or 0.0) + tokens.output * (self.output_price or 0.0)) / MILLION

    @property
    def cost(self) -> float:
        """The most that everything so far can have cost, by what is known of the server."""
        added = Tokens(self.open * self.added.input, self.open * self.added.output)
        return self.price(_sum(self.used, self.asked, added))

    def __str__(self) -> str:
        used = _sum(self.used, *(other.used for other in self.others))
        requests = counted(self._of_all("requests"), "request")
        spent = f"{requests}, {used.input:,} input and {used.output:,} output tokens"
        return spent if self.input_price is None else f"{spent}, a cost of {self._of_all('cost'):.6g} at most"

    def _of_all(self, what: str) -> float:
        return sum(getattr(budget, what) for budget in (self, *self.others))


def _sum(*tokens: Tokens) -> Tokens:
    return Tokens(sum(t.input for t in tokens), sum(t.output for t in tokens))
