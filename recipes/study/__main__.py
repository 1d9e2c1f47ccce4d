"""`python -m recipes.study TASK`: run what is left of a task's study, and write its page."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.command.errors import exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config, option
from data.command.terminal import say
from data.command.terminated import ending_on_sigterm
from data.command.usage import answered
from data.command.wording import counted
from recipes.study.costs import plan
from recipes.study.design import Study, read_study
from recipes.study.inputs import write_parts, write_shape
from recipes.study.records import Records, read_records
from recipes.study.running import Processes, Progress
from recipes.study.summary import markdown

RECIPES = Path("recipes/study")
COMMAND = "python -m recipes.study"
USAGE = f"{COMMAND} --task NAME [--only H1 ...] [--hours X] [--plan true]"
ABOUT = """
Runs a study (recipes/study/NAME.yaml) by the commands of the three stages, two steps at a time: references, negative
sets, each row at each learning rate, the choice of a rate on validation prompts, all seeds at that rate, evaluations. A
file that a step writes last stands for it, so that the same command goes on where it was stopped. What was found out is
kept in RESULTS/study-NAME.json, which is enough to go on without the runs, and shown in RESULTS/study-NAME.md.
"""


@dataclass
class StudyConfig:
    """Which study to run, and which part of it."""

    task: str = option(None, "recipes/study/NAME.yaml, or the path of another such file", required=True, metavar="NAME")
    only: list[str] = option([], "what these hypotheses or rows need (default: all)", metavar="NAME")
    hours: float | None = option(None, "begin no step after so many hours")
    plan: bool = option(False, "say what would run, and how long, from steps that were timed; run nothing")
    runs: str = option("runs/study", "directory of the runs", metavar="DIR")
    results: str = option("docs/results", "directory of records and tables", metavar="DIR")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, StudyConfig, usage=USAGE, about=ABOUT):
        return
    config = load_config(StudyConfig, argv, command=COMMAND)
    path = Path(config.task) if config.task.endswith(".yaml") else RECIPES / f"{config.task}.yaml"
    study = read_study(path)
    study.comparisons(config.only)  # refuses an unknown name
    start_logging()
    folder, page = Path(config.runs) / study.name, Path(config.results) / f"study-{study.name}.md"
    records = read_records(page.with_suffix(".json"))
    if config.plan:
        say(plan(study, folder, records, config.only))
        return
    until = None if config.hours is None else time.monotonic() + 3600 * config.hours
    left = run(study, folder, page, records, config.only, until)
    say(f"{counted(left, 'step')} left; the same command goes on" if left else "nothing is left")
    say(f"tables: {page}")


def run(study: Study, folder: Path, page: Path, records: Records, only: Sequence[str], until: float | None) -> int:
    """Run what is left, and write records and page, whatever ends it; returns how many known steps are left."""
    write_parts(study.data, folder / "data")
    for reference in study.references.values():
        if reference.shape:
            write_shape(reference, folder / "blank" / reference.name)
    progress, processes = Progress(study, folder, page.with_suffix(".json"), records, only), Processes(folder)
    try:
        with ending_on_sigterm():
            return len(progress.run(processes, until))
    finally:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(study, records), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
