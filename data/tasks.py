"""How a row of a data source becomes a prompt and a response: one small function per task."""

from collections.abc import Callable, Mapping
from typing import Any

from data.errors import UserError, did_you_mean

DOLLY_TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{context}### Response:\n"
)


def dolly(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """databricks-dolly-15k with Databricks' own prompt template; the context follows the instruction."""
    instruction, context = row["instruction"], row.get("context")
    if not isinstance(instruction, str):
        return instruction, row["response"]
    if not instruction.strip():
        return "", row["response"]
    context = f"Input:\n{context.strip()}\n\n" if isinstance(context, str) and context.strip() else ""
    response = row["response"]
    return (
        DOLLY_TEMPLATE.format(instruction=instruction.strip(), context=context),
        response.strip() if isinstance(response, str) else response,
    )


def prompt_completion(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """TRL's prompt-completion format, taken as it is."""
    return row["prompt"], row["completion"]


TASKS: dict[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    "dolly": dolly,
    "prompt-completion": prompt_completion,
}
COLUMNS = {"dolly": ("instruction", "response"), "prompt-completion": ("prompt", "completion")}


def check_task(task: str) -> None:
    """Raise UserError for a task that does not exist."""
    if task not in TASKS:
        raise UserError(f"unknown task '{task}'.{did_you_mean(task, TASKS)} Known tasks: {', '.join(TASKS)}.")
