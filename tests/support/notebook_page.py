"""A hook of mkdocs: each notebook of docs/ as a page of the site, with its outputs as they were kept."""

from pathlib import Path
from typing import Any

from data.shape import parse_json

FENCE = "````"  # a cell may show a fence of three


def on_files(files: Any, config: Any) -> Any:
    """Add NAME.md for each NAME.ipynb."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            content = markdown(parse_json(Path(file.abs_src_path).read_text(encoding="utf-8")))
            files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=content))
    return files


def markdown(notebook: dict[str, Any]) -> str:
    """The cells as Markdown: code and what it showed in fences, tables as the HTML that the cell gave."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [_fenced("python", source), *map(_shown, cell["outputs"])]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _fenced("text", "".join(output["text"]))
    data = output["data"]
    return "".join(data["text/html"]) if "text/html" in data else _fenced("text", "".join(data["text/plain"]))


def _fenced(language: str, text: str) -> str:
    return f"{FENCE}{language}\n{text.rstrip()}\n{FENCE}"
