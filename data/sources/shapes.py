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
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return {**row, "messages": turns}
    messages = [_message(turn) for turn in turns]
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return {**row, "messages": messages}


def sharegpt_role_problem(prompt: Any, response: Any) -> tuple[str, str] | None:
    """A turn of somebody who is no role of a chat, as reason and detail of a reject."""
    for message in [*(prompt if isinstance(prompt, list) else []), *(response if isinstance(response, list) else [])]:
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in SHAREGPT_ROLES.values():
            return "unknown role", f"a turn is from '{role[:40]}'; known: {', '.join(SHAREGPT_ROLES)}"
    return None


def _message(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    others = {name: value for name, value in turn.items() if name not in ("from", "value")}
    who = turn.get("from")
    return {
        **others,
        "role": SHAREGPT_ROLES.get(who, who) if isinstance(who, str) else who,
        "content": turn.get("value"),
    }
