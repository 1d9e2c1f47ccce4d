"""Are the packages that Python finds as `data`, `trainer`, `negatives_gen` and `evaluation` this project's?

Others have such names too: a folder `data` where a command is run, or an installed package, may come first on Python's
path. The one module here whose name nobody else has; it imports nothing of ours, as that may be the other's.
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOMS = ("data", "trainer", "negatives_gen", "evaluation")


def require_ours(*rooms: str) -> None:
    """Refuse packages of others under the rooms' names.

    Raises:
        ImportError: saying where the other one lies and what to do.
        SystemExit: with 2 instead, the line on stderr, where `python -m` is about to run a command.
    """
    for room in rooms:
        place = _place(room)
        if place not in (None, HERE / room):
            said = (
                f"the package '{room}' is not this project's but '{place}', which comes before '{HERE / room}' on "
                "Python's path. Rename it, work in another directory, or use the command `cpo`, which does not look "
                "in the current directory for its own packages."
            )
            if sys.argv[:1] == ["-m"]:  # as `python -m` has it until it runs the module
                _end(said)
            raise ImportError(said)


def main() -> int:
    """Run the console script `cpo`, see `data.command.console`; returns its exit code."""
    try:
        require_ours(*ROOMS)
    except ImportError as error:
        _end(str(error))
    from data.command.console import main as run

    return run()


def _place(room: str) -> Path | None:
    """Folder, or file, that a package is or would be imported from; None if there is none."""
    spec = importlib.util.find_spec(room)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0] if folders else str(spec.origin)).resolve()


def _end(said: str) -> None:
    print(f"error: {said}", file=sys.stderr)
    raise SystemExit(2)
