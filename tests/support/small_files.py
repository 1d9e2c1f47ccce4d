"""A command under a limit of the size of a file: writing more fails in the system's call, as it does on a full disk.

`python -m tests.support.small_files BYTES MODULE WORDS`.
"""

import importlib
import resource
import sys


def main(argv: list[str] | None = None) -> int:
    """The exit code of the module's `main`, called under the limit."""
    most, module, *words = sys.argv[1:] if argv is None else argv
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    return importlib.import_module(module).main(words) or 0


if __name__ == "__main__":
    sys.exit(main())
