"""`cpo`: one command for everything this project does, `cpo train ...` for `python -m trainer.run ...` and so on."""

import importlib
import sys
from collections.abc import Mapping

from data.command.errors import UserError, did_you_mean, exit_on_user_error
from data.command.options import current_directory
from data.command.registry import ROOMS
from data.command.terminal import say
from data.command.usage import wrapped
from data.command.version import version_line

# Verb -> the module that has its `main(argv)`, and half a line for --help.
Verbs = Mapping[str, tuple[str, str]]

# What rooms do without a verb; the other commands are the rooms' verbs.
ALONE: Verbs = {
    "blank": ("data.blank", "make a blank model, to train from scratch"),
    "generate": ("negatives_gen.__main__", "make a negative set: candidates, scores, ranking signals"),
    "train": ("trainer.run", "train a model on a negative set, or on ground truths"),
    "evaluate": ("evaluation.run", "compare checkpoints on held-out prompts"),
}


def commands() -> Verbs:
    """Every command of `cpo`: what each room does without a verb, and below it the room's verbs."""
    found: dict[str, tuple[str, str]] = {}
    for name, (module, summary) in ALONE.items():
        found[name] = module, summary
        room = module.partition(".")[0]
        if room != "data":
            verbs: Verbs = importlib.import_module(f"{room}.__main__").VERBS
            found |= {verb: entry for verb, entry in verbs.items() if verb != "run"}  # "run" is the room alone
    return found


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    """The console script `cpo`; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    _find_modules_in_current_directory()
    if {"-h", "--help"} & set(argv[:1]):
        say(f"usage: cpo COMMAND ...\n\n{wrapped_verbs('commands', commands())}")
        return None
    if argv[:1] == ["--version"]:
        say(version_line())
        return None
    if not argv or argv[0].startswith("-"):
        raise UserError(f"cpo needs a command, one of {', '.join(commands())}; see cpo --help.")
    return run_verb(argv, commands(), command="cpo")


def run_verb(argv: list[str], verbs: Verbs, *, command: str, alone: str | None = None) -> int | None:
    """Run the verb that a command line begins with.

    Args:
        command: whose verbs they are, for messages.
        alone: what the command does without a verb, e.g. "it generates"; None: nothing.

    Raises:
        UserError: there is no such verb.
    """
    verb, *rest = argv
    if verb not in verbs:
        otherwise = f"; without a verb {alone}, see --help" if alone else ""
        kind = "verb" if alone else "command"
        raise UserError(
            f"unknown {kind} '{verb}' of {command}.{did_you_mean(verb, verbs)} Known: {', '.join(verbs)}{otherwise}."
        )
    return importlib.import_module(verbs[verb][0]).main(rest)


def wrapped_verbs(what: str, verbs: Verbs) -> str:
    """A list of verbs below what they are, at the terminal's width."""
    return wrapped(f"{what} (each has a --help):\n{verbs_text(verbs)}")


def verbs_text(verbs: Verbs) -> str:
    """Verbs with what they do, a line each."""
    width = max(map(len, verbs))
    return "\n".join(f"  {verb:<{width}}  {summary}" for verb, (_, summary) in verbs.items())


def _find_modules_in_current_directory() -> None:
    """Let entries written `package.module:NAME` be found in the current directory, as under `python -m`.

    Our own rooms are imported first: a folder `data` of the user's must not stand for ours.
    """
    for room in ROOMS:
        importlib.import_module(room)
    here = str(current_directory())
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, here)


if __name__ == "__main__":
    sys.exit(main())
