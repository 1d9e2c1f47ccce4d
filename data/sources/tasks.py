"""How a row of a data source becomes a prompt and a response: one small function per task.

A prompt and a response are texts, or lists of messages ({"role", "content"}, TRL's conversational formats), which the
tokenizer's chat template makes a text of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.cleaning import storable
from data.command.errors import UserError, did_you_mean
from data.command.registry import OR_OWN, import_outside, meaningless, origin_of
from data.sources.encode import Encode, Problem, encode_continuations, encode_pairs
from data.sources.shapes import RESPONSE, alpaca, alpaca_query, chat_of_sharegpt, sharegpt_role_problem

DOLLY_TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{context}### Response:\n"
)
DOLLY_CONTEXT = "Input:\n{context}\n\n"

KEPT = ("role", "content")
# What a chat template writes besides role and content, in a message and beside the messages. A set keeps role and
# content alone: judges and reward models would see something else than the reference did. Such a row is rejected.
MESSAGE_FIELDS = (
    *("tool_calls", "tool_call_id", "function_call", "tools", "documents", "images", "videos", "audio"),
    *("reasoning_content", "reasoning", "reasoning_details", "thinking", "tool_plan", "tool_responses"),
)
# Of the turn of a tool also its name, which templates write; who else has one, and fields of other names, most leave
# out: such a row is rejected where the reference's template writes them (`Task.besides`).
TOOL_ROLES, TOOL_FIELDS = ("tool", "function", "ipython"), ("name",)
NOTHING = ("", "None", "null", "[]", "{}")  # as a table or a text writes it
LONGEST_NAME, DEEPEST = 1000, 32  # what is staged of a field: characters of its name, levels of its value
OVER_LONG = ("reject", "truncate")
NOT_ONE_ANSWER = "response is not one assistant message"
ROW_FIELDS = ("tools", "documents", "images", "videos", "audio", "chat_template_kwargs")
ALPACA_FIELDS = ("system", "history", *ROW_FIELDS)  # LLaMA-Factory's, for which Alpaca's prompts have no place


@dataclass(frozen=True)
class Task:
    """How rows of a data source become prompt, response and query.

    Attributes:
        columns: that a row must have.
        read: row -> prompt and response, whatever the row holds; a column it lacks is None.
        query: usable row -> what a person asked, without any template; None: the prompt, which is known once the row
            is tokenised.
        problem: prompt, response -> why they are unusable, seen without a tokenizer, or None.
        encode: many usable ones -> tokens.
        besides: usable row -> of each message of a chat, prompt and response, the fields that a template may write
            besides role and text; of texts the names of those of the row, in one dictionary; None where there are
            none. Whether they get lost is found out where the row is tokenised.
        optional: columns that are used if they are there.
        over_long: what happens to a row that does not fit into the longest length: "reject" or "truncate".
        prompt: the column that is the prompt or the heart of it, which a template of the user's may stand for.
        response: the name of the response: the column that it is or, of a task whose rows have it elsewhere, what
            `--columns` calls the column that is read in its stead; None of a task that has no place for one.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    query: Callable[[Mapping[str, Any]], str | None]
    problem: Callable[[Any, Any], Problem | None]
    encode: Encode
    besides: Callable[[Mapping[str, Any]], list[dict[str, Any]] | None] = lambda _: None
    optional: tuple[str, ...] = ()
    over_long: str = "reject"
    prompt: str | None = None
    response: str | None = None


