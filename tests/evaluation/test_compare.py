"""`evaluation.compare`: finished runs in one table, and what differs between them."""

import json
import random
import resource
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from evaluation.compare import compare, main, run_names
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report import Results
from evaluation.report.files import to_json
from tests.support.commands import run_command
from tests.support.reports import COLUMNS, make_job, make_results, measured, rate
from tests.support.strange import edited

ENVIRONMENT = {"packages": {"torch": "2.11.0"}, "git_commit": "1" * 40}


def write_run(path: Path, found: list[Measurement], environment: dict[str, Any] = ENVIRONMENT, **job: Any) -> str:
    path.mkdir(parents=True)
    (path / "report.json").write_bytes(to_json(Results(make_job(**job), environment, found, columns=COLUMNS)))
    return str(path)


def compared(paths: list[str]) -> str:
    return compare(paths).markdown()


def section(text: str, title: str) -> list[str]:
    """The lines under a heading."""
    return text.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()


def table_of(text: str) -> list[list[str]]:
    lines = [line for line in section(text, "Measurements") if not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_same_model_in_two_runs_keeps_both_rows(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [rate(0.5, "mle"), rate(0.6, "cpo"), measured("cpo", "nll", 2.0)])
    two = write_run(tmp_path / "two", [rate(0.55, "mle", "beam2"), measured("mle", "mauve", 0.9, "beam2")])
    text = compared([one, two])
    assert table_of(text) == [
        ["run", "model", "decoding", "win rate", "MAUVE", "NLL"],
        ["one", "mle", "greedy", "50.0% ± 1.6", "", ""],
        ["one", "cpo", "greedy", "60.0% ± 1.6", "", "2.000 ± 0.013"],
        ["two", "mle", "beam2", "55.0% ± 1.6", "0.900 ± 0.013", ""],
    ]
    assert section(text, "What differs between the runs") == ["Nothing of the set-up that is recorded."]
    of = "1,000 of 1,010 prompts of databricks-dolly-15k.jsonl, split test; 500 groups of runs/negatives."
    assert f"- one: {one}: {of}" in text.splitlines()
    assert "- win rate: share of the judged prompts on which the judge prefers the answer; a tie is half." in text
    assert "- Blank, or no row: the run did not measure that" in text


def test_differences_between_evaluations_are_said_above_the_table(tmp_path: Path) -> None:
    found = [rate(0.5, "mle")]
    job = make_job()
    other = {
        "data": {**job["data"], "examples_sha256": "8" * 64, "split": "all", "measured": 480},
        "judge": {**job["judge"], "model": "gpt-4o"},
        "max_new_tokens": 64,
        "second_model": {"name": "big", "weights_sha256": "8" * 64},
        "models": {"mle": {"path": "elsewhere", "weights_sha256": "7" * 64}},
        "judge_spent": {"requests": 1},
        "decodings": ["greedy", "beam2"],
    }
    versions = {"packages": {"torch": "2.12.0"}, "git_commit": "1" * 40}
    text = compared([write_run(tmp_path / "a", found), write_run(tmp_path / "b", found, versions, **other)])
    assert section(text, "What differs between the runs") == [
        "- data.split: a: test; b: all",
        "- data.measured: a: 1,000; b: 480",
        "- max_new_tokens: a: 256; b: 64",
        "- judge.model: a: gpt-3.5-turbo; b: gpt-4o",
        "- second_model.name: a: none; b: big",  # what one lacks altogether is one line
        f"- data.examples_sha256: a: {'c' * 16}; b: {'8' * 16}",
        "- environment.packages.torch: a: 2.11.0; b: 2.12.0",
        f"- weights of 'mle': a: {'a' * 16}; b: {'7' * 16}",
    ]
    assert text.index("What differs") < text.index("| run")
    assert section(text, "Verdict") == ["No verdict: the runs are not of the same prompts."]
    many = {"shards": {"sha256": [f"{i:064x}" for i in range(9)]}}
    text = compared([write_run(tmp_path / "c", found), write_run(tmp_path / "d", found, **many)])
    assert section(text, "What differs between the runs")[2].endswith(f"d: {'0' * 16}, {'0' * 16} and 7 more")


def test_measurements_without_answers_stand_once_for_their_model(tmp_path: Path) -> None:
    one = write_run(
        tmp_path / "one",
        [
            measured("a", "nll", 1.0, "greedy"),
            measured("a", "nll", 2.0, "beam2"),
            measured("a", "kendall_tau", 0.5, ""),
        ],
    )
    single = [measured("c", "nll", 3.0), measured("c", "kendall_tau", 0.125, "")]
    two = write_run(tmp_path / "two", [measured("b", "kendall_tau", 0.25, ""), *single])
    assert table_of(compared([one, two])) == [
        ["run", "model", "decoding", "NLL", "Kendall's tau"],
        ["one", "a", "greedy", "1.000 ± 0.013", ""],
        ["one", "a", "beam2", "2.000 ± 0.013", ""],
        ["one", "a", "any", "", "0.500 ± 0.013"],
        ["two", "b", "any", "", "0.250 ± 0.013"],
        ["two", "c", "greedy", "3.000 ± 0.013", "0.125 ± 0.013"],
    ]


def test_several_opponents_are_told_apart(tmp_path: Path) -> None:
    found = [rate(0.5, "cpo"), rate(0.6, "cpo", against="mle")]
    text = compared(
        [write_run(tmp_path / "a", found), write_run(tmp_path / "b", [*found, rate(0.7, "x", against="y")])]
    )
    assert table_of(text)[0][3:] == [
        "win rate against the ground truth", "win rate against mle", "win rate against y"
    ]  # fmt: skip


def test_differences_from_different_baselines_are_different_columns(tmp_path: Path) -> None:
    def write(name: str, baseline: str) -> str:
        found = [measured("cpo", "correct", 0.5), measured("cpo", "correct_difference", 0.25)]
        return write_run(tmp_path / name, found, baseline=baseline)

    one, two, also = write("one", "mle"), write("two", "reference"), write("also", "mle")
    assert table_of(compared([one, two, also])) == [
        ["run", "model", "decoding", "correct answers", "correct answers minus mle", "correct answers minus reference"],
        ["one", "cpo", "greedy", "50.0% ± 1.2", "+25.0% ± 1.2", ""],
        ["two", "cpo", "greedy", "50.0% ± 1.2", "", "+25.0% ± 1.2"],
        ["also", "cpo", "greedy", "50.0% ± 1.2", "+25.0% ± 1.2", ""],
    ]


def test_what_is_of_one_decoding_alone_stands_once_for_its_model(tmp_path: Path) -> None:
    found = [measured("m", "reverse_kl", 3.0, "sample"), *(measured("m", "nll", 1.0, d) for d in ("greedy", "beam2"))]
    asked = [measured("m", "reverse_kl", 2.0, "sample"), measured("m", "nll", 4.0, "sample")]
    one, two = write_run(tmp_path / "one", found), write_run(tmp_path / "two", asked)
    assert table_of(compared([one, two])) == [
        ["run", "model", "decoding", "reverse KL, sample", "NLL"],
        ["one", "m", "greedy", "", "1.000 ± 0.013"],
        ["one", "m", "beam2", "", "1.000 ± 0.013"],
        ["one", "m", "any", "3.000 ± 0.013", ""],
        ["two", "m", "sample", "2.000 ± 0.013", "4.000 ± 0.013"],
    ]


def test_names_of_runs_are_as_short_as_tells_them_apart() -> None:
    assert run_names(["runs/a/evaluation", "runs/b/evaluation/"]) == ["a/evaluation", "b/evaluation"]
    assert run_names(["runs/a", "/elsewhere/b"]) == ["a", "b"]
    assert run_names(["s3://bucket/x/out", "x/out"]) == ["bucket/x/out", "x/out"]
    assert run_names(["out", "./out"]) == ["out", "./out"]


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", [rate(0.5, "mle")])
    two = write_run(tmp_path / "two", [measured("mle", "nll", 2.0)])

    def refusal(*argv: str) -> str:
        assert main(list(argv)) == 2
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    assert (
        refusal()
        == refusal(one)
        == (
            "error: python -m evaluation.compare needs two finished runs or more: RUN RUN ..., the --out of "
            "evaluation.run.\n"
        )
    )
    assert refusal(one, one) == f"error: run '{one}' is given twice. Give each run once.\n"
    assert "has no report.json, so it is no finished evaluation" in refusal(one, str(tmp_path))
    assert "unknown key 'ot'" in refusal(one, two, "--ot", "x")
    assert "is a directory. Give a file" in refusal(
        one, write_run(tmp_path / "same", [rate(0.5, "a")]), "--out", f"{tmp_path}/"
    )
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text('{"report_version": 1}')
    assert "has version 1, this program reads version 3" in refusal(one, str(tmp_path / "old"))
    with pytest.raises(UserError, match="twice"):
        compared([two, one, two])


@pytest.mark.parametrize(
    ("edits", "seed"), [pytest.param(100, 0, id="few"), pytest.param(3000, 1, id="many", marks=pytest.mark.slow)]
)
def test_every_edit_of_a_report_is_a_comparison_or_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], edits: int, seed: int
) -> None:
    runs = [write_run(tmp_path / name, make_results().measurements) for name in ("one", "two")]
    file, draw = tmp_path / "two" / "report.json", random.Random(seed)
    good = file.read_bytes()
    strange: list[Any] = [{"models": models} for models in (0, [1], {"mle": 1}, {"mle": {"weights_sha256": [1]}})]
    endless = {**json.loads(good)["measurements"][0], "n": float("inf")}
    for changed in (
        *({**json.loads(good), "job": job} for job in strange),
        {**json.loads(good), "measurements": [endless]},
        *(edited(json.loads(good), draw) for _ in range(edits)),
    ):
        file.write_text(json.dumps(changed))
        code, said = main(runs), capsys.readouterr()
        assert (code, said.err.count("\n")) in [(0, 0), (2, 1)]
        assert not set("\x1b\u202e") & set(said.out + said.err)


