"""`python -m trainer`: as `python -m trainer.run`, and with a verb what else there is."""

import sys

from data.command.console import run_verb, wrapped_verbs
from data.command.errors import exit_on_user_error
from data.command.terminal import say
from trainer import run

VERBS = {
    "run": ("trainer.run", "train a model, what it does without a verb: python -m trainer.run"),
    "ensemble": ("trainer.ensemble.__main__", "mix the weights of an MLE and a CPO model: python -m trainer.ensemble"),
}


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        return run_verb(argv, VERBS, command="python -m trainer", alone="it trains")
    code = run.main(argv)
    if {"-h", "--help"} & set(argv):
        say(f"\n{wrapped_verbs('verbs of python -m trainer', VERBS)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
