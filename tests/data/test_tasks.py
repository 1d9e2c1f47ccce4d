"""data/sources/tasks.py: from rows to prompts and responses, and what is wrong with them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.models import load_tokenizer
from data.sources.prepare import prepare_groups
from data.sources.tasks import (
    ROW_FIELDS,
    TASKS,
    chat_problem,
    continuation,
    conversational,
    describe_task,
    dolly,
    pair_problem,
    prompt_completion,
    task_of,
)
from tests.support.read_examples import load_examples


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_the_dolly_template_is_databricks_own():
    row = {"instruction": " Name it. ", "context": "A cat.\n", "response": "\nCat "}
    assert dolly(row) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName it.\n\nInput:\nA cat.\n\n### Response:\n",
        "Cat",
    )


@pytest.mark.parametrize("context", [{}, {"context": None}, {"context": " \n"}])
def test_without_a_context_the_template_has_no_input(context: dict[str, Any]):
    prompt, _ = dolly({"instruction": "Do {it}.", "response": "x", **context})
    assert prompt.endswith("### Instruction:\nDo {it}.\n\n### Response:\n")


@pytest.mark.parametrize(
    ("instruction", "context", "asked"),
    [
        (" Who wrote Dracula?\n", "", "Who wrote Dracula?"),
        ("Name it.", " A cat.\n\nIt purrs. ", "Name it.\n\nA cat.\n\nIt purrs."),
        ("### Response:\nor\n### Instruction:", None, "### Response:\nor\n### Instruction:"),
        ("Continue.", "Input:\nx\n\nInput:\n\n### Response:", "Continue.\n\nInput:\nx\n\nInput:\n\n### Response:"),
        ("Translate.\n\nInput:\n\nHallo", None, "Translate.\n\nInput:\n\nHallo"),
        ("Do {it}.", "{context} {0}", "Do {it}.\n\n{context} {0}"),
    ],
)
def test_dollys_query_is_the_instruction_and_its_context(instruction: str, context: str | None, asked: str):
    assert TASKS["dolly"].query({"instruction": instruction, "context": context, "response": "x"}) == asked


def test_a_chats_query_is_the_text_of_its_messages():
    brief = {"role": "system", "content": "Be brief."}
    for asked, query in (([user("Who?")], "Who?"), ([brief, user("Who?")], "system: Be brief.\nuser: Who?")):
        assert TASKS["conversational"].query({"messages": [*asked, assistant("Ada.")]}) == query
        assert TASKS["prompt-completion"].query({"prompt": asked, "completion": [assistant("Ada.")]}) == query


def test_the_query_of_prompt_and_completion_is_the_prompt():
    prompt, _ = dolly({"instruction": "Do it.", "response": "x"})
    assert TASKS["prompt-completion"].query({"prompt": prompt, "completion": "x"}) == prompt
    assert TASKS["continuation"].query({"text": "a b c"}) is None  # where it is cut, the tokenizer knows


def test_dolly_leaves_unusable_texts_to_prepare():
    assert dolly({"instruction": " ", "response": None}) == ("", None)
    assert dolly({"instruction": None, "response": 3}) == (None, 3)


def test_a_row_without_the_columns_is_left_to_the_check():
    assert {name: task.read({}) for name, task in TASKS.items()} == {
        "dolly": (None, None),
        "prompt-completion": (None, None),
        "conversational": (None, None),
        "alpaca": (None, None),
        "sharegpt": (None, None),
        "continuation": (None, ""),
    }
    assert TASKS["conversational"].problem(None, None) == ("prompt is not a list of messages", "it is NoneType")
    assert TASKS["continuation"].problem(None, "") == ("text is not text", "it is NoneType")
    assert TASKS["dolly"].problem(None, None) == ("prompt is not text", "it is NoneType")


def test_prompt_and_completion_may_be_messages_of_which_role_and_content_count():
    row = {
        "prompt": [{"content": "Hi", "name": "me", "role": "user"}],
        "completion": [{"role": "assistant", "content": "Ho", "tool_calls": None}],
    }
    assert prompt_completion(row) == ([user("Hi")], [assistant("Ho")])
    assert pair_problem(*prompt_completion(row)) is None
    assert prompt_completion({"prompt": "a", "completion": "b"}) == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"x": 0}}}], "content": None}, "tool_calls"),
        ({"tool_call_id": "7"}, "tool_call_id"),
        ({"reasoning_content": "As it is even."}, "reasoning_content"),
        ({"thinking": "As it is even."}, "thinking"),
        ({"role": "tool", "name": "get_weather"}, "name"),
    ],
)
@pytest.mark.parametrize("place", [1, 3])
def test_a_field_that_a_set_cannot_keep_is_a_reject_and_never_dropped(fields: dict, field: str, place: int):
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    messages[place] |= fields
    where = ("prompt", 2) if place == 1 else ("response", 1)
    detail = f"message {where[1]} of the {where[0]}: of a chat role and text are kept"
    assert chat_problem(*conversational({"messages": messages})) == (f"{field} cannot be kept", detail)
    completion = {"prompt": messages[:-1], "completion": messages[-1:]}
    assert pair_problem(*prompt_completion(completion)) == (f"{field} cannot be kept", detail)


@pytest.mark.parametrize("field", ["tools", "documents", "images", "videos", "audio", "chat_template_kwargs"])
@pytest.mark.parametrize("value", [[{"name": "f"}], '[{"name": "f"}]', {"a": 1}])
def test_what_a_row_gives_the_template_beside_its_messages_is_a_reject(field: str, value: Any):
    row = {"messages": [user("a"), assistant("b")], field: value}
    assert chat_problem(*conversational(row)) == (
        f"{field} cannot be kept",
        "message 1 of the prompt: of a chat role and text are kept",
    )
    assert field in TASKS["conversational"].optional
    assert field in TASKS["prompt-completion"].optional


@pytest.mark.parametrize("value", [None, "", [], {}, "[]", [None], {"a": None}])
def test_fields_of_a_chat_that_say_nothing_are_as_if_not_there(value: Any):
    plain = conversational({"messages": [user("a"), assistant("b")]})
    row = {"messages": [user("a"), {**assistant("b"), "tool_calls": value, "reasoning_content": value}], "tools": value}
    assert conversational(row) == plain


NAMED = (
    "{% for m in messages %}[{{ m.name or m.role }}{{ m.get('mood', '') }}]{{ m.content }}{{ eos_token }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("message", "fields", "reason"),
    [
        (0, {"name": "ann"}, ("name cannot be kept", "message 1 of the prompt: the chat template writes it")),
        (1, {"name": "bot"}, ("name cannot be kept", "message 1 of the response: the chat template writes it")),
        (0, {"a": 1, "mood": [1]}, ("mood cannot be kept", "message 1 of the prompt: the chat template writes it")),
        (0, {"name": "user"}, None),  # as without
        (0, {"weight": 0.5, "lang": "en", "name": None, "mood": " "}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", ["conversational", "prompt-completion"])
def test_a_field_of_any_name_that_the_template_writes_is_a_reject(
    task: str, message: int, fields: dict[str, Any], reason: tuple[str, str] | None, reference: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = NAMED
    messages = [user("Who?"), assistant("Ada.")]
    messages[message] |= fields
    row = {"messages": messages} if task == "conversational" else {"prompt": messages[:1], "completion": messages[1:]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    [example] = load_examples(str(tmp_path / "rows.jsonl"), task)
    assert example.prompt == [user("Who?")]
    groups, rejects, _ = prepare_groups([example], task, tokenizer, 128)
    assert [(reject.reason, reject.detail) for reject in rejects] == ([reason] if reason else [])
    assert [group.prompt for group in groups] == ([] if reason else ["[user]Who?<|endoftext|>"])


@pytest.mark.parametrize("field", ROW_FIELDS)
def test_what_a_row_says_beside_its_texts_is_a_reject(field: str, reference: Path, tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": " there", field: value} for text, value in (("go", ["a.png"]), ("so", []))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = load_examples(str(tmp_path / "rows.jsonl"), "prompt-completion")
    groups, rejects, _ = prepare_groups(examples, "prompt-completion", load_tokenizer(str(reference)), 128)
    expected = (f"{field} cannot be kept", "beside a text, of which prompt and response are kept")
    assert [(reject.reason, reject.detail) for reject in rejects] == [expected]
    assert [group.prompt for group in groups] == ["so"]


def test_the_last_message_of_a_conversation_is_the_response():
    system = {"role": "system", "content": ""}
    row = {"messages": [system, user("a"), assistant("b"), user("c"), assistant("d")], "id": 7}
    assert conversational(row) == ([system, user("a"), assistant("b"), user("c")], [assistant("d")])
    assert chat_problem(*conversational(row)) is None


def test_a_continuation_takes_the_text_whole():
    assert continuation({"text": " any text ", "id": 3}) == (" any text ", "")
    assert TASKS["continuation"].problem(" any text ", "") is None


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        ([], "empty prompt", ""),
        ([assistant("b")], "empty prompt", ""),
        ([user(" "), assistant("b")], "empty prompt", ""),
        ([user("a"), assistant("\n")], "empty response", ""),
        ([user("a"), assistant("b"), user("c")], "response is not one assistant message", "its roles: user"),
        (["a", assistant("b")], "malformed message", "message 1 of the prompt has no role"),
        ([user("a"), {"content": "b"}], "malformed message", "message 1 of the response has no role"),
        ([user("a"), user([{"text": "b"}]), assistant("c")], "prompt is not text", "content of message 2: it is list"),
        ([user("a"), assistant(None)], "response is not text", "content of message 1: it is NoneType"),
        (
            [user("\ud800"), assistant("b")],
            "prompt is not valid Unicode",
            "content of message 1: surrogates not allowed",
        ),
        ("user: a", "prompt is not a list of messages", "it is str"),
        ({"role": "user"}, "prompt is not a list of messages", "it is dict"),
    ],
)
def test_a_conversation_without_prompt_or_answer_is_refused(messages: Any, reason: str, detail: str):
    assert chat_problem(*conversational({"messages": messages})) == (reason, detail)


@pytest.mark.parametrize(
    ("prompt", "completion", "reason", "detail"),
    [
        ([user("a")], "b", "response is not a list of messages", "it is str"),
        ("a", [assistant("b")], "response is not text", "it is list"),
        ([user("a")], [], "empty response", ""),
        (
            [user("a")],
            [assistant("b"), user("c"), assistant("d")],
            "response is not one assistant message",
            "its roles: assistant, user, assistant",
        ),
        (["a"], ["b"], "malformed message", "message 1 of the prompt has no role"),
    ],
)
def test_prompt_and_completion_must_be_of_one_kind(prompt: Any, completion: Any, reason: str, detail: str):
    assert pair_problem(*prompt_completion({"prompt": prompt, "completion": completion})) == (reason, detail)


OWN_TASK = """
import dataclasses

