"""UN: unhelpful responses, written by a model behind an OpenAI-compatible API (the paper's data for DPO)."""

import asyncio
import dataclasses
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.chat.client import Answer, ChatAPI, read_key
from data.chat.settings import OPENAI_URL, check_chat_options, public_url
from data.command.cleaning import storable
from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from data.sources.encode import Encoded, Problem, encode_pairs
from data.storage import sha256
from data.tokens import marks_of, text_behind
from negatives_gen.strategies.base import ASK, MAX_ROUNDS, Novelty, Strategy, Tools, derive_seed

# The paper's, to the letter.
TEMPLATE = (
    "Given the ground truth instruction and response, can you generate a not helpful response?\n"
    " Instruction: {}\nResponse: {}\nNot helpful response:"
)


@dataclass(frozen=True)
class APIOptions:
    """A chat model behind an OpenAI-compatible server. The key comes from $OPENAI_API_KEY only."""

    model: str | None = option(None, "name of the chat model that writes", metavar="NAME")
    base_url: str = option(OPENAI_URL, "address of the server", decides=False, metavar="URL")
    temperature: float | None = option(1.0, "sampling temperature; none: the server's")
    max_tokens: int | None = option(None, "length of an answer in tokens, at most (default: --max_new_tokens)")
    concurrency: int = option(16, "requests under way at a time", decides=False)
    timeout: float = option(60.0, "seconds that a request may take", decides=False)
    retries: int = option(5, "of a request that fails", decides=False)


@dataclass(frozen=True)
class Options:
    """Options of strategy `un`: the API that writes, and how long a continuation may be."""

    max_new_tokens: int = option(256, "length of a continuation in tokens, at most")
    api: APIOptions = option(APIOptions(), "the server that writes; the key comes from $OPENAI_API_KEY")

    def check(self) -> None:
        """Raise UserError for a value out of range, or where the server needs a key that is not set."""
        self.checked_api()

    def checked_api(self) -> dict[str, Any]:
        """The API's options, with the address and the length as they are used. Raises UserError, see `check`."""
        api = dataclasses.asdict(self.api)
        if not api["model"]:
            raise UserError("strategy 'un' needs --api.model: the name of a chat model that the API serves.")
        if api["max_tokens"] is None:
            api["max_tokens"] = self.max_new_tokens
        check_chat_options("api", api)
        read_key(api["base_url"])
        return api


