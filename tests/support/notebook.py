"""A Jupyter notebook without Jupyter: its code cells run in one namespace, and what they show can be kept in the file.

Of shell cells those of `!python -m MODULE ...` are run, by the module's `main` in this process, which spares an import.
`python -m tests.support.notebook FILE` runs it in an empty folder and writes the outputs into FILE.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.prose import command_lines, ours


def run(notebook: dict[str, Any], **names: Any) -> dict[str, Any]:
    """Run the code cells in order; returns the namespace, and each cell has its number and its outputs.

    Args:
        names: of the namespace before the first cell.
    """
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            shown = _value("".join(cell["source"]), f"cell {number}", namespace)
        cell["execution_count"] = number
        cell["outputs"] = [_stream(printed.getvalue())] if printed.getvalue() else []
        if shown is not None:
            cell["outputs"].append(_result(shown, number))
    return namespace


def _value(source: str, name: str, namespace: dict[str, Any]) -> Any:
    """What a cell's last line gives, if it is an expression."""
    if source.startswith("!"):
        return _run_commands(source)
    tree = ast.parse(source, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), namespace)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def _run_commands(source: str) -> None:
    """Run a cell of `!python -m MODULE ...` lines."""
    for words in command_lines(re.sub("^!", "", source, flags=re.MULTILINE)):
        command = ours(words)
        assert command is not None, words
        status = importlib.import_module(command[0]).main(command[1])
        assert not status, f"{words} ends with {status}"


def _stream(text: str) -> dict[str, Any]:
    return {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}


def _result(value: Any, number: int) -> dict[str, Any]:
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}


def main(path: Path) -> None:
    """Run the notebook and write its outputs into it."""
    notebook = json.loads(path.read_text())
    path = path.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(notebook)
        os.chdir("/")
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
