"""A client of an OpenAI-compatible chat API: bounded, with retries and caps; errors in one line without the key."""

import asyncio
import base64
import contextlib
import logging
import math
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from data.chat.budget import Budget, Reservation, Tokens, asked_tokens
from data.chat.limits import ENCODINGS, TooLarge, bound_answer
from data.chat.settings import OPENAI_URL, public_url
from data.command.cleaning import storable
from data.command.errors import UserError, first_line
from data.command.privacy import HIDDEN, SHORTEST_SECRET
from data.command.terminal import one_line
from data.command.wording import counted, duration

log = logging.getLogger(__name__)

# What servers without keys, such as `vllm serve`, are sent: the client insists on one.
NO_KEY = "EMPTY"
CLOSED = ("RemoteProtocolError", "ReadError")  # of httpx, or of its successor, whichever the client uses
REFUSALS = (400, 413, 422)  # bad, too large, not to be processed
TRIED_AGAIN = (408, 409, 429)  # and 5xx
# Seconds: a pause is drawn from [0, FIRST_PAUSE * 2^tries], on top of what a server asks for, so that those who failed
# together do not return together.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
LONGEST_ASKED = 3600.0  # however long a server asks to wait: a date may be years away
MOST_TOKENS = 1 << 31  # what reports more is no count
SHORTEST_IN_ERRORS = 4  # characters of a secret that is looked for in what becomes an error, not a negative
LONGEST_REASON = 200  # characters of what a server says
MOST_DOUBLINGS = 16  # of a pause: far above LONGEST_PAUSE, far below what a float holds
LONGEST_TOKEN = 256  # characters: what is longer than that times the tokens asked for is no answer of a model
# What a server says of a parameter that no request to a model may have. A value that is out of range is no such thing.
NOT_SUPPORTED = re.compile(r"\b(?:unsupported|unrecognized|unknown|not\s+support(?:ed)?)\b", re.IGNORECASE)
AGAIN = "Then run the same command again; what is finished is kept."


@dataclass(frozen=True)
class Answer:
    """What the API made of one prompt.

    Attributes:
        text: "" if there is none.
        finish_reason: "stop", "length" or another of the API's.
        refusal: why the API refuses this prompt (400, 413, 422), e.g. that it is too long; else "".
        tokens: that the API says it took; None if it does not say.
    """

    text: str
    finish_reason: str
    refusal: str = ""
    tokens: Tokens | None = None


class NoCompletion(ValueError):
    """An answer that can be read and holds no completion."""


class Stopped(Exception):
    """Another request's error ends the whole work."""


def read_key(base_url: str, group: str = "api") -> str:
    """The key in $OPENAI_API_KEY, or NO_KEY for a server other than OpenAI's. Raises UserError."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and _is_openai(base_url):
        raise UserError(
            f"{base_url} needs a key and $OPENAI_API_KEY is not set. Set it, or give --{group}.base_url of another "
            "server."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError("$OPENAI_API_KEY holds characters that no key can have. Set it to the key alone.")
    return key or NO_KEY


def secrets_of(base_url: str) -> set[str]:
    """The password in an address, alone and with the user's name, and the header that it is sent in."""
    parts = urlsplit(base_url)
    if not parts.password:
        return set()
    user, password = unquote(parts.username or ""), unquote(parts.password)
    header = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {header, password, parts.password, f"{user}:{password}"}