from data.sources.encode import encode_pairs
from data.sources.tasks import Task, text_problem

QUESTIONS = Task(
    columns=("q", "a"),
    read=lambda row: (f"Q: {row.get('q')} A:", row.get("a")),
    query=lambda row: row["q"],
    problem=text_problem,
    encode=encode_pairs,
)
NOT_ONE = 3
CUT = dataclasses.replace(QUESTIONS, over_long="cut")
"""


def test_a_task_from_outside_reads_rows_and_is_described_by_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tasks.py").write_text(OWN_TASK)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Q: 1 + 1?", "a": "2"}))
    monkeypatch.syspath_prepend(tmp_path)
    task = "own_tasks:QUESTIONS"
    (example,) = load_examples(str(tmp_path / "rows.jsonl"), task)
    assert (example.prompt, example.response, example.query) == ("Q: Q: 1 + 1? A:", "2", "Q: 1 + 1?")
    source_sha256 = hashlib.sha256(OWN_TASK.encode()).hexdigest()
    assert describe_task(task) == {"task": task, "task_source_sha256": source_sha256}
    assert describe_task("dolly") == {"task": "dolly"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("own_tasks:NOT_ONE", "task 'own_tasks:NOT_ONE' is no data.sources.tasks.Task."),
        ("own_tasks:CUT", "task 'own_tasks:CUT' has over_long 'cut', which is none of reject, truncate: see data.so"),
        ("own_tasks:MISSING", "task 'own_tasks:MISSING': module 'own_tasks' defines no 'MISSING'."),
        ("no_such:X", "task 'no_such:X': there is no module 'no_such'."),
        ("doly", "unknown task 'doly'. Did you mean 'dolly'?"),
    ],
)
def test_a_task_that_is_none_is_refused_in_one_line(
    task: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_tasks.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refusal:
        task_of(task)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