def test_the_command_writes_markdown_and_prints_what_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_run(tmp_path / name, make_results().measurements) for name in ("one", "two")]
    monkeypatch.setenv("COLUMNS", "70")
    assert main([*runs, "--out", str(tmp_path / "made" / "comparison.md")]) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "made" / "comparison.md").read_text()
    assert len(table_of(written)) == 1 + 2 * 2  # mle and anr, in two runs
    table = printed.partition(" run ")[2].partition("\n\nBehind ±")[0].splitlines()
    assert max(map(len, table)) <= 70
    assert not {"|", "**"} & set(printed)
    folded = " ".join(printed.split())
    assert all(heading.split(" ")[0] in folded for heading in table_of(written)[0])


def test_runs_that_share_no_metric_stand_side_by_side(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [rate(0.5, "mle")])
    two = write_run(tmp_path / "two", [measured("mle", "nll", 2.0)])
    text = compared([one, two])
    assert section(text, "Verdict") == [
        "No verdict: nothing that says which way is better was measured alike in all runs."
    ]
    assert [row[3:] for row in table_of(text)] == [["win rate", "NLL"], ["50.0% ± 1.6", ""], ["", "2.000 ± 0.013"]]


def test_the_verdict_is_by_what_all_runs_measured_alike(tmp_path: Path) -> None:
    """Differences are paired within a run, errors add up between runs, and the same weights are spoken of once."""
    paired = Measurement("cpo", "greedy", "correct_difference", Estimate(0.1, 0.01, 480))
    one = write_run(
        tmp_path / "one",
        [rate(0.5, "mle"), measured("mle", "correct", 0.5), measured("cpo", "correct", 0.6), paired],
    )
    own = Measurement("other", "greedy", "correct_difference", Estimate(0.2, 0.015, 480))  # from the same mle
    two = write_run(tmp_path / "two", [measured("mle", "correct", 0.5), measured("other", "correct", 0.7), own])
    text = compared([one, two])
    assert section(text, "Verdict") == [
        "- two/other: 70.0% correct answers, +20.0 ± 1.5 over one/mle, +10.0 ± 1.8 over one/cpo.",
        "- one/cpo: 60.0% correct answers, +10.0 ± 1.0 over one/mle, 10.0 ± 1.8 below two/other.",
    ]
    assert "Between models of two runs nothing is paired by prompt" in text
    assert text.count("One checkpoint per row") == 1
    judged = [write_run(tmp_path / name, [rate(0.5, "mle")], judge={"model": name}) for name in ("x", "y")]
    assert section(compared(judged), "Verdict")[0].startswith("No verdict: nothing that says")  # by two judges


