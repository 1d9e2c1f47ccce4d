"""The record as a section of docs/benchmarks.md: one per machine and sources, so that no table mixes two."""

import json
from collections.abc import Callable, Sequence
from typing import Any

Parts = dict[str, dict[str, Any]]

METHODS = {
    "cpo": "CPO, packed", "mle": "MLE, packed", "dpo": "TRL's DPO, pairs", "padded": "CPO, padded, with the reference",
}  # fmt: skip
OF_STEPS = """Medians of 5 steps after 3, bfloat16, random weights, no checkpointing; a step is 16 groups of K = 12 with
Dolly's lengths, of MLE 96 ground truths; DPO takes the groups as 176 pairs, eight at a time, with stored reference
log-probabilities. Tokens are counted without padding. MFU is the FLOP that these tokens need (see `mfu` in
[logs.md](logs.md)) over the GPU's peak. Memory is that of tensors at the peak."""


def section(record: Parts) -> str:
    """Markdown of all parts; those of another machine, or of other sources, have headings of their own."""
    groups: dict[str, Parts] = {}
    for name, part in record.items():
        of_what = {key: value for key, value in part["on"].items() if key != "commit"}  # several have the same sources
        groups.setdefault(json.dumps(of_what, sort_keys=True), {})[name] = part
    return "\n".join(_of_one(parts) for parts in groups.values())


def _of_one(parts: Parts) -> str:
    first = next(iter(parts.values()))
    on = first["on"]
    lines = [f"## {_title(on)}", "", _of_what(on, parts), "", *_outcomes(parts)]
    for name, part in parts.items():
        if "result" not in part and part.get("last_lines"):
            lines += [f"The last lines of `{name}`:", "", *(f"    {line}" for line in part["last_lines"]), ""]
    for table in (_checks, _steps, _attention, _sampling):
        lines += table({name: part for name, part in parts.items() if "result" in part})
    return "\n".join(lines)


def _title(on: dict[str, Any]) -> str:
    if on["kind"] == "cpu":
        return "Not a GPU: the program tried on a CPU, in small"
    if on["extent"] == "small":
        return f"{on['device']}: the program tried in small"
    return f"On a GPU: {on['device']}"


def _of_what(on: dict[str, Any], parts: Parts) -> str:
    days = sorted({part["at"].split()[0] for part in parts.values()})
    commits = dict.fromkeys(part["on"]["commit"] or "unknown" for part in parts.values())
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    command = "python -m tests.gpu.prove" + (" --device cpu" if on["kind"] == "cpu" else "")
    figures = "No figure here is a GPU's, and none is of a size that means anything. " if on["kind"] == "cpu" else (
        "In small no figure means anything. " if on["extent"] == "small" else ""
    )  # fmt: skip
    memory = f", {on['gibibytes']:.0f} GiB, driver {on['driver']}" if on["kind"] == "cuda" else ""
    return (
        f"{figures}`{command}` (`make gpu`), {' to '.join(dict.fromkeys([days[0], days[-1]]))}, commit "
        f"{' and '.join(commits)} (sources {on['sources']}): {on['device']}{memory}, Python {on['python']}, "
        f"{versions}."
    )


def _outcomes(parts: Parts) -> list[str]:
    rows = [
        [f"`{name}`", part["outcome"], f"{part['seconds']:.0f} s" if "seconds" in part else "", part.get("why", "")]
        for name, part in parts.items()
    ]
    return _table(["part", "", "time", ""], rows)


def _checks(parts: Parts) -> list[str]:
    """A part's kinds of figures, each by the one that is nearest to its bound, or farthest beyond it."""
    worst: dict[tuple[str, str, float], dict[str, Any]] = {}
    for name, part in parts.items():
        for check in part["result"].get("checks", []):
            key = name, check["what"].rpartition(": ")[2], check["bound"]
            if key not in worst or _strain(check) > _strain(worst[key]):
                worst[key] = check
    rows = []
    for (name, kind, bound), check in worst.items():
        value = "not finite" if check["value"] is None else f"{check['value']:.3g}"
        told = f"{check['sense']} {bound:g}" + ("" if check["holds"] else ": **beyond**")
        rows.append([f"`{name}`", kind, value, check["what"].rpartition(": ")[0], told])
    return _table(["part", "figure", "worst", "of", "bound"], rows)


def _strain(check: dict[str, Any]) -> float:
    if check["value"] is None:
        return float("inf")
    return check["value"] if check["sense"] == "at most" else -check["value"]


def _steps(parts: Parts) -> list[str]:
    steps = [step for part in parts.values() for step in part["result"].get("steps", [])]
    rows = []
    for step in steps:
        same = (other for other in steps if (other["size"], other["groups"]) == (step["size"], step["groups"]))
        ours = next((other for other in same if other["method"] == "cpo"), None)
        faster = ours["groups_per_second"] / step["groups_per_second"] if ours and ours is not step else None
        rows.append(
            [
                step["size"], METHODS[step["method"]], f"{step['groups_per_second']:.1f}",
                f"{step['tokens_per_second']:,.0f}", _or(step["mfu"], lambda x: f"{x:.1%}"),
                _or(step["peak_bytes"], _gib), _or(step["predicted_bytes"], _gib, step["prediction"]),
                _or(faster, lambda x: f"{x:.2f} x"),
            ]
        )  # fmt: skip
    titles = ["model", "step", "groups/s", "tokens/s", "MFU", "peak GiB", "predicted GiB", "CPO, packed, is as fast"]
    whole = rows and next(iter(parts.values()))["on"]["extent"] == "whole"
    return [*([OF_STEPS, ""] if whole else []), *_table(titles, rows)]


def _attention(parts: Parts) -> list[str]:
    rows = [
        [
            f"{row['heads']} heads of {row['head_size']}, {row['key_heads']} of keys", f"{row['tokens']:,}",
            f"{1e3 * row['blocks_seconds']:.2f} ms", f"{1e3 * row['dense_seconds']:.2f} ms",
            f"{row['dense_seconds'] / row['blocks_seconds']:.2f} x",
        ]
        for part in parts.values()
        for row in part["result"].get("attention", [])
    ]  # fmt: skip
    return _table(["attention in bfloat16, there and back", "tokens", "by blocks", "dense mask", "as fast"], rows)


def _sampling(parts: Parts) -> list[str]:
    lines = []
    for result in (part["result"] for part in parts.values() if "sampling" in part["result"]):
        ours = result["sampling"][0]["tokens_per_second"]
        title = f"{result['prompts']} prompts, n = {result['n']}, at most {result['max_tokens']} tokens"
        rows = [
            [
                row["name"], f"{row['tokens_per_second']:,.0f} ({row['least']:,.0f} to {row['most']:,.0f})",
                f"{ours / row['tokens_per_second']:.2f} x",
            ]
            for row in result["sampling"]
        ]  # fmt: skip
        lines += _table([title, "tokens/s", "AN stage is"], rows)
    return lines


def _or(value: float | None, shown: Callable[[float], str], otherwise: str = "") -> str:
    return otherwise if value is None else shown(value)


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table and an empty one; none where there is no row."""
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [*(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *cells)), ""]
