"""Rows of other trainers: which columns each takes, of texts and of chats."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from data.schema import MESSAGES, Candidate, Group

TRL_SFT = "trl-sft"
LLAMA_FACTORY = "llama-factory"

# The column that an SFT export leaves empty, and the only one that is not the group's.
REJECTED = "rejected"

# Of each column a text, or messages, or a message.
Row = dict[str, Any]


def _preference(prompt: Any, chosen: Any, rejected: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _alpaca(prompt: Any, chosen: Any, rejected: Any) -> Row:
    return {"instruction": prompt, "input": "", "chosen": chosen, "rejected": rejected}


def _conversation(prompt: Any, chosen: Any, rejected: Any) -> Row:
    return {"messages": prompt, "chosen": chosen[0], "rejected": rejected[0]}


def _completion(prompt: Any, chosen: Any, _: Any) -> Row:
    return {"prompt": prompt, "completion": chosen}


Form = Callable[[Any, Any, Any], Row]
# OpenRLHF: --prompt_key prompt --chosen_key chosen --rejected_key rejected, and of chats --apply_chat_template. Without
# it, it puts a blank before the EOS.
FORMATS: dict[str, Form] = {
    "trl-preference": _preference,
    TRL_SFT: _completion,
    "openrlhf": _preference,
    LLAMA_FACTORY: _alpaca,
}
# Where a format has other columns for chats.
OF_CHATS: dict[str, Form] = {LLAMA_FACTORY: _conversation}
# What llama-factory's loader must know of a file of texts, and of one of chats.
ALPACA = {"columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}}
SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def said(group: Group, candidate: Candidate | None) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected, as texts or, of a chat, as messages."""
    rejected = candidate.text if candidate else ""
    if group.messages is None:
        return group.prompt, group.response, rejected
    return group.messages, by_assistant(group.response), by_assistant(rejected)


def by_assistant(text: str) -> list[dict[str, str]]:
    """A message of the assistant. Of white space around it is not known what the template wrote, and writes again."""
    return [{"role": "assistant", "content": text.strip()}]


def schema_of(form: Form, chats: bool) -> pa.Schema:
    """The columns of a row."""
    row = form([], [{}], [{}]) if chats else form("", "", "")
    types = {str: pa.string(), list: MESSAGES, dict: MESSAGES.value_type}
    return pa.schema([(name, types[type(value)]) for name, value in row.items()])