class Unhelpful(Strategy):
    """Asks once per missing candidate; what is empty, the ground truth or a repetition is asked again, for MAX_ROUNDS.

    The instruction is what a person asked (`Group.query`): without a prompt template or a chat template.

    A candidate is the answer without surrounding white space, behind the white space that the ground truth begins
    with, whoever wrote that (a chat template may), in tokens as a ground truth of the same prompt would be. It ends as
    that does if the API's model had finished and the answer fits behind the prefix; else it is cut.
    """

    name = "un"
    summary = "unhelpful: written by a model behind an API"
    stage = ASK
    Options: ClassVar = Options

    def settings(self, options: Any) -> dict[str, Any]:
        """One length, whichever of its two options gave it."""
        api = options.checked_api()
        return {"max_new_tokens": api.pop("max_tokens"), "api": api}

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        return asyncio.run(self._add(groups, settings, tools))

    async def _add(self, groups: Sequence[Group], settings: dict[str, Any], tools: Tools) -> dict[str, str]:
        novelty = {group.id: Novelty(group, self.name) for group in groups}
        refused: dict[str, str] = {}
        unusable: dict[str, Counter[str]] = defaultdict(Counter)
        answered = spoken = False
        async with ChatAPI(**settings["api"], max_tokens=settings["max_new_tokens"]) as api:
            for round_number in range(MAX_ROUNDS):
                requests = [
                    (group, derive_seed(tools.seed, self.name, group.id, round_number, index) >> 32)
                    for group in groups
                    if group.id not in refused
                    for index in range(settings["count"] - self.missing(group, settings), settings["count"])
                ]
                if not requests:
                    break
                answers = await self._ask(api, requests, tools)
                for (group, seed), answer in zip(requests, answers, strict=True):
                    answered = answered or not answer.refusal
                    if answer.refusal:
                        refused[group.id] = answer.refusal
                        continue
                    # An answer that a filter took away is a matter of its row.
                    spoken = spoken or bool(answer.text.strip()) or answer.finish_reason not in ("stop", "length")
                    candidate = self._candidate(answer, seed, group, tools)
                    if isinstance(candidate, str):
                        unusable[group.id][candidate] += 1
                    elif novelty[group.id].take(candidate):
                        group.negatives.append(candidate)
                    else:
                        unusable[group.id]["repeated or the ground truth"] += 1
        used = api.budget.used
        tools.spent.update(requests=api.budget.requests, input_tokens=used.input, output_tokens=used.output)
        if refused and not answered:  # not a matter of one row, such as its length
            url, why = public_url(settings["api"]["base_url"]), next(iter(refused.values()))
            raise UserError(f"{url} takes every request for a bad one ({why}). Check the --api options.")
        if answered and not spoken:
            url = public_url(settings["api"]["base_url"])
            raise UserError(
                f"{url} answered every request of a shard without a word. Check its model and --api options."
            )
        return self._short(groups, refused, unusable, settings)

    async def _ask(self, api: ChatAPI, requests: Sequence[tuple[Group, int]], tools: Tools) -> list[Answer]:
        """An answer to each request; those that the job has kept are not asked for again."""
        texts = [TEMPLATE.format(group.query, group.response) for group, _ in requests]
        if tools.answers is None:
            return await api.ask(texts, [seed for _, seed in requests])
        kept = tools.answers
        decides = [[api.model, api.sampling, text, seed] for text, (_, seed) in zip(texts, requests, strict=True)]
        keys = [sha256(json.dumps(deciding, sort_keys=True).encode()) for deciding in decides]
        answers = {index: answer for index, key in enumerate(keys) if (answer := kept.find(key)) is not None}
        asked = [index for index in range(len(keys)) if index not in answers]

        came = itertools.count(len(answers) + 1)

        async def keep(number: int, answer: Answer) -> None:
            if not answer.refusal:  # which another version of the server may not repeat
                kept.keep(keys[asked[number]], answer)
            tools.tell(next(came), len(keys))

        new = await api.ask([texts[i] for i in asked], [requests[i][1] for i in asked], keep)
        answers.update(zip(asked, new, strict=True))
        return [answers[index] for index in range(len(keys))]

    def _candidate(self, answer: Answer, seed: int, group: Group, tools: Tools) -> Candidate | str:
        """The answer as tokens of the reference model, or why it cannot be used."""
        if answer.finish_reason not in ("stop", "length"):
            return f"ended by '{answer.finish_reason}'"
        if not answer.text.strip():
            return "empty"
        encoded = self._encoded(answer.text.strip(), group, tools)
        if not isinstance(encoded, Encoded):
            return encoded[0]
        ids, finish_reason, room = encoded.response_ids, answer.finish_reason, tools.context - len(group.prompt_ids)
        if finish_reason == "length" or len(ids) > room:
            ids, finish_reason = ids[:-1][:room], "length"
        text = text_behind(tools.tokenizer, group.prompt_ids, ids, marks_of(tools.tokenizer).ends)
        return Candidate(self.name, ids, text, finish_reason, seed=seed)

    def _encoded(self, text: str, group: Group, tools: Tools) -> Encoded | Problem:
        """A text in the place of a group's ground truth, behind the same white space, or why it cannot be encoded."""
        space = group.response[: len(group.response) - len(group.response.lstrip())]
        said = storable(space + text)  # the ground truth's white space comes from JSON too
        if not group.messages:
            (found,) = encode_pairs([(group.prompt, said)], tools.tokenizer, sys.maxsize)
            return found
        # The template may write that white space itself.
        answers = [[{"role": "assistant", "content": content}] for content in dict.fromkeys((said, storable(text)))]
        pairs = [(group.messages, answer) for answer in answers]
        found = encode_pairs(pairs, tools.tokenizer, sys.maxsize)
        encoded = [e for e in found if isinstance(e, Encoded)]
        alike = (e for e in encoded if e.response[: len(e.response) - len(e.response.lstrip())] == space)
        return next(alike, encoded[0] if encoded else found[0])

    def _short(
        self,
        groups: Sequence[Group],
        refused: dict[str, str],
        unusable: dict[str, Counter[str]],
        settings: dict[str, Any],
    ) -> dict[str, str]:
        short: dict[str, str] = {}
        for group in groups:
            if missing := self.missing(group, settings):
                reached = f"{settings['count'] - missing} of {settings['count']}"
                why = ", ".join(f"{number} {reason}" for reason, number in unusable[group.id].most_common())
                short[group.id] = f"{reached} distinct answers after {MAX_ROUNDS} rounds; of the others {why}"
                if group.id in refused:
                    short[group.id] = f"{reached}: the API refuses the request: {refused[group.id]}"
        return short


STRATEGY = Unhelpful()
