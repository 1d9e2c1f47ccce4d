"""Plots of a report: Figure 1 and the sweep over alpha, read back from what was drawn."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from evaluation.metrics.statistics import Measurement, share
from evaluation.report import Results
from evaluation.report.files import to_json
from evaluation.report.plots import alpha_curve, figure1, for_dark_page, rounds_curve, svg
from evaluation.report.proposal import proposal, validation
from evaluation.report.tables import tables
from tests.support.reports import (
    HOSTILE,
    NAN,
    cells,
    drawn,
    in_markdown,
    make_job,
    make_results,
    make_sweep,
    measured,
    named,
    rate,
)


def test_figure_1_shows_reverse_kl_and_nll_with_their_errors() -> None:
    kl, nll = (drawn(panel) for panel in figure1(make_results()))
    assert (kl.get_title(), nll.get_title()) == ("reverse KL, sample", "NLL, greedy")
    assert [label.get_text() for label in kl.get_yticklabels()] == ["mle", "anr"]
    points, _, (bars,) = kl.containers[0]
    assert list(points.get_xdata()) == [0.75, -0.5]
    assert list(points.get_ydata()) == [0, 1]
    assert [[x for x, _ in segment] for segment in bars.get_segments()] == [[0.7375, 0.7625], [-0.5125, -0.4875]]
    assert kl.get_ylim() == (1.5, -0.5)  # the first model on top


def test_figure_1_of_several_decodings_has_a_colour_and_a_line_for_each() -> None:
    found = [measured(m, "nll", v, d) for d, v in (("greedy", 2.0), ("beam2", 1.5)) for m in ("mle", "anr")]
    (panel,) = figure1(make_results(found))
    axes = drawn(panel)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["greedy", "beam2"]
    heights = [list(container[0].get_ydata()) for container in axes.containers]
    assert heights == [[-0.15, 0.85], [0.15, 1.15]]
    assert panel.alt == "NLL of mle and anr with standard errors; less is better."


def test_a_report_without_its_measurements_has_no_figure() -> None:
    assert figure1(make_results([rate(0.5, "mle"), measured("mle", "nll", NAN)])) == []
    assert alpha_curve(make_results()) == []
    assert alpha_curve(make_results(sweep={"alphas": [0.1], "proposed": None})) == []


def test_the_sweep_is_drawn_over_alpha() -> None:
    wins, kl = (drawn(panel) for panel in alpha_curve(make_results(sweep=make_sweep())))
    curve, chance, proposed = wins.get_lines()
    alphas, percent = curve.get_data()
    assert list(alphas) == [0, 0.5, 0.9]
    assert list(percent) == pytest.approx([55, 60, 50])
    assert list(chance.get_ydata()) == [50, 50]
    assert list(proposed.get_xdata()) == [0.5, 0.5]
    band = wins.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((46.9, 63.1))  # the intervals' ends: 50 - 3.1, 60 + 3.1
    assert "95% interval" in wins.get_xlabel()
    assert [list(map(float, axis)) for axis in kl.get_lines()[0].get_data()] == [[0, 0.5, 0.9], [2.0, 1.5, 1.0]]
    assert "one standard error" in kl.get_xlabel()


def test_a_column_that_says_so_is_drawn_over_alpha_though_alpha_is_never_chosen_by_it() -> None:
    found = [measured("alpha-0", "answer_tokens", 12.0), measured("alpha-0.5", "answer_tokens", 9.0)]
    results = make_results(sweep=make_sweep(metric=None, proposed=None, validation=found))
    assert alpha_curve(results) == []
    column = replace(results.columns["answer_tokens"], curve=True)
    (axes,) = map(drawn, alpha_curve(replace(results, columns={**results.columns, column.key: column})))
    assert [list(map(float, axis)) for axis in axes.get_lines()[0].get_data()] == [[0, 0.5], [12.0, 9.0]]


def test_the_band_is_the_interval_where_all_answers_are_wrong() -> None:
    shares = {"alpha-0": share([0.0] * 20), "alpha-0.5": share([0.0, 1.0] * 10)}
    found = [Measurement(name, "greedy", "correct", estimate) for name, estimate in shares.items()]
    (axes,) = map(drawn, alpha_curve(make_results(sweep=make_sweep(metric="correct", validation=found))))
    band = axes.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 0, 1].max() == pytest.approx(100 * (1 - 0.025 ** (1 / 20)))
    assert "band: 95% interval or one standard error" in axes.get_xlabel()


def test_rounds_are_drawn_over_their_numbers() -> None:
    found = [
        *(
            measured(f"round-{number}", "reverse_kl", value, "sample")
            for number, value in ((2, 0.5), (0, 1.0), (10, 0.25))
        ),
        *(rate(value, f"round-{number}") for number, value in ((0, 0.5), (2, 0.6))),
        *(rate(0.9, "round-2", against="mle"), measured("round-1b", "reverse_kl", 9.0, "sample")),
        *(measured(f"round-{number}", "answer_tokens", 9.0) for number in (0, 2)),
        measured("round-0", "nll", 2.0),
    ]
    wins, kl = (drawn(panel) for panel in rounds_curve(make_results(found)))
    assert [list(map(float, axis)) for axis in kl.get_lines()[0].get_data()] == [[0, 2, 10], [1.0, 0.5, 0.25]]
    assert [tick.get_text() for tick in kl.get_xticklabels()] == ["0", "2", "10"]
    assert kl.get_title() == "reverse KL over rounds"
    assert list(wins.get_lines()[0].get_ydata()) == pytest.approx([50, 60])
    assert "round, 0: the first reference; band: 95% interval" in wins.get_xlabel()
    assert [panel.alt for panel in rounds_curve(make_results(found))][1] == "reverse KL over rounds; less is better."
    assert rounds_curve(make_results([rate(0.5, "round-0"), rate(0.6, "mle")])) == []


def test_the_ensembles_of_a_sweep_stand_in_a_table_of_their_own() -> None:
    results = make_results(sweep=make_sweep())
    table = named(tables(results), "Ensembles over alpha, on the validation prompts")
    assert table.headings == ["model", "win rate, greedy", "reverse KL, sample"]
    assert [row[0] for row in cells(table)] == ["alpha-0", "alpha-0.5", "alpha-0.9"]
    assert "Proposed: alpha = 0.5, by win rate on the validation prompts" in in_markdown(results)
    assert "Proposed" not in in_markdown(make_results(sweep=make_sweep(proposed=None)))


def test_a_sweep_is_read_back_from_json() -> None:
    job = make_job(sweep=make_sweep())
    again = json.loads(to_json(Results(job, {}, [])))["job"]
    assert validation(again) == validation(job)
    assert [point.alpha for point in validation(again)] == [0, 0, 0.5, 0.5, 0.9, 0.9]
    assert proposal(again) == proposal(job) == proposal(make_job(sweep=make_sweep(proposed="alpha-0.5")))


def test_the_same_plots_are_the_same_bytes_and_names_are_texts() -> None:
    panels = figure1(make_results([measured(name, "nll", 1.0) for name in (HOSTILE, "$x$", "\u4e2d\u6587")]))
    image = svg(panels)
    assert image == svg(panels)
    dark = for_dark_page(image)
    assert (b"#1d2126" in image, b"#1d2126" in dark, b"#e7e9ea" in dark) == (True, False, True)
    root = ElementTree.fromstring(image)  # well-formed
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [element for element in root.iter() if element.tag.endswith("script")]
