"""UN: unhelpful responses, written by a model behind an OpenAI-compatible API (the paper's data for DPO)."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from data.chat.client import Answer, ChatAPI, read_key
from data.chat.settings import OPENAI_URL, check_chat_options, known_options
from data.command.errors import UserError
from data.schema import Candidate, Group
from data.sources.encode import special_ids
from negatives_gen.strategies.base import ASK, MAX_ROUNDS, Novelty, Strategy, Tools, derive_seed

if TYPE_CHECKING:
    from negatives_gen.config import StrategyOptions

# The paper's, to the letter.
TEMPLATE = (
    "Given the ground truth instruction and response, can you generate a not helpful response?\n"
    " Instruction: {}\nResponse: {}\nNot helpful response:"
)
# Key of --api -> default. The last three do not decide what is made.
DEFAULTS: dict[str, Any] = {
    "model": None,
    "base_url": OPENAI_URL,
    "temperature": 1.0,
    "max_tokens": None,
    "concurrency": 16,
    "timeout": 60.0,
    "retries": 5,
}
RUNTIME = ("concurrency", "timeout", "retries")


class Unhelpful(Strategy):
    """Asks once per missing candidate; what is empty, the ground truth or a repetition is asked again, for MAX_ROUNDS.

    The instruction is what a person asked (`Group.query`): without a prompt template or a chat template.

    A candidate is the answer without surrounding white space, behind the white space that the ground truth begins
    with. It ends with EOS if the API's model had finished and the answer fits behind the prefix; else it is cut.
    """

    name = "un"
    summary = "unhelpful: written by a model behind an API"
    stage = ASK
    options: ClassVar = {"max_new_tokens": "max_tokens"}

    def settings(self, options: "StrategyOptions") -> dict[str, Any]:
        api = known_options("api", options.api, {**DEFAULTS, "max_tokens": options.max_new_tokens})
        if not isinstance(api["model"], str) or not api["model"]:
            raise UserError("strategy 'un' needs --api.model: the name of a chat model that the API serves.")
        check_chat_options("api", api)
        read_key(api["base_url"])
        decides = {key: value for key, value in api.items() if key not in RUNTIME}
        return {**decides, "runtime": {key: api[key] for key in RUNTIME}}

    def settings_to_grow(self, known: dict[str, Any], options: "StrategyOptions") -> dict[str, Any]:
        """A server may have moved: its address and what RUNTIME names may change."""
        api = {**{key: known[key] for key in DEFAULTS if key in known}, **known["runtime"]}
        settings = self.settings(dataclasses.replace(options, api={**api, **options.api}))
        for key in ("model", "temperature", "max_tokens"):
            if settings[key] != known[key]:
                raise UserError(
                    f"--api.{key} is {settings[key]!r}, the set's 'un' was made with {known[key]!r}, which holds for "
                    f"all of it. Leave --api.{key} out."
                )
        return {**known, **settings}

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        return asyncio.run(self._add(groups, settings, tools))

    async def _add(self, groups: Sequence[Group], settings: dict[str, Any], tools: Tools) -> dict[str, str]:
        novelty = {group.id: Novelty(group, self.name) for group in groups}
        refused: dict[str, str] = {}
        answered = False
        sampling = {key: settings[key] for key in ("model", "base_url", "temperature", "max_tokens")}
        async with ChatAPI(**sampling, **settings["runtime"]) as api:
            for round_number in range(MAX_ROUNDS):
                requests = [
                    (group, derive_seed(tools.seed, self.name, group.id, round_number, index) >> 32)
                    for group in groups
                    if group.id not in refused
                    for index in range(settings["count"] - self.missing(group, settings), settings["count"])
                ]
                if not requests:
                    break
                answers = await api.ask(
                    [TEMPLATE.format(group.query, group.response) for group, _ in requests],
                    [seed for _, seed in requests],
                )
                for (group, seed), answer in zip(requests, answers, strict=True):
                    answered = answered or not answer.refusal
                    if answer.refusal:
                        refused[group.id] = answer.refusal
                        continue
                    candidate = self._candidate(answer, seed, group, tools)
                    if candidate and novelty[group.id].take(candidate):
                        group.negatives.append(candidate)
        if refused and not answered:  # not a matter of one row, such as its length
            raise UserError(
                f"{settings['base_url']} takes every request for a bad one ({next(iter(refused.values()))}). Check the "
                "--api options."
            )
        return self._short(groups, refused, settings)

    def _candidate(self, answer: Answer, seed: int, group: Group, tools: Tools) -> Candidate | None:
        """The answer as tokens of the reference model; None if it cannot be used."""
        if answer.finish_reason not in ("stop", "length"):
            return None
        truth = group.response
        text = truth[: len(truth) - len(truth.lstrip())] + answer.text.strip()
        text = text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, Parquet cannot
        ids = tools.tokenizer(text, add_special_tokens=False)["input_ids"]
        if special_ids(tools.tokenizer).intersection(ids):
            return None
        room = tools.context - len(group.prompt_ids)
        if answer.finish_reason == "stop" and len(ids) < room:
            finish_reason, ids = "stop", [*ids, tools.tokenizer.eos_token_id]
        else:
            finish_reason, ids = "length", ids[:room]
        text = tools.tokenizer.decode(ids, skip_special_tokens=True)
        return Candidate(self.name, ids, text, finish_reason, seed=seed)

    def _short(self, groups: Sequence[Group], refused: dict[str, str], settings: dict[str, Any]) -> dict[str, str]:
        short: dict[str, str] = {}
        for group in groups:
            if missing := self.missing(group, settings):
                reached = f"{settings['count'] - missing} of {settings['count']}"
                short[group.id] = f"{reached} distinct answers after {MAX_ROUNDS} rounds"
                if group.id in refused:
                    short[group.id] = f"{reached}: the API refuses the request: {refused[group.id]}"
        return short


STRATEGY = Unhelpful()
