"""What an API may cost: caps on requests and on money, kept by reservation."""

from dataclasses import dataclass
from typing import NamedTuple

MILLION = 1_000_000
# What a server's chat template puts around one message, in tokens, at first guess: role marks, a system message.
TEMPLATE_TOKENS = 256


class Tokens(NamedTuple):
    """Tokens of a request and of its answer."""

    input: int
    output: int


NOTHING = Tokens(0, 0)


@dataclass
class Budget:
    """Counts what is spent on an API and says when the next request might exceed a cap.

    The most that a request can cost is reserved before it is sent. What the answer reports takes the place of that;
    where nothing is known (a time-out, half an answer) the reservation stays.

    Attributes:
        max_requests: requests that may be sent, retries among them; None: any number.
        max_cost: in the currency of the prices; None: any sum.
        input_price: of a million tokens; None where nobody asks for costs.
        output_price: likewise.
        requests: sent.
        used: tokens that answers reported.
        reserved: tokens of requests under way, and of those that may have cost something.
        template_tokens: reserved for what the server adds to a prompt; grows if a server adds more.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None
    requests: int = 0
    used: Tokens = NOTHING
    reserved: Tokens = NOTHING
    template_tokens: int = TEMPLATE_TOKENS

    def dearest(self, prompt: str, max_tokens: int) -> Tokens:
        """The most that a request can take: no tokenizer makes more tokens of a text than it has bytes."""
        return Tokens(len(prompt.encode()) + self.template_tokens, max_tokens)

    def cap_against(self, tokens: Tokens) -> str:
        """The cap that a request of so many tokens might exceed, "max_requests" or "max_cost"; "" if none."""
        if self.max_requests is not None and self.requests >= self.max_requests:
            return "max_requests"
        if self.max_cost is not None and self.price(_sum(self.used, self.reserved, tokens)) > self.max_cost:
            return "max_cost"
        return ""

    def reserve(self, tokens: Tokens) -> None:
        """Count a request that is now sent."""
        self.requests += 1
        self.reserved = _sum(self.reserved, tokens)

    def settle(self, reserved: Tokens, used: Tokens) -> None:
        """Count what a request took instead of what was reserved for it."""
        self.reserved = Tokens(self.reserved.input - reserved.input, self.reserved.output - reserved.output)
        self.used = _sum(self.used, used)
        self.template_tokens += max(0, used.input - reserved.input)

    def price(self, tokens: Tokens) -> float:
        """Of so many tokens; 0 without prices."""
        return (tokens.input * (self.input_price or 0.0) + tokens.output * (self.output_price or 0.0)) / MILLION

    @property
    def cost(self) -> float:
        """The most that everything so far can have cost."""
        return self.price(_sum(self.used, self.reserved))

    def __str__(self) -> str:
        spent = f"{self.requests:,} requests, {self.used.input:,} input and {self.used.output:,} output tokens"
        return spent if self.input_price is None else f"{spent}, a cost of {self.cost:.6g} at most"


def _sum(*tokens: Tokens) -> Tokens:
    return Tokens(sum(t.input for t in tokens), sum(t.output for t in tokens))
