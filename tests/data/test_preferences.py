"""Candidates of every task: preference data in the shapes of TRL and LLaMA-Factory, and scored answers to chats."""

from pathlib import Path
from typing import Any

import pytest

from data.models import load_tokenizer
from data.sources.prepare import prepare_groups
from data.sources.row_reader import RowReader
from tests.support.written import refusal

ASKED, GOOD, BAD = "Where is Aska?", "In the north.", "I do not know."
PREFERRED = "prompt=prompt,completion=chosen,candidates=rejected"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


CHAT = ([user(ASKED)], [assistant(GOOD)], [[assistant(BAD)]])
TEXT = (ASKED, GOOD, [BAD])
# Name of the shape -> task, columns, row, and prompt, response and alternatives that are read.
SHAPES: dict[str, tuple[str, str, dict[str, Any], tuple[Any, Any, list[Any]]]] = {
    "TRL, texts": (
        "prompt-completion",
        PREFERRED,
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        TEXT,
    ),
    "TRL, messages": (
        "prompt-completion",
        PREFERRED,
        {"prompt": [user(ASKED)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
        CHAT,
    ),
    "TRL, messages that repeat the prompt": (
        "prompt-completion",
        PREFERRED,
        {
            "prompt": [user(ASKED)],
            "chosen": [user(ASKED), assistant(GOOD)],
            "rejected": [user(ASKED), assistant(BAD)],
        },
        CHAT,
    ),
    "TRL, the prompt in the messages alone, as in ultrafeedback_binarized": (
        "conversational",
        "messages=chosen,candidates=rejected",
        {
            "prompt": ASKED,
            "chosen": [user(ASKED), assistant(GOOD)],
            "rejected": [user(ASKED), assistant(BAD)],
            "score_chosen": 8.0,
            "score_rejected": 7.5,
        },
        CHAT,
    ),
    "a conversation and a text": (
        "conversational",
        "candidates=rejected",
        {"messages": [user(ASKED), assistant(GOOD)], "rejected": BAD, "response": "of something else"},
        CHAT,
    ),
    "a conversation without an answer, and two messages": (
        "conversational",
        "response=chosen,candidates=rejected",
        {"messages": [user(ASKED)], "chosen": assistant(GOOD), "rejected": assistant(BAD)},
        CHAT,
    ),
    "LLaMA-Factory, Alpaca's": (
        "alpaca",
        "output=chosen,candidates=rejected",
        {"instruction": ASKED, "input": "", "chosen": GOOD, "rejected": BAD},
        (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{ASKED}\n\n### Response:",
            GOOD,
            [BAD],
        ),
    ),
    "LLaMA-Factory, ShareGPT's": (
        "sharegpt",
        "response=chosen,candidates=rejected",
        {"conversations": [human(ASKED)], "chosen": gpt(GOOD), "rejected": gpt(BAD)},
        CHAT,
    ),
    "ShareGPT's with the answer in it, and a text": (
        "sharegpt",
        "candidates=rejected",
        {"conversations": [human(ASKED), gpt(GOOD)], "rejected": BAD, "response": "of something else"},
        CHAT,
    ),
    "ShareGPT's, twice the whole conversation": (
        "sharegpt",
        "conversations=chosen,candidates=rejected",
        {"chosen": [human(ASKED), gpt(GOOD)], "rejected": [human(ASKED), gpt(BAD)]},
        CHAT,
    ),
}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_preferences_are_read_in_every_shape(read: Any, shape: str, streaming: bool) -> None:
    task, columns, row, expected = SHAPES[shape]
    (found,) = read([row], task, columns, streaming)
    assert (found.problem, found.unusable) == (None, None)
    assert (found.prompt, found.response, found.alternatives) == expected
    assert found.query == ASKED


@pytest.mark.parametrize("task", ["conversational", "sharegpt"])
def test_candidates_may_be_texts_messages_or_conversations(read: Any, task: str) -> None:
    said, asks, column = (assistant, user, "messages") if task == "conversational" else (gpt, human, "conversations")
    turns = [asks("Hi."), said("Ho."), asks(ASKED)]
    others = [BAD, said("Far."), [said("Near.")], [*turns, said("East.")], [asks("Who?"), said("Me.")], [asks("What?")]]
    system = {"system": "Be brief."} if task == "sharegpt" else {}
    (found,) = read([{column: [*turns, said(GOOD)], "others": others, **system}], task, "candidates=others")
    assert found.problem is None
    opening = [{"role": "system", "content": "Be brief."}] if system else []
    assert found.prompt == [*opening, user("Hi."), assistant("Ho."), user(ASKED)]
    assert found.response == [assistant(GOOD)]
    assert found.alternatives == [[assistant(text)] for text in (BAD, "Far.", "Near.", "East.")]
    assert found.unusable == ["the prompt before it is not the row's", "response is not one assistant message"]


def test_a_list_of_messages_is_several_candidates_if_the_assistant_says_them_all(read: Any) -> None:
    row = {"messages": [user(ASKED), assistant(GOOD)], "others": [assistant(BAD), assistant("Far.")]}
    (several,) = read([row], "conversational", "candidates=others")
    assert several.alternatives == [[assistant(BAD)], [assistant("Far.")]]
    (one,) = read([{**row, "others": [user("Who?"), assistant(BAD)]}], "conversational", "candidates=others")
    assert (one.alternatives, one.unusable) == ([], ["the prompt before it is not the row's"])


@pytest.mark.parametrize("task", ["conversational", "sharegpt"])
def test_a_candidate_behind_a_prompt_of_other_white_space_is_told_from_no_answer(read: Any, task: str) -> None:
    said, asks, column = (assistant, user, "messages") if task == "conversational" else (gpt, human, "conversations")
    others = [[asks(ASKED + " "), said(BAD)], [asks(ASKED), said(BAD)]]
    (found,) = read([{column: [asks(ASKED), said(GOOD)], "others": others}], task, "candidates=others")
    assert found.alternatives == [[assistant(BAD)]]
    assert found.unusable == ["the prompt before it is not the row's"]


@pytest.mark.parametrize(
    ("task", "turns", "others"),
    [
        ("conversational", {"messages": [user(ASKED)]}, [BAD, GOOD]),
        ("conversational", {"messages": [user(ASKED)]}, [[user(ASKED), assistant(BAD)], [assistant(GOOD)]]),
        ("sharegpt", {"conversations": [human(ASKED)]}, [gpt(BAD), gpt(GOOD)]),
    ],
)
def test_the_best_scored_candidate_answers_a_conversation_that_nobody_has(
    read: Any, task: str, turns: dict[str, Any], others: list[Any]
) -> None:
    columns = "candidates=others,scores=marks"
    (found,) = read([{**turns, "others": others, "marks": [1, 2]}], task, columns)
    assert (found.prompt, found.response, found.alternatives) == CHAT
    assert found.scores == [1.0]
    (column, said), says = next(iter(turns.items())), gpt if task == "sharegpt" else assistant
    (named,) = read([{column: [*said, says("Far.")], "others": others, "marks": [1, 2]}], task, columns)
    assert (named.response, named.scores) == ([assistant("Far.")], [1.0, 2.0])


def test_a_score_of_one_candidate_is_a_list_of_one(read: Any) -> None:
    row = {"messages": [user(ASKED), assistant(GOOD)], "rejected": [user(ASKED), assistant(BAD)], "mark": 7.5}
    (found,) = read([row], "conversational", "candidates=rejected,scores=mark")
    assert (found.alternatives, found.scores) == ([[assistant(BAD)]], [7.5])


def test_what_does_not_fit_is_a_reject_or_counted(reference: Path, read: Any) -> None:
    good = {"conversations": [human(ASKED)], "chosen": gpt(GOOD), "rejected": gpt(BAD)}
    rows = [
        good,
        {**good, "chosen": None},
        {**good, "chosen": human("Why?")},
        {**good, "chosen": [human("Who?"), gpt("Me.")]},
        {**good, "chosen": gpt("Far."), "rejected": human("Why?")},
        {**good, "chosen": gpt("Near."), "rejected": {"from": "function_call", "value": "{}"}},
        {**good, "chosen": gpt("East."), "rejected": None},
    ]
    found = read(rows, "sharegpt", "response=chosen,candidates=rejected")
    assert [e.problem for e in found] == [
        None,
        ("response is not a list of messages", "it is NoneType"),
        ("response is not one assistant message", "its roles: user"),
        ("response is not one assistant message", "its roles: user, assistant"),
        *[None] * 3,
    ]
    assert [e.unusable for e in found[4:]] == [["response is not one assistant message"], ["unknown role"], None]
    assert [e.alternatives for e in found[4:]] == [[], [], []]
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    groups, rejects, _ = prepare_groups(found, "sharegpt", tokenizer, 128)
    assert (len(groups), len(rejects)) == (4, 3)
    assert [[a.problem for a in group.alternatives or []] for group in groups] == [
        [""],
        ["response is not one assistant message"],
        ["unknown role"],
        [],
    ]
    (own,) = prepare_groups(
        read([{"conversations": [human(ASKED), gpt(BAD)]}], "sharegpt", "conversations=conversations"),
        "sharegpt",
        tokenizer,
        128,
    ).groups
    assert (groups[0].alternatives or [])[0].ids == own.response_ids


def test_a_response_that_no_row_has_is_refused_by_its_column(read: Any) -> None:
    rows = [{"conversations": [human(ASKED), gpt(GOOD)]}]
    message = refusal(lambda: read(rows, "sharegpt", "response=chosen"))
    assert "has no column 'chosen', of --columns response=chosen; it has: conversations." in message


def test_what_is_read_is_described_by_its_columns() -> None:
    assert RowReader.of("sharegpt", ["response=chosen", "candidates=rejected"]).describe() == {
        "task": "sharegpt",
        "columns": {"response": "chosen", "candidates": "rejected"},
    }
