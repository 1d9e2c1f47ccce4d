"""What varies has one home: no other module compares the name of a built-in strategy or ranking signal."""

import ast
from pathlib import Path

import pytest

from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "negatives_gen", "trainer")
HOMES = ("negatives_gen/strategies", "negatives_gen/signals")
NAMES = {*STRATEGIES.names(), *SIGNALS.names()}


def compared(path: Path) -> list[str]:
    """Built-in names that a module compares something with, looks up, or tests for membership, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "load"):
            parts = list(node.args)
        inner = [
            x for part in parts for x in ([*part.elts] if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part])
        ]
        found += [f"line {x.lineno}: {x.value}" for x in inner if isinstance(x, ast.Constant) and x.value in NAMES]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_beside_the_homes_compares_a_built_in_name(room: str) -> None:
    modules = [p for p in (ROOT / room).rglob("*.py") if not str(p.relative_to(ROOT)).startswith(HOMES)]
    assert modules
    found = {str(path.relative_to(ROOT)): names for path in modules if (names := compared(path))}
    assert found == {}


def test_a_comparison_is_found(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text('if name == "an" or name in ("bn", "x"):\n    print({"embedding": 1}, settings["mn"])\n')
    assert sorted(compared(module)) == ["line 1: an", "line 1: bn", "line 2: embedding", "line 2: mn"]
