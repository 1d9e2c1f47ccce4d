"""`--prompt_template`: texts with columns, and Jinja files within bounds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.sources import bounded_jinja
from data.sources.examples import open_source
from data.sources.row_reader import RowReader
from tests.support.source_rows import TASK
from tests.support.written import refusal

STEPS, CHARACTERS = "takes more than 1,000 rounds of loops and calls", "writes more than 10,000 characters"
pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_template_writes_the_prompt_and_the_query_stays_what_was_asked(read: Any, tmp_path: Path):
    rows = [{"question": "Why?", "facts": {"first": 7}, "answer": "So."}]
    columns = ["prompt=question", "completion=answer"]
    template = "Given {facts.first} {{x}}:\n{question}\nA:"
    (found,) = read(rows, columns=columns, prompt_template=template)
    assert (found.prompt, found.response) == ("Given 7 {x}:\nWhy?\nA:", "So.")
    assert found.query == "Why?"
    # By the task's name too; without a column of the prompt, what was asked is all of it.
    assert read(rows, columns=columns, prompt_template="Q: {prompt}")[0].prompt == "Q: Why?"
    assert read(rows, columns=["completion=answer"], prompt_template="Q: {question}")[0].query == "Q: Why?"
    (dolly,) = read(
        [{"instruction": "Do.", "context": "Here.", "response": " Done. "}], "dolly", prompt_template="<{instruction}>"
    )
    assert (dolly.prompt, dolly.response, dolly.query) == ("<Do.>", "Done.", "Do.\n\nHere.")


def test_a_jinja_file_is_filled_in_a_sandbox(read: Any, tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("{% if input %}\n[{{ input }}] \n{% endif %}\n{{ instruction }}{{ '!' * 2 }}\n")
    rows = [
        {"instruction": "do", "input": None, "output": "x"},
        {"instruction": "do", "input": "it", "output": "y"},
        {"instruction": "do", "output": "z"},
        {"instruction": None, "input": "it", "output": "x"},
    ]
    found = read(rows, "alpaca", prompt_template=str(file))
    assert [e.prompt for e in found[:3]] == ["do!!", "[it] \ndo!!", "do!!"]
    assert found[3].problem == ("prompt template failed", "a value that it writes is null")
    file.write_text("{{ instruction.__class__.__mro__[1].__subclasses__() }}")
    (unsafe,) = read(rows[:1], "alpaca", prompt_template=str(file))
    assert unsafe.problem is not None
    assert unsafe.problem[0] == "prompt template failed"


@pytest.mark.parametrize("name", ["my question", "first\nsecond", "q[0]"])
def test_a_template_writes_a_column_of_any_name(read: Any, tmp_path: Path, name: str):
    rows = [{name: "why", "prompt": "p", "completion": "c"}]
    assert read(rows, prompt_template=f"Q: {{{name}}}?")[0].prompt == "Q: why?"
    message = refusal(lambda: read([{"prompt": "p", "completion": "c"}], prompt_template=f"Q: {{{name}}}?"))
    assert f"has no column '{name}', which --prompt_template writes; it has: prompt, completion." in message
    file = tmp_path / "t.jinja"
    file.write_text(f"Q: {{{{ {name} }}}}?")
    if name != "q[0]":  # an item of q, in Jinja
        assert re.search(
            r"t\.jinja', line [12]: expected token", refusal(lambda: read(rows, prompt_template=str(file)))
        )
    file.write_text("Q: {{ prompt }}?")  # so it is given a name that Jinja can say
    assert read(rows, columns=[f"prompt={name}"], prompt_template=str(file))[0].prompt == "Q: why?"


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("{% include 'x.jinja' %}", ", 'x.jinja'"),
        ("{% import 'x.jinja' as x %}", ", 'x.jinja'"),
        ("{% from 'x.jinja' import y %}", ", 'x.jinja'"),
        ("{% extends 'x.jinja' %}", ", 'x.jinja'"),
        ("{% include prompt %}", ""),
    ],
)
def test_a_jinja_file_reads_no_other(tmp_path: Path, said: str, other: str):
    file = tmp_path / "t.jinja"
    file.write_text("{{ prompt }}" + said)
    message = refusal(lambda: RowReader.of(TASK, prompt_template=str(file)))
    assert message == f"--prompt_template '{file}' reads another file{other}. Write all of it in one."


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("endless", "what"),
    [
        ("{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}", STEPS),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", STEPS),
        ("{% for i in range(n) %}{% set x = range(n)|list %}{% endfor %}", STEPS),
        ("{% macro f(k) %}{% if k %}{{ f(k - 1) }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(n // 50) }}", STEPS),
        ("{% for i in range(n) %}{{ prompt * n }}{% endfor %}", CHARACTERS),
        ("{{ 'x' * 10 ** 11 }}", CHARACTERS),
        ("{{ n ** (10 ** 9) }}", CHARACTERS),
    ],
)
def test_a_template_without_an_end_stops_with_its_name_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool, endless: str, what: str
):
    monkeypatch.setattr(bounded_jinja, "MOST_STEPS", 1000)
    monkeypatch.setattr(bounded_jinja, "MOST_CHARACTERS", 10_000)
    file, rows = tmp_path / "t.jinja", tmp_path / "rows.jsonl"
    file.write_text("{{ prompt }}" + endless)
    rows.write_text("".join(json.dumps({"prompt": "p", "completion": "c", "n": n}) + "\n" for n in (1, 2, 900)))
    row = 1 if "10 **" in endless else 3
    options: dict[str, Any] = {"streaming": streaming, "prompt_template": str(file)}
    assert refusal(lambda: list(open_source(str(rows), TASK, **options))) == (
        f"--prompt_template '{file}' {what} for row {row} of data set '{rows}'. Correct the template."
    )


def test_the_bounds_leave_a_template_what_it_was(read: Any, tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text(
        "{% macro say(m, context='') %}{{ m.role }}: {{ m.text }}{{ context }}{% endmacro %}"
        "{% for m in turns if m.text %}{{ loop.index }}/{{ loop.length }} {{ say(m, context='!') }}"
        "{{ ', ' if not loop.last else '.' }}{% else %}none{% endfor %}"
        "{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}"
        "{% for t in tree recursive %}<{{ t.n }}{{ loop(t.s) if t.s else '' }}>{% endfor %}{{ 2 ** 3 * 2 }}"
    )
    turns = [{"role": "a", "text": "x"}, {"role": "b", "text": ""}, {"role": "c", "text": "y"}]
    rows = [
        {"completion": "c", "turns": turns, "tree": [{"n": 1, "s": [{"n": 2, "s": []}]}, {"n": 3, "s": []}]},
        {"completion": "c", "turns": [], "tree": []},
    ]
    assert [e.prompt for e in read(rows, prompt_template=str(file))] == [
        "1/2 a: x!, 2/2 c: y!.531<1<2>><3>16",
        "none53116",
    ]
    file.write_text("{{ [prompt, 'x']|random }}")
    message = refusal(lambda: read([{"prompt": "p", "completion": "c"}], prompt_template=str(file)))
    assert "No filter named 'random'" in message


def test_columns_that_are_in_other_rows_are_not_missed(read: Any, tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ prompt }}{% if x %} x{{ x }}{% endif %}{% if y %} y{{ y }}{% endif %}")
    rows = [{"prompt": "p", "completion": "c", "x": 1}, {"prompt": "p", "completion": "c", "y": 2}]
    assert [e.prompt for e in read(rows, prompt_template=str(file))] == ["p x1", "p y2"]
    message = refusal(lambda: read(rows[:1], prompt_template=str(file)))
    assert "has no column 'y', which --prompt_template writes; it has: prompt, completion, x." in message


def test_a_null_in_a_template_is_a_reject_with_its_column(read: Any):
    rows = [
        {"q": "a", "completion": "c"},
        {"q": None, "completion": "c"},
        {"completion": "c"},
        {"q": ["x"], "completion": ""},
        {"prompt": "own", "completion": "c"},
    ]
    found = read(rows, prompt_template="{q}?")
    assert [e.prompt for e in found] == ["a?", "", "", "", "own"]  # what a reject shows
    assert [e.problem for e in found] == [
        None,
        ("prompt template failed", "q is null"),
        ("prompt template failed", "q is missing"),
        ("prompt template failed", "q is list, no text"),
        ("prompt template failed", "q is missing"),
    ]


@pytest.mark.parametrize(
    ("task", "template", "said"),
    [
        (TASK, "{nothing}", "has no column 'nothing', which --prompt_template writes; it has: prompt, completion."),
        (TASK, "Say it.", "--prompt_template 'Say it.' names no column"),
        (TASK, "{prompt", "--prompt_template '{prompt': expected '}' before end of string."),
        (TASK, "{prompt!r}", "only {column} is written"),
        (TASK, "{prompt:>9}", "only {column} is written"),
        (TASK, "{}", "'' is no place in a row."),
        (TASK, "{a[].b}", "{a[].b} is a list. Use a Jinja file to write one."),
        (TASK, r"{prompt}\nA:", "holds a backslash and an n, not a new line."),
        (TASK, "missing.j2", "cannot read --prompt_template 'missing.j2': No such file or directory."),
        ("conversational", "{prompt}", "task 'conversational' takes no --prompt_template"),
        ("continuation", "{prompt}", "task 'continuation' takes no --prompt_template"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(read: Any, task: str, template: str, said: str):
    rows = [{"prompt": "p", "completion": "c"}]
    assert said in refusal(lambda: read(rows, task, prompt_template=template))


def test_a_jinja_file_with_a_fault_is_refused_with_its_line(read: Any, tmp_path: Path):
    (tmp_path / "t.j2").write_text("{{ prompt }}\n{% if %}")
    message = refusal(lambda: read([{"prompt": "p", "completion": "c"}], prompt_template=str(tmp_path / "t.j2")))
    assert "t.j2', line 2: " in message