def test_the_verdict_says_what_else_differs_and_whether_other_decodings_agree(tmp_path: Path) -> None:
    runs = []
    for run, model, greedy in (("one", "mle", 0.5), ("two", "cpo", 0.25)):
        found = [
            measured(model, "correct", 0.5 if run == "one" else 0.75, "sample"),
            measured(model, "correct", greedy),
        ]
        longer = [measured(m, "answer_tokens", 9.0, "sample") for m in (model, "longer")]
        if run == "one":
            longer.append(Measurement("longer", "sample", "answer_tokens_difference", Estimate(0.5, 0.1, 480)))
        runs.append(write_run(tmp_path / run, [*found, *longer], models={}))
    assert compare(runs).verdict.also == (
        "By greedy otherwise: one/mle +25.0 ± 1.8 over two/cpo.",
        "Also told apart from one/mle, prompt by prompt: answer tokens (higher: one/longer). Some may be chance.",
    )


def test_what_says_which_way_is_better_comes_first(tmp_path: Path) -> None:
    found = [measured("m", "answer_tokens", 9.0), *(measured("m", f"correct{x}", 0.5) for x in ("", "_difference"))]
    runs = [write_run(tmp_path / name, [*found, measured("m", "kendall_tau", 0.1, "")]) for name in ("one", "two")]
    assert table_of(compared(runs))[0][3:] == [
        "correct answers", "Kendall's tau", "correct answers minus mle", "answer tokens"
    ]  # fmt: skip