class ChatAPI:
    """A client of one model behind an OpenAI-compatible server, used as `async with`; no more use after an error.

    Args:
        base_url: with user and password, where the server wants them; `base_url` of the object is without.
        concurrency: requests under way at a time, at most.
        timeout: seconds that a request may take, from its first byte to the last of its answer.
        retries: of a request that fails by 408, 409, 429, 5xx, time-out, connection or an answer that cannot be read.
        budget: counts every request sent, and caps them.
        group: what the options are called in errors, "api" for --api.KEY.
        max_completion_tokens: the most that an answer and what is thought before it may take, sent in the place of
            max_tokens, which some models refuse; None: max_tokens is sent.
        remedies: parameter of a request -> what to do where the server says that it does not support it, which ends
            the work; without, that is a refusal like any other.

    Raises:
        UserError: no key, see `read_key`; or the HTTP client takes the address, or a proxy's, for none.
    """

    def __init__(
        self, model: str, base_url: str, *, temperature: float | None, max_tokens: int, concurrency: int,
        timeout: float, retries: int, budget: Budget | None = None, group: str = "api",
        max_completion_tokens: int | None = None, remedies: Mapping[str, str] | None = None,
    ):  # fmt: skip
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self.model, self.base_url, self.group = model, public_url(base_url), group
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        # OpenAI's newer models take the new name only, other servers may know the old one only.
        is_new = max_completion_tokens is not None or _is_openai(base_url)
        self.max_tokens = max_tokens if max_completion_tokens is None else max_completion_tokens
        self.sampling: dict[str, Any] = {"max_completion_tokens" if is_new else "max_tokens": self.max_tokens}
        if temperature is not None:
            self.sampling["temperature"] = temperature
        self.budget, self.remedies = budget or Budget(), remedies or {}
        self.key = read_key(base_url, group)
        self._secrets = secrets_of(base_url) | ({self.key} - {NO_KEY})
        # Each request sent must be one that we count: no retries of the client's, no redirects.
        try:
            http_client = DefaultAsyncHttpxClient(
                follow_redirects=False,
                event_hooks={"response": [bound_answer]},
                headers={"Accept-Encoding": ENCODINGS},
            )
            self.client = AsyncOpenAI(
                base_url=base_url, api_key=self.key, timeout=timeout, max_retries=0, http_client=http_client
            )
        except Exception as error:  # the client's own InvalidURL, of an address or of a proxy's in the environment
            raise UserError(
                f"no client can be made for {self.base_url}: {first_line(error)}. Check --{group}.base_url, and "
                "proxies such as $HTTPS_PROXY."
            ) from None
        self.running = 0
        self.settled = asyncio.Event()  # one of those running has ended
        self.not_before = 0.0  # of the monotonic clock: when the server wants to be asked again
        self.error: BaseException | None = None  # the first
        self.stopping = asyncio.Event()

    async def __aenter__(self) -> "ChatAPI":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(
        self,
        prompts: Iterable[str],
        seeds: Iterable[int | None],
        keep: Callable[[int, Answer], Awaitable[None]] | None = None,
    ) -> list[Answer]:
        """An answer to each prompt, drawn with its seed where the API knows seeds; no seed is sent for None.

        Args:
            keep: awaited with a prompt's number and its answer as soon as it is there.

        Raises:
            UserError: the API cannot be used, or not now, or a cap leaves no room. No more requests are sent then;
                those under way are waited for, and what they bring is kept.
            BaseException: what `stop` was given, or whatever else goes wrong, in the same way.
        """
        waiting = enumerate(zip(prompts, seeds, strict=True))
        answers: dict[int, Answer] = {}

        async def work() -> None:
            try:
                for index, (prompt, seed) in waiting:  # shared: a worker takes the next one when it is free
                    answers[index] = await self._answer(prompt, seed)
                    if keep:
                        await keep(index, answers[index])
            except Stopped:
                pass
            except Exception as error:  # whatever it is, what others have under way is paid for
                self.stop(error)

        workers = [asyncio.create_task(work()) for _ in range(self.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:  # where this is interrupted
                worker.cancel()
        if self.error:
            raise self.error
        return [answers[index] for index in range(len(answers))]

    def stop(self, error: BaseException) -> None:
        """Send no more requests; `ask` waits for those under way, keeps what they bring, and raises the error."""
        self.error = self.error or error
        self.stopping.set()

    async def _answer(self, prompt: str, seed: int | None) -> Answer:
        """Asks until there is an answer. Raises UserError, and Stopped once the work ends."""
        import openai

        prompt = storable(prompt)
        asked = asked_tokens(prompt, self.max_tokens)
        tries = 0
        while True:
            reserved = await self._reserve(asked)
            try:
                return await self._send(prompt, seed, reserved)
            except (openai.OpenAIError, ValueError, TimeoutError) as error:
                wanted = 0.0
                if isinstance(error, openai.APIStatusError):
                    if error.status_code in REFUSALS:
                        if unsupported := unsupported_parameter(error.body, self.remedies):
                            raise self._unsupported(unsupported, error) from None
                        return Answer("", "", refusal=self._reason(error))
                    if error.status_code not in TRIED_AGAIN and error.status_code < 500:
                        raise self._explained(error) from None  # a cause would carry the request with its key
                    wanted = asked_pause(error.response.headers)
                if tries == self.retries:
                    raise self._explained(error) from None
            until = time.monotonic() + wanted
            if until > self.not_before + LONGEST_PAUSE and wanted > LONGEST_PAUSE:  # once for all requests under way
                log.warning("%s asks to be left alone for %s; waiting", self.base_url, duration(wanted))
            self.not_before = max(self.not_before, until)
            await self._pause_for_server(tries)
            tries += 1

    async def _reserve(self, asked: Tokens) -> Reservation:
        """Room in the budget for a request; waits until the server wants one, and while those under way decide."""
        while True:
            await self._pause(0)
            while self.not_before > time.monotonic():
                await self._pause_for_server(0)
            if not (self.running and self.budget.one_at_a_time):
                cap = self.budget.cap_against(asked)
                if not cap:
                    return self.budget.reserve(asked)
                if cap == "max_requests" or not self.running:
                    raise self._spent(cap)
            self.settled.clear()
            await self.settled.wait()

    async def _send(self, prompt: str, seed: int | None, reserved: Reservation) -> Answer:
        """One request. What it took is settled if there is an answer, or if it is refused: then it was free."""
        import openai

        extra: dict[str, Any] = {} if seed is None else {"seed": seed}
        self.running += 1
        try:
            async with asyncio.timeout(self.timeout):  # the client's own is per read: an answer in drops has no end
                completion = await self.client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], **self.sampling, **extra
                )
            answer = self._read(completion)
            self.budget.settle(reserved, answer.tokens)
            return answer
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code != 408:
                self.budget.release(reserved)
            raise
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        finally:
            self.running -= 1
            self.settled.set()

    def _read(self, completion: Any) -> Answer:
        """The completion that a response holds. Raises NoCompletion if it holds none."""
        try:
            choice = completion.choices[0]
            text = choice.message.content
        except (AttributeError, IndexError, KeyError, TypeError):
            raise NoCompletion("no message") from None
        if not isinstance(text, str | None):
            raise NoCompletion("no text")
        usage = getattr(completion, "usage", None)
        counts: list[Any] = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        tokens = Tokens(*counts) if all(type(count) is int and 0 <= count < MOST_TOKENS for count in counts) else None
        text = self._clean(text or "")  # null: a filter took it away, or the model thought for all its tokens
        longest = self.max_tokens * LONGEST_TOKEN
        reason = "length" if len(text) > longest else getattr(choice, "finish_reason", None)
        return Answer(text[:longest], self._clean(str(reason))[:LONGEST_REASON], tokens=tokens)

    async def _pause_for_server(self, tries: int) -> None:
        """Wait until the server wants to be asked, and a random while on top."""
        spread = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, MOST_DOUBLINGS)))
        await self._pause(max(0.0, self.not_before - time.monotonic()) + spread)

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the work ends. Raises Stopped."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), seconds)
        if self.error:
            raise Stopped

    def _spent(self, cap: str) -> UserError:
        return UserError(
            f"--{self.group}.{cap} {getattr(self.budget, cap)} leaves no room for another request to {self.base_url}: "
            f"{self.budget} so far. What is finished is kept. Raise --{self.group}.{cap} or run the same command "
            "again, which has the whole cap anew."
        )

    def _unsupported(self, parameter: str, error: Exception) -> UserError:
        return UserError(
            f"{self.base_url} does not take {parameter} of '{self.model}' ({self._reason(error)}). "
            f"{self.remedies[parameter]}"
        )

    def _explained(self, error: Exception) -> UserError:
        """A client's error in one line: what, where, what to do."""
        import openai

        if isinstance(error.__cause__, TooLarge):  # some versions of the client wrap what a hook raises
            error = error.__cause__
        url, option, tried = self.base_url, f"--{self.group}", f"after {counted(self.retries, 'retry', 'retries')}"
        if isinstance(error, openai.APITimeoutError | TimeoutError):
            return UserError(
                f"{url} gave no answer within {duration(self.timeout)} {tried}. Raise {option}.timeout or lower "
                f"{option}.concurrency. {AGAIN}"
            )
        if isinstance(error, openai.APIConnectionError):
            if type(error.__cause__).__name__ in CLOSED:
                what = f"closes the connection before its answer is whole, {tried}. See to the server"
            else:
                what = f"cannot be reached {tried}. Check {option}.base_url and that the server runs"
            return UserError(f"{url} {what}. {AGAIN}")
        if isinstance(error, NoCompletion):
            return UserError(
                f"what {url} answers is no chat completion. Check {option}.base_url; it mostly ends in /v1."
            )
        if not isinstance(error, openai.APIStatusError):
            return UserError(
                f"{url} gave an answer that cannot be read: {self._reason(error)}. Check {option}.base_url."
            )
        status, reason = error.status_code, self._reason(error)
        if 300 <= status < 400:
            return UserError(f"{url} redirects to another address ({status}). Give that one as {option}.base_url.")
        if status in (401, 403):  # what servers say to that may repeat the key
            return UserError(f"{url} refuses the key ({status}). Set $OPENAI_API_KEY to a key for '{self.model}'.")
        if status == 404:
            return UserError(
                f"{url} has no chat model '{self.model}' (404: {reason}). Check {option}.model and {option}.base_url; "
                "the latter mostly ends in /v1."
            )
        if status == 429:
            return UserError(
                f"{url} still has its rate limit or quota exceeded {tried} (429: {reason}). Lower {option}.concurrency "
                f"or raise {option}.retries. {AGAIN}"
            )
        if status >= 500:
            return UserError(f"{url} still fails {tried} ({status}: {reason}). See to the server. {AGAIN}")
        return UserError(f"{url} refuses the request ({status}: {reason}). Check the {option} options.")

    def _reason(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        reason = one_line(self._clean(str(message or first_line(error)), SHORTEST_IN_ERRORS))
        return reason[:LONGEST_REASON].rstrip(".")

    def _clean(self, text: str, shortest: int = SHORTEST_SECRET) -> str:
        """What a server says, as it may be kept: valid text, without our key and password, which it may echo.

        Args:
            shortest: of a secret in characters; a shorter one, such as the key `none`, stands in innocent text.
        """
        text = storable(text)
        for secret in sorted(self._secrets, key=len, reverse=True):  # one may hold another
            if len(secret) >= shortest:
                text = text.replace(secret, HIDDEN)
        return text


def unsupported_parameter(body: object, parameters: Iterable[str]) -> str:
    """Which of some parameters an error says the model does not support, so that no request with it can be answered.

    The error names it in `param`, as OpenAI's does, or in quotes, and says so in its `code` or in words.

    Args:
        body: of the error.

    Returns:
        The parameter; "" if the error is about something else.
    """
    if not isinstance(body, dict):
        return ""
    message, code = str(body.get("message")), str(body.get("code"))
    if not (code.startswith("unsupported_") or NOT_SUPPORTED.search(message)):
        return ""
    named = [name for name in parameters if body.get("param") == name]
    return next(iter(named or [name for name in parameters if re.search(rf"['\"`]{name}['\"`]", message)]), "")


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a server wants to be left alone (retry-after-ms, Retry-After), at most LONGEST_ASKED; 0 if none."""
    for name, units in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(ValueError):
            seconds = float(headers.get(name, "")) / units
            if not math.isnan(seconds):
                return min(max(seconds, 0.0), LONGEST_ASKED)
    with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
        date = parsedate_to_datetime(headers.get("retry-after", ""))
        return min(max(date.timestamp() - time.time(), 0.0), LONGEST_ASKED)
    return 0.0


def _is_openai(base_url: str) -> bool:
    return urlsplit(base_url).hostname == urlsplit(OPENAI_URL).hostname
