"""`python -m evaluation`: as `python -m evaluation.run`, and with a verb what else there is."""

import sys

from data.command.console import run_verb, wrapped_verbs
from data.command.errors import exit_on_user_error
from data.command.terminal import say
from evaluation import run

VERBS = {
    "run": ("evaluation.run", "evaluate checkpoints, what it does without a verb: python -m evaluation.run"),
    "compare": ("evaluation.compare", "put finished evaluations into one table: python -m evaluation.compare"),
    "judge-check": (
        "evaluation.judge_check",
        "compare a judge with people's labels before it is used: python -m evaluation.judge_check",
    ),
}


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        return run_verb(argv, VERBS, command="python -m evaluation", alone="it evaluates")
    code = run.main(argv)
    if {"-h", "--help"} & set(argv):
        say(f"\n{wrapped_verbs('verbs of python -m evaluation', VERBS)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
