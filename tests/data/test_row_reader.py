"""`--columns` and `--prompt_template`: rows as people have them, read by every task; Alpaca's and ShareGPT's shapes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data.models import load_tokenizer
from data.sources import bounded_jinja
from data.sources.examples import Example, open_source
from data.sources.prepare import prepare_groups
from data.sources.row_paths import NOWHERE
from data.sources.row_paths import Path as RowPath
from data.sources.row_reader import RowReader
from data.sources.shapes import ALPACA_INPUT_TEMPLATE, ALPACA_TEMPLATE, SHAREGPT_ROLES
from data.sources.tasks import TASKS
from tests.support.read_examples import load_examples
from tests.support.written import refusal

TASK = "prompt-completion"
STEPS, CHARACTERS = "takes more than 1,000 rounds of loops and calls", "writes more than 10,000 characters"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """The examples of some rows, in their order in the file."""

    def examples(rows: Sequence[dict[str, Any]], task: str = TASK, **options: Any) -> list[Example]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(open_source(str(path), task, streaming=True, **options))

    return examples


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# Paths


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a", {"b": [{"c": 1}, {"d": 2}], "e": None}),
        ("a.b", [{"c": 1}, {"d": 2}]),
        ("a.b[].c", [1, None]),
        ("a.e", None),
        ("l[]", ["x", "y"]),
        ("n[][].v", NOWHERE),  # lists of lists
        ("n[].v[]", NOWHERE),
        ("empty[].v", []),
        ("a.b[].z", NOWHERE),
        ("a.x", NOWHERE),
        ("l.x", NOWHERE),
        ("a[].b", NOWHERE),
        ("z", NOWHERE),
    ],
)
def test_a_path_leads_into_a_row_or_nowhere(path: str, found: Any):
    row = {
        "a": {"b": [{"c": 1}, {"d": 2}], "e": None},
        "l": ["x", "y"],
        "n": [[{"v": 1}], [{"v": 2}, {"v": 3}]],
        "empty": [],
    }
    assert RowPath.of(path).find(row) == found


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", "a[0]", "a[", "[].a", "a]b", "a.b[]", "a b", "a\nb", "a[].b[].c"])
def test_a_column_of_the_whole_name_goes_first_and_what_is_no_path_can_be_nothing_else(path: str):
    assert RowPath.of(path).find({path: 1, "a": {"b": [2]}}) == 1
    assert RowPath.of(path).find({"a": {"b": [2]}}) == ([2] if path == "a.b[]" else NOWHERE)
    signed = RowPath.of(f"-{path}", signed=True)
    assert (signed.find({path: 1}), signed.sign) == (1, -1)


@pytest.mark.parametrize("path", ["", " "])
def test_what_writes_no_place_is_refused(path: str):
    assert f"'{path}' is no place in a row." in refusal(lambda: RowPath.of(path))


# Columns


def test_every_task_reads_other_columns_under_its_own_names(read: Any):
    rows = {
        "dolly": ({"q": "Do.", "a": "Done.", "c": "Here."}, "instruction=q,response=a,context=c"),
        "prompt-completion": ({"x": {"q": "Do."}, "a": "Done."}, "prompt=x.q,completion=a"),
        "conversational": ({"chat": [turn("user", "Do."), turn("assistant", "Done.")]}, "messages=chat"),
        "alpaca": ({"q": "Do.", "a": "Done.", "c": "Here."}, "instruction=q,output=a,input=c"),
        "sharegpt": (
            {"turns": [{"from": "human", "value": "Do."}, {"from": "gpt", "value": "Done."}]},
            "conversations=turns",
        ),
        "continuation": ({"story": {"text": "Once upon a time."}}, "text=story.text"),
    }
    assert rows.keys() == TASKS.keys()
    for task, (row, columns) in rows.items():
        places = dict(item.split("=") for item in columns.split(","))
        plain = {name: RowPath.of(place).find(row) for name, place in places.items()}
        (mapped,), (own,) = read([row], task, columns=columns.split(",")), read([plain], task)
        assert mapped.problem is None
        assert mapped == own


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["promt=a"], "reads no 'promt'. Did you mean 'prompt'? It reads prompt, completion, tools"),
        (["prompt"], "--columns 'prompt' must read NAME=COLUMN"),
        (["prompt=a", "prompt=b"], "--columns names 'prompt' twice."),
        (
            ["prompt=a[0]"],
            "has no column 'a[0]', of --columns prompt=a[0]; it has: prompt, completion. Correct --columns: a column, "
            "or a path such as answers[].text, with one [] at most.",
        ),
        (
            ["candidates=a[].b[].c"],
            "has no column 'a[].b[].c', of --columns candidates=a[].b[].c; it has: prompt, completion. Correct "
            "--columns: a column, or a path such as answers[].text, with one [] at most.",
        ),
        (["prompt=-a"], "has no column '-a', of --columns prompt=-a; it has: prompt, completion."),
        (["completion=answers[].text"], "has no column 'answers[].text', of --columns completion=answers[].text; it"),
    ],
)
def test_names_and_columns_that_there_are_not_are_refused(read: Any, columns: list[str], said: str):
    rows = [{"prompt": "p", "completion": "c"}]
    assert said in refusal(lambda: read(rows, columns=columns))


def test_a_row_without_the_field_is_a_reject_and_the_others_stay(read: Any):
    rows = [{"q": {"text": "p"}, "completion": "c"}, {"q": {}, "completion": "c"}]
    good, bad = read(rows, columns=["prompt=q.text"])
    assert (good.prompt, good.problem, good.query) == ("p", None, "p")
    assert bad.problem == ("prompt is not text", "it is NoneType")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_with_a_dot_in_its_name_is_read(read: Any, tmp_path: Path, streaming: bool):
    path = tmp_path / "rows.csv"
    path.write_text("q.text,completion,q\n7,c,x\n")  # of a column that is read, a number is a text
    cases: list[dict[str, Any]] = [{"columns": ["prompt=q.text"]}, {"prompt_template": "{q.text}"}]
    for options in cases:
        (found,) = open_source(str(path), TASK, streaming=streaming, **options)
        assert (found.prompt, found.problem) == ("7", None)
    row = {"prompt": "p", "completion": "c", "o": ["no"], "o.a": ["x"], "o.s": [2]}
    (found,) = read([row], columns=["candidates=o.a", "scores=-o.s"])
    assert listed(found) == [("x", -2.0)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_whose_name_is_no_path_is_read(tmp_path: Path, name: str, streaming: bool):
    row = {"turns[0].value": "p", "a..b": "c", "turns": "no"}
    table = pa.Table.from_pylist([row])
    if name.endswith("jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    elif name.endswith("csv"):
        pyarrow.csv.write_csv(table, tmp_path / name)
    else:
        pq.write_table(table, tmp_path / name)
    columns = ["prompt=turns[0].value", "completion=a..b"]
    (found,) = open_source(str(tmp_path / name), TASK, streaming=streaming, columns=columns)
    assert (found.prompt, found.response, found.problem) == ("p", "c", None)


def test_nested_columns_of_parquet_are_read(tmp_path: Path):
    rows = [{"q": {"text": f"p{i}"}, "answers": [{"t": "a"}, {"t": f"b{i}"}], "other": 1} for i in range(4)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    columns = ["prompt=q.text", "candidates=answers[].t", "completion=q.text"]
    found = list(open_source(str(tmp_path / "rows.parquet"), TASK, columns=columns))
    assert sorted((e.prompt, e.response, tuple(e.alternatives or ())) for e in found) == [
        (f"p{i}", f"p{i}", ("a", f"b{i}")) for i in range(4)
    ]


# Templates


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


def test_what_decides_the_examples_is_described_and_nothing_else():
    assert RowReader.of(TASK).describe() == {"task": TASK}
    found = RowReader.of("dolly", ["response=a.b"], "{instruction}").describe()
    assert found == {
        "task": "dolly",
        "columns": {"response": "a.b"},
        "prompt_template": {"syntax": "text", "source": "{instruction}"},
    }


# Shapes


def test_alpacas_rows_get_its_prompts(read: Any):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say ho.", "output": "ho"},
        {"instruction": " ", "input": "x", "output": "ho"},
    ]
    first, second, third, blank = read(rows, "alpaca")
    assert first.prompt == ALPACA_INPUT_TEMPLATE.format(instruction="Add.", input="1 2")
    assert (first.response, first.query) == ("3", "Add.\n\n1 2")
    assert second.prompt == ALPACA_TEMPLATE.format(instruction="Say hi.")
    assert (third.query, blank.problem) == ("Say ho.", ("empty prompt", ""))


def test_sharegpts_turns_become_messages(read: Any):
    human, gpt = {"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Ho.", "weight": 1}
    rows = [
        {"id": "x", "conversations": [{"from": "system", "value": "Be brief."}, human, gpt]},
        {"system": "Be brief.", "conversations": [human, gpt]},
        {"system": "", "conversations": [human, gpt, human, gpt]},
        {"conversations": [human, gpt, human]},
        {"conversations": [human, {"from": "observation", "value": "7"}, gpt]},
        {"conversations": [human, "gpt"]},
        {"conversations": None},
    ]
    found = read(rows, "sharegpt")
    system, said = turn("system", "Be brief."), [turn("user", "Hi."), turn("assistant", "Ho.")]
    assert [(e.prompt, e.response) for e in found[:3]] == [
        ([system, said[0]], said[1:]),
        ([system, said[0]], said[1:]),
        ([*said, said[0]], said[1:]),
    ]
    assert [e.problem for e in found[3:]] == [
        ("response is not one assistant message", "its roles: user"),
        ("unknown role", f"a turn is from 'observation'; known: {', '.join(SHAREGPT_ROLES)}"),
        ("malformed message", "message 1 of the response has no role"),
        ("prompt is not a list of messages", "it is NoneType"),
    ]
    assert found[1].problem == ("duplicate", "same prompt and response as an earlier row")


# Candidates


def listed(example: Example) -> list[tuple[Any, float | None]]:
    alternatives = example.alternatives or []
    return list(zip(alternatives, example.scores or [None] * len(alternatives), strict=True))


def test_candidates_stand_beside_a_ground_truth_that_the_row_names(read: Any):
    rows = [{"prompt": "p", "completion": "c", "others": ["a", " ", "b"], "marks": [1, 2, "3.5"]}]
    (plain,) = read(rows, columns=["candidates=others"])
    assert (plain.response, listed(plain)) == ("c", [("a", None), ("b", None)])
    (scored,) = read(rows, columns=["candidates=others", "scores=-marks"])
    assert (scored.response, listed(scored)) == ("c", [("a", -1.0), ("b", -3.5)])


def test_the_first_of_the_best_is_the_ground_truth_where_none_is_named(read: Any):
    columns = ["candidates=others", "scores=marks"]
    rows = [
        {"prompt": "p", "others": ["a", "b", "c"], "marks": [1, 2, 2]},
        {"prompt": "p", "completion": "", "others": ["", "b"], "marks": [9, 2]},
        {"prompt": "p", "completion": None, "others": [], "marks": []},
    ]
    first, second, none = read(rows, columns=columns)
    assert (first.response, listed(first)) == ("b", [("a", 1.0), ("c", 2.0)])
    assert (second.response, listed(second)) == ("b", [])
    assert none.problem == ("response is not text", "it is NoneType")


def test_the_chosen_truth_is_that_of_every_order(read: Any):
    """So generation, training and evaluation have the same ground truths and ids."""
    row = {"prompt": "p", "others": ["a", "b"], "marks": [1, 2]}
    (found,) = read([row], columns=["candidates=others", "scores=marks"])
    (named,) = read([{"prompt": "p", "completion": "b"}])
    assert found.id == named.id


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"others": 5, "marks": [1]}, ("candidates are no list", "they are int")),
        ({"others": ["a"], "marks": [1, 2]}, ("scores do not match candidates", "1 candidates, scores: 2")),
        ({"others": ["a", "b"], "marks": 7}, ("scores do not match candidates", "2 candidates, scores: 1")),
        (
            {"others": ["a"], "marks": None},
            ("scores do not match candidates", "1 candidates, scores: NoneType, no list"),
        ),
        (
            {"completion": None, "others": ["a", "b", " "], "marks": ["N/A", True, 7]},
            ("score is no number", "of none of the 2 candidates"),
        ),
        ({"completion": None, "others": 5, "marks": [1]}, ("candidates are no list", "they are int")),
    ],
)
def test_candidates_and_scores_that_are_none_reject_the_row(read: Any, row: dict[str, Any], problem: tuple[str, str]):
    good = {"prompt": "q", "completion": "c", "others": ["x"], "marks": [1]}
    (_, found) = read([good, {"prompt": "p", "completion": "c", **row}], columns=["candidates=others", "scores=marks"])
    assert found.problem == problem


def test_a_candidate_that_cannot_be_used_costs_no_other(reference: Path, read: Any):
    others, marks = ["a", None, 7, 0, "b", "c", "d", " "], [1, None, 2, 3, "N/A", float("nan"), 4, "N/A"]
    row = {"prompt": "p", "completion": "e", "others": others, "marks": marks}
    (found,) = read([row], columns=["candidates=others", "scores=marks"])
    assert (found.problem, listed(found)) == (None, [("a", 1.0), ("d", 4.0)])
    assert found.unusable == ["response is not text"] * 2 + ["score is no number"] * 2
    ((group,), _, _) = prepare_groups([found], TASK, load_tokenizer(str(reference)), 128)
    assert [(bool(a.ids), a.score, a.problem) for a in group.alternatives or []] == [
        (True, 1.0, ""),
        (True, 4.0, ""),
        *((False, None, problem) for problem in found.unusable),
    ]
    (chosen,) = read([{**row, "completion": None}], columns=["candidates=others", "scores=marks"])
    assert (chosen.response, listed(chosen)) == ("d", [("a", 1.0)])


def test_candidates_of_a_chat_are_messages_or_texts(reference: Path, read: Any):
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompt = [turn("user", "Where is it?")]
    row = {
        "prompt": prompt,
        "completion": [turn("assistant", "On Aska.")],
        "others": [[turn("assistant", "On Brenn.")], turn("assistant", "On Dova.")],
    }
    texts = {**row, "others": ["On Brenn.", "On Dova."]}
    by_messages, by_texts = (read([one], columns=["candidates=others"]) for one in (row, texts))
    assert by_messages[0].alternatives == by_texts[0].alternatives == [[turn("assistant", s)] for s in texts["others"]]
    ((group,), _, _) = prepare_groups(by_messages, TASK, tokenizer, 128)
    others = [{**row, "completion": [turn("assistant", said)]} for said in texts["others"]]
    own = prepare_groups(read(others), TASK, tokenizer, 128).groups
    assert [a.ids for a in group.alternatives or []] == [one.response_ids for one in own]
    assert {tuple(one.prompt_ids) for one in own} == {tuple(group.prompt_ids)}
    elsewhere = [turn("user", "Who?"), turn("assistant", "On Brenn.")]
    (bad,) = read([{**row, "others": [elsewhere]}], columns=["candidates=others"])
    assert (bad.problem, bad.alternatives, bad.unusable) == (None, [], ["response is not one assistant message"])


@pytest.mark.parametrize("name", ["candidates", "scores"])
def test_tasks_without_a_place_for_responses_take_no_candidates_and_others_are_named(name: str):
    assert refusal(lambda: RowReader.of("continuation", [f"{name}=x"])) == (
        f"--columns {name}=...: task 'continuation' reads no '{name}', since its rows have no place for a response "
        "alone. Leave it out, or choose a --task that has: dolly, prompt-completion, conversational, alpaca, sharegpt."
    )


def test_the_embedded_world_is_read_as_ever():
    assert [e.alternatives for e in load_examples("facts", TASK, limit=2)] == [None, None]
