"""The report of an evaluation: report.json for programs, report.md and plots, report.html to look through."""

from data.storage import Folder
from evaluation.report.files import REPORT, read_report
from evaluation.report.results import AnswerRow, Results, SampleRow

__all__ = ["FILES", "AnswerRow", "Results", "SampleRow", "read_report", "write_report"]

FOREST, FIGURE_1, ALPHA, ROUNDS = "forest.svg", "figure1.svg", "alpha.svg", "rounds.svg"
# What a report may consist of; report.json is written last, so that a run that has it is finished.
FILES = ("report.md", "report.html", FOREST, FIGURE_1, ALPHA, ROUNDS, REPORT)


def write_report(folder: Folder, results: Results) -> str:
    """Write the report; returns its tables and notes as a terminal shows them.

    Raises:
        UserError: the folder cannot be written (on a local disk an earlier report stays as it was), or `job["paper"]`
            names no table.
    """
    from evaluation.report.files import to_json
    from evaluation.report.forest import forest
    from evaluation.report.markdown import markdown
    from evaluation.report.plots import alpha_curve, figure1, rounds_curve, svg
    from evaluation.report.printed import in_terminal, spoken
    from evaluation.report.proposal import proposal
    from evaluation.report.report_page import page
    from evaluation.report.tables import paper_notes, tables
    from evaluation.report.verdict import verdict

    made = tables(results)
    notes = [*results.notes, *paper_notes(results)]
    plots = {
        FOREST: forest(results),
        FIGURE_1: figure1(results),
        ALPHA: alpha_curve(results),
        ROUNDS: rounds_curve(results),
    }
    plots = {name: panels for name, panels in plots.items() if panels}
    alts = [(name, " ".join(panel.alt for panel in panels)) for name, panels in plots.items()]
    content = {
        "report.md": markdown(results, made, notes, alts).encode(),
        "report.html": page(results, made, notes, list(plots.values())).encode(),
        **{name: svg(panels, paper="white") for name, panels in plots.items()},
        REPORT: to_json(results),
    }
    folder.write_together(content)
    for name in FILES:
        if name not in content:
            folder.remove(name)  # of an earlier report of the same run
    return "\n\n".join(filter(None, [*spoken(verdict(results)), in_terminal(made), proposal(results.job), *notes]))
