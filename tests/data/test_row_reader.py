"""`--columns`: rows as people have them, read by every task; Alpaca's and ShareGPT's shapes."""

import json
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data.models import load_tokenizer
from data.sources.examples import open_source
from data.sources.prepare import prepare_groups
from data.sources.row_paths import NOWHERE
from data.sources.row_paths import Path as RowPath
from data.sources.row_reader import RowReader
from data.sources.shapes import ALPACA_INPUT_TEMPLATE, ALPACA_TEMPLATE, SHAREGPT_ROLES
from data.sources.tasks import TASKS
from tests.support.source_rows import TASK, listed, turn
from tests.support.written import refusal

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_what_decides_the_examples_is_described_and_nothing_else():
    assert RowReader.of(TASK).describe() == {"task": TASK}
    found = RowReader.of("dolly", ["response=a.b"], "{instruction}").describe()
    assert found == {
        "task": "dolly",
        "columns": {"response": "a.b"},
        "prompt_template": {"syntax": "text", "source": "{instruction}"},
    }


# Shapes


@pytest.mark.parametrize("streaming", [True, False])
def test_what_alpacas_prompts_have_no_place_for_is_a_reject(read: Any, reference: Path, streaming: bool):
    row = {"instruction": "Do.", "output": "Done.", "rejected": "No."}
    beside = [{"system": "Be brief.", "history": None}, {"history": [["Hi.", "Ho."]]}, {"system": "", "history": []}]
    found = read([{**row, **more} for more in beside], "alpaca", "candidates=rejected", streaming)
    groups, rejects, _ = prepare_groups(found, "alpaca", load_tokenizer(str(reference)), 128)
    assert sorted(reject.reason for reject in rejects) == ["history cannot be kept", "system cannot be kept"]
    (plain,) = groups
    assert len(plain.alternatives or []) == 1  # a row with a history lends its candidates to none without


def test_what_the_template_writes_is_kept(read: Any):
    row = {"instruction": "Do.", "output": "Done.", "system": "Be brief."}
    (written,) = read([row], "alpaca", prompt_template="{system} {instruction}")
    assert (written.prompt, written.besides) == ("Be brief. Do.", None)
    (left_out,) = read([row], "alpaca", prompt_template="{instruction}")
    assert left_out.besides == [{"system": True}]


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
