"""Shapes that instruction data comes in elsewhere, read as prompt and response: Alpaca's and ShareGPT's."""

from collections.abc import Mapping
from typing import Any

# Stanford Alpaca's prompts, to which its outputs are glued as they are.
ALPACA_TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_INPUT_TEMPLATE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
RESPONSE = "response"  # of a conversation, where it is not its last turn
# Who speaks -> role. All others, such as function_call and observation, are no text of a chat.
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
}


def alpaca(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Stanford Alpaca's rows (instruction, input, output) with its prompts, one for rows with an input."""
    instruction, given = row.get("instruction"), row.get("input")
    if not isinstance(instruction, str) or not instruction.strip():
        return instruction, row.get("output")
    if isinstance(given, str) and given.strip():
        return ALPACA_INPUT_TEMPLATE.format(instruction=instruction, input=given), row.get("output")
    return ALPACA_TEMPLATE.format(instruction=instruction), row.get("output")


def alpaca_query(row: Mapping[str, Any]) -> str:
    """The instruction, and below it the input, if there is one."""
    given = row.get("input")
    parts = [row["instruction"], *([given] if isinstance(given, str) and given.strip() else [])]
    return "\n\n".join(part.strip() for part in parts)


def chat_of_sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ShareGPT (conversations of from and value, perhaps a system prompt beside them) as one with messages.

    A turn of somebody who is no role of a chat keeps that name, by which `sharegpt_role_problem` knows it.
    """
    messages, system = _conversation(row.get("conversations")), row.get("system")
    if isinstance(messages, list) and isinstance(system, str) and system.strip():
        messages = [{"role": "system", "content": system}, *messages]
    beside = {RESPONSE: _conversation(row[RESPONSE])} if RESPONSE in row else {}
    return {**row, "messages": messages, **beside}


def sharegpt_role_problem(prompt: Any, response: Any) -> tuple[str, str] | None:
    """A turn of somebody who is no role of a chat, as reason and detail of a reject."""
    for message in [*(prompt if isinstance(prompt, list) else []), *(response if isinstance(response, list) else [])]:
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in SHAREGPT_ROLES.values():
            return "unknown role", f"a turn is from '{role[:40]}'; known: {', '.join(SHAREGPT_ROLES)}"
    return None


def speaker(turn: Any) -> Any:
    """The role of whoever says a message, in TRL's shape or in ShareGPT's; None of what is no message."""
    if not isinstance(turn, Mapping):
        return None
    who = turn.get("from", turn.get("role"))
    return SHAREGPT_ROLES.get(who, who) if isinstance(who, str) else who


def _conversation(turns: Any) -> Any:
    return [_message(turn) for turn in turns] if isinstance(turns, list) else turns


def _message(turn: Any) -> Any:
    if not isinstance(turn, Mapping) or ("role" in turn and "from" not in turn):
        return turn
    others = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {**others, "role": speaker(turn), "content": turn.get("value")}
