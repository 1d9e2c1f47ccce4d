"""The `vllm` command, whose processes are forked: `python -m tests.support.forked_vllm serve MODEL ...`.

On a CPU vLLM starts the process of its engine, and that of the engine's worker, by importing all of vLLM again: half a
minute of processor time. Nothing has been computed here when it does, so a fork gives the same process at once.
"""

import multiprocessing
import sys
from unittest import mock

from vllm.entrypoints.cli.main import main

MODULES = ("vllm.v1.engine.utils", "vllm.v1.executor.multiproc_executor")

if __name__ == "__main__":
    for module in MODULES:
        mock.patch(f"{module}.get_mp_context", return_value=multiprocessing.get_context("fork")).start()
    sys.exit(main())