def dolly(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """databricks-dolly-15k with Databricks' own prompt template; the context follows the instruction."""
    instruction, context, response = row.get("instruction"), row.get("context"), row.get("response")
    if not isinstance(instruction, str):
        return instruction, response
    if not instruction.strip():
        return "", response
    context = DOLLY_CONTEXT.format(context=context.strip()) if isinstance(context, str) and context.strip() else ""
    return (
        DOLLY_TEMPLATE.format(instruction=instruction.strip(), context=context),
        response.strip() if isinstance(response, str) else response,
    )


def dolly_query(row: Mapping[str, Any]) -> str:
    """The instruction, and below it the context, if there is one."""
    context = row.get("context")
    parts = [row["instruction"], *([context] if isinstance(context, str) and context.strip() else [])]
    return "\n\n".join(part.strip() for part in parts)


def prompt_completion(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """TRL's prompt-completion format, taken as it is: two texts, or two lists of messages."""
    return _messages(row.get("prompt"), row), _messages(row.get("completion"))


def conversational(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """TRL's conversational language modeling: the last message is the response, if none stands beside the messages."""
    messages = _messages(row.get("messages"), row)
    if RESPONSE in row:
        return messages, _messages(row[RESPONSE])
    return (messages[:-1], messages[-1:]) if isinstance(messages, list) else (messages, None)


def besides_pair(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What a usable row of prompt and completion says besides; see `Task.besides`."""
    if isinstance(row["prompt"], list):
        return _besides([*row["prompt"], *row["completion"]])
    return _beside_text(row, ROW_FIELDS)


def besides_alpaca(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What a usable row of Alpaca's shape says besides; see `Task.besides`."""
    return _beside_text(row, ALPACA_FIELDS)


def besides_chat(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What a usable row of a conversation says besides; see `Task.besides`."""
    return _besides([*row["messages"], *row.get(RESPONSE, [])])


def asked(prompt: Any) -> str:
    """What a person asked by a prompt: the text, or what the messages say, with roles where there are several."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def continuation(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Any text, to be cut into prompt and response where it is tokenised."""
    return row.get("text"), ""


def pair_problem(prompt: Any, response: Any) -> Problem | None:
    """What is wrong with a prompt and a response: two texts or two lists of messages."""
    return (chat_problem if isinstance(prompt, list) else text_problem)(prompt, response)


def text_problem(prompt: Any, response: Any) -> Problem | None:
    """What is wrong with a prompt and a response that must be texts."""
    return _text_problem("prompt", prompt) or _text_problem("response", response)


def chat_problem(prompt: Any, response: Any) -> Problem | None:
    """What is wrong with two lists of messages, of which the response must be one message of the assistant."""
    problem = _messages_problem("prompt", prompt) or _messages_problem("response", response)
    if problem:
        return problem
    roles = ", ".join(message["role"] for message in response)
    return None if roles == "assistant" else (NOT_ONE_ANSWER, f"its roles: {roles[:200]}")


def _messages_problem(name: str, messages: Any) -> Problem | None:
    if not isinstance(messages, list):
        return f"{name} is not a list of messages", f"it is {type(messages).__name__}"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message["role"], str) or not message["role"].strip():
            return "malformed message", f"message {number} of the {name} has no role"
        if field := next((field for field in message if field not in KEPT), None):
            return f"{field} cannot be kept", f"message {number} of the {name}: of a chat role and text are kept"
        for part in ("role", "content"):
            problem = _text_problem(name, message[part])
            # An empty system prompt, or an empty turn, is nothing unusual.
            if problem and not problem[0].startswith("empty"):
                return problem[0], f"{part} of message {number}: {problem[1]}"
    return None if any(message["content"].strip() for message in messages) else (f"empty {name}", "")


def _text_problem(name: str, text: Any) -> Problem | None:
    if not isinstance(text, str):
        return f"{name} is not text", f"it is {type(text).__name__}"
    if not text.strip():
        return f"empty {name}", ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"{name} is not valid Unicode", error.reason
    return None


def _messages(value: Any, row: Mapping[str, Any] | None = None) -> Any:
    """Role and content of each message, so that a file and a table of many more columns give the same.

    Fields that a template may write besides stay where they say something, also those of the row, as the first
    message's: what they are is for the check to say.
    """
    if not isinstance(value, list):
        return value
    of_row = _of_row(row or {}, ROW_FIELDS)
    messages = []
    for number, message in enumerate(value):
        if isinstance(message, dict):
            known = MESSAGE_FIELDS + (TOOL_FIELDS if message.get("role") in TOOL_ROLES else ())
            fields = {field: message[field] for field in known if _says_something(message.get(field))}
            fields |= of_row if number == 0 else {}
            message = {"role": message.get("role"), "content": message.get("content"), **fields}
        messages.append(message)
    return messages


def _of_row(row: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: row[field] for field in fields if field in row and _says_something(row[field])}


def _beside_text(row: Mapping[str, Any], fields: Sequence[str]) -> list[dict[str, Any]] | None:
    found = _of_row(row, fields)
    return [dict.fromkeys(found, True)] if found else None  # no template is shown their values


def _besides(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The fields of messages that are neither role nor text, as JSON can hold them; None if there are none."""
    found = [
        {
            storable(str(name))[:LONGEST_NAME]: _plain(value)
            for name, value in message.items()
            if name not in KEPT and _says_something(value)
        }
        for message in messages
    ]
    return found if any(found) else None


def _plain(value: Any, level: int = 0) -> Any:
    """A value as it can be staged in JSON: a template writes nearly the same of a date and of its text."""
    if isinstance(value, dict) and level < DEEPEST:
        return {storable(str(key)): _plain(part, level + 1) for key, part in value.items()}
    if isinstance(value, list) and level < DEEPEST:
        return [_plain(part, level + 1) for part in value]
    return value if value is None or isinstance(value, bool | int) else storable(str(value))


def _says_something(value: Any) -> bool:
    """Whether a field is more than a table's way to have none: null, empty, or made of such."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    if isinstance(value, list):
        return any(map(_says_something, value))
    return str(value).strip() not in NOTHING


TASKS: dict[str, Task] = {
    "dolly": Task(
        ("instruction", "response"),
        dolly,
        dolly_query,
        text_problem,
        encode_pairs,
        optional=("context",),
        prompt="instruction",
        response="response",
    ),
    "prompt-completion": Task(
        ("prompt", "completion"),
        prompt_completion,
        lambda row: asked(prompt_completion(row)[0]),
        pair_problem,
        encode_pairs,
        besides_pair,
        optional=ROW_FIELDS,
        prompt="prompt",
        response="completion",
    ),
    "conversational": Task(
        ("messages",),
        conversational,
        lambda row: asked(conversational(row)[0]),
        chat_problem,
        encode_pairs,
        besides_chat,
        optional=ROW_FIELDS,
        response=RESPONSE,
    ),
    "alpaca": Task(
        ("instruction", "output"),
        alpaca,
        alpaca_query,
        text_problem,
        encode_pairs,
        besides_alpaca,
        optional=("input", *ALPACA_FIELDS),
        prompt="instruction",
        response="output",
    ),
    "sharegpt": Task(
        ("conversations",),
        lambda row: conversational(chat_of_sharegpt(row)),
        lambda row: asked(conversational(chat_of_sharegpt(row))[0]),
        lambda prompt, response: sharegpt_role_problem(prompt, response) or chat_problem(prompt, response),
        encode_pairs,
        lambda row: besides_chat(chat_of_sharegpt(row)),
        optional=("system", *ROW_FIELDS),
        response=RESPONSE,
    ),
    "continuation": Task(
        ("text",),
        continuation,
        lambda _: None,
        lambda text, _: _text_problem("text", text),
        encode_continuations,
        over_long="truncate",
    ),
}
# Of the option of every command that reads a data set.
TASK_HELP = f"how a row becomes prompt and response: {', '.join(TASKS)}; {OR_OWN}"


def task_of(name: str) -> Task:
    """The task of a name in `TASKS`, or one from outside of this repository, `package.module:NAME`.

    Raises:
        UserError: there is no task of that name, or its words mean nothing.
    """
    if ":" in name:
        task = import_outside(name, "task")
        if not isinstance(task, Task):
            raise UserError(f"task '{name}' is no data.sources.tasks.Task.")
        if fault := meaningless("over_long", task.over_long, OVER_LONG):
            raise UserError(f"task '{name}' {fault}: see data.sources.tasks.Task.")
        return task
    if name not in TASKS:
        raise UserError(
            f"unknown task '{name}'.{did_you_mean(name, TASKS)} Known tasks: {', '.join(TASKS)}; one of your own is "
            "written package.module:NAME."
        )
    return TASKS[name]


def describe_task(name: str) -> dict[str, str]:
    """What a manifest or a report says of a task: its name and, of one from outside, the hash of its source."""
    if ":" not in name:
        return {"task": name}
    return {"task": name, "task_source_sha256": origin_of(name, "task")["source_sha256"]}