def test_the_terminal_shows_what_says_which_way_is_better_and_names_the_rest(tmp_path: Path) -> None:
    found = [measured("m", key, 0.5) for key in ("correct", "answer_tokens", "answer_tokens_difference", "hit_limit")]
    runs = [write_run(tmp_path / name, found) for name in ("one", "two")]
    made = compare(runs)
    assert [table.headings[3:] for table in (made.shown, made.table)] == [
        ["correct answers"], ["correct answers", "answer tokens", "answer tokens minus mle", "hit limit"]
    ]  # fmt: skip
    last = made.text().splitlines()[-1]
    assert last == (
        "3 more columns, by --metrics all or in --out FILE.md: answer tokens, answer tokens minus mle, hit limit."
    )
    every = compare(runs, ["all"])
    assert (every.shown, every.left_out) == (made.table, [])
    assert "more column" not in every.text()
    neither = [write_run(tmp_path / name, found[1:]) for name in ("three", "four")]
    assert compare(neither).shown == compare(neither).table  # there is nothing to prefer


def test_metrics_are_chosen_in_the_order_of_what_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [measured(m, key, 0.5) for m in ("mle", "cpo") for key in ("correct", "nll", "answer_tokens", "own_thing")]
    runs = [write_run(tmp_path / name, [*found, measured("m", "truth_logp", -1.0, "")]) for name in ("one", "two")]
    made = compare(runs, ["nll", "text", "correct"])
    assert made.table.headings == ["run", "model", "decoding", "NLL", "correct answers", "answer tokens"]
    assert made.verdict.hedge.startswith("By correct answers")  # a second model's word comes last
    assert [row[1].text for row in made.table.rows] == ["mle", "cpo", "mle", "cpo"]
    assert compare(runs, ["nll"]).verdict.hedge.startswith("By NLL")
    assert compare(runs, ["own_thing"]).table.headings[3:] == ["own thing"]  # of no metric that is known
    for given, said in (
        (["nl"], "--metrics 'nl': no run measured that. They have correct, nll, own_thing, text, truth. Did you mean"),
        (["pmi"], "--metrics 'pmi': no run measured that."),
        (["all", "nll"], "--metrics 'all' stands alone."),
    ):
        assert main([*runs, "--metrics", *given]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {said}")
        assert (printed.err.count("\n"), printed.out) == (1, "")


def test_what_is_left_out_of_the_verdict_is_said(tmp_path: Path) -> None:
    """Models of the same weights, win rates against a model, models without the number, how many notes there are."""
    models = {name: {"weights_sha256": digit * 64} for name, digit in (("mle", "a"), ("cpo", "b"), ("also", "b"))}
    one = [measured("mle", "correct", 0.5), measured("cpo", "correct", 0.6), measured("cpo", "nll", 2.0)]
    two = [measured("also", "correct", 0.6), measured("also", "nll", 2.1), measured("none", "nll", 2.0)]
    runs = [write_run(tmp_path / name, of, models=models) for name, of in (("one", one), ("two", two))]
    found = compare(runs)
    said = "Of the same weights, and the same correct answers, so spoken of once: two/also as one/cpo."
    assert found.verdict.also[-1] == said
    assert [line.partition(":")[0] for line in found.verdict.lines] == ["one/cpo"]
    assert " Without that number: two/none. " in found.verdict.hedge
    assert "against a model" not in found.verdict.hedge
    by_nll = compare(runs, ["nll"]).verdict  # 2.0 and 2.1, of other answers
    assert [line.partition(":")[0] for line in by_nll.lines] == ["one/cpo", "two/none", "two/also"]
    assert not any("spoken of once" in line for line in by_nll.also)
    assert "Without that number" not in by_nll.hedge
    judged = Results(
        make_job(), ENVIRONMENT, [*one, rate(0.5, "cpo", against="mle")], columns=COLUMNS, notes=["x", "y"]
    )
    (tmp_path / "one" / "report.json").write_bytes(to_json(judged))
    found = compare(runs)
    assert "Win rates against a model are left out of this" in found.verdict.hedge
    assert found.runs[0].endswith(" 2 notes in its report.")
    assert not found.runs[1].endswith("in its report.")


def test_only_a_comparison_of_ours_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name, make_results().measurements) for name in ("one", "two")]
    out = tmp_path / "comparison.md"
    for theirs in ("# Comparison\n", "# Comparison\n\n- of tea\n- and coffee\n\n## Taste\n"):
        out.write_text(theirs)
        assert main([*runs, "--out", str(out)]) == 2
        assert f"--out '{out}' is there already, and not of this command" in capsys.readouterr().err
        assert out.read_text() == theirs
    out.unlink()
    for order in (runs, runs[::-1]):
        assert main([*order, "--out", str(out)]) == 0
        assert out.read_text() == compared(order)
    older = out.read_text().partition("## Verdict")[0] + "## What differs between the runs\n"
    out.write_text(older)  # of a version without verdicts
    assert main([*runs, "--out", str(out)]) == 0


def test_help_answers_in_under_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_command("evaluation.compare", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "python -m evaluation.compare RUN RUN ..." in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
