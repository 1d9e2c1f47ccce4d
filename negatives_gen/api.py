"""A client of an OpenAI-compatible chat API: bounded concurrency, retries, and errors in one line without the key."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from data.errors import UserError, first_line
from data.privacy import HIDDEN

OPENAI_URL = "https://api.openai.com/v1"
# What servers without keys, such as `vllm serve`, are sent: the client insists on one.
NO_KEY = "EMPTY"
REFUSALS = (400, 413, 422)  # bad, too large, not to be processed
LONGEST_REASON = 200  # characters of what a server says
AGAIN = "Then run the same command again; it goes on where it stopped."


@dataclass(frozen=True)
class Answer:
    """What the API made of one prompt.

    Attributes:
        text: "" if there is none.
        finish_reason: "stop", "length" or another of the API's.
        refusal: why the API refuses this prompt (400, 413, 422), e.g. that it is too long; else "".
    """

    text: str
    finish_reason: str
    refusal: str = ""


def read_key(base_url: str) -> str:
    """The key in $OPENAI_API_KEY, or NO_KEY for a server other than OpenAI's. Raises UserError."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and urlsplit(base_url).hostname == urlsplit(OPENAI_URL).hostname:
        raise UserError(
            f"{base_url} needs a key and $OPENAI_API_KEY is not set. Set it, or give --api.base_url of another server."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError("$OPENAI_API_KEY holds characters that no key can have. Set it to the key alone.")
    return key or NO_KEY


class ChatAPI:
    """Asks one model. Used as `async with`.

    Args:
        concurrency: requests under way at a time, at most.
        timeout: seconds that a request may take.
        retries: of a request that fails by 408, 409, 429, 5xx, time-out or connection; the client waits ever longer,
            or as long as the server says.

    Raises:
        UserError: no key, see `read_key`.
    """

    def __init__(
        self, model: str, base_url: str, *, temperature: float, max_tokens: int, concurrency: int, timeout: float,
        retries: int,
    ):  # fmt: skip
        from openai import AsyncOpenAI

        self.model, self.base_url, self.timeout, self.retries = model, base_url, timeout, retries
        self.sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self.key = read_key(base_url)
        self.client = AsyncOpenAI(base_url=base_url, api_key=self.key, timeout=timeout, max_retries=retries)
        self.slots = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> "ChatAPI":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        """An answer to each prompt, drawn with its seed where the API knows seeds.

        Raises:
            UserError: the API cannot be used, or not now.
        """
        tasks = [asyncio.create_task(self._ask(*request)) for request in zip(prompts, seeds, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # after an error nobody waits for the others
                task.cancel()

    async def _ask(self, prompt: str, seed: int) -> Answer:
        import openai

        try:
            async with self.slots:
                completion = await self.client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], seed=seed, **self.sampling
                )
        except (openai.OpenAIError, ValueError) as error:
            if getattr(error, "status_code", None) in REFUSALS:
                return Answer("", "", refusal=self._reason(error))
            raise self._explained(error) from None  # a cause would carry the request with its key
        choices = getattr(completion, "choices", None)
        if not choices:
            raise UserError(
                f"what {self.base_url} answers is no chat completion. Check --api.base_url; it mostly ends in /v1."
            )
        text = getattr(choices[0].message, "content", None)
        return Answer(text if isinstance(text, str) else "", str(choices[0].finish_reason))

    def _explained(self, error: Exception) -> UserError:
        """A client's error in one line: what, where, what to do."""
        import openai

        url, tried = self.base_url, f"after {self.retries} retries"
        if isinstance(error, openai.APITimeoutError):
            return UserError(
                f"{url} gave no answer within {self.timeout:g} s {tried}. Raise --api.timeout or lower "
                f"--api.concurrency. {AGAIN}"
            )
        if isinstance(error, openai.APIConnectionError):
            return UserError(f"{url} cannot be reached {tried}. Check --api.base_url and that the server runs. {AGAIN}")
        if not isinstance(error, openai.APIStatusError):
            return UserError(f"{url} gave an answer that cannot be read: {self._reason(error)}. Check --api.base_url.")
        status, reason = error.status_code, self._reason(error)
        if status in (401, 403):  # what servers say to that may repeat the key
            return UserError(f"{url} refuses the key ({status}). Set $OPENAI_API_KEY to a key for '{self.model}'.")
        if status == 404:
            return UserError(
                f"{url} has no chat model '{self.model}' (404: {reason}). Check --api.model and --api.base_url; the "
                "latter mostly ends in /v1."
            )
        if status == 429:
            return UserError(
                f"{url} still has its rate limit or quota exceeded {tried} (429: {reason}). Lower --api.concurrency or "
                f"raise --api.retries. {AGAIN}"
            )
        if status >= 500:
            return UserError(f"{url} still fails {tried} ({status}: {reason}). See to the server. {AGAIN}")
        return UserError(f"{url} refuses the request ({status}: {reason}). Check the --api options.")

    def _reason(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        reason = " ".join(str(message or first_line(error)).split())
        if self.key != NO_KEY:
            reason = reason.replace(self.key, HIDDEN)
        return reason[:LONGEST_REASON].rstrip(".")
