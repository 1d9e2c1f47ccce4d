"""What varies has one home: no other module compares the name of a built-in entry."""

import ast
from pathlib import Path

import pytest

from data.command.registry import Registry
from evaluation.metrics import METRICS
from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES
from tests.support.commands import ROOT
from trainer.objectives import OBJECTIVES

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
HOMES: dict[str, Registry] = {
    "negatives_gen/strategies": STRATEGIES,
    "negatives_gen/signals": SIGNALS,
    "trainer/objectives": OBJECTIVES,
    "evaluation/metrics": METRICS,
}
NAMES = {name for entries in HOMES.values() for name in entries.names()}
# What an entry is called by. A name that is added may be any word, and counts where it is compared with one of these.
CALLED = {"name", "objective", "strategy", "strategies", "signal", "signals", "rank_by", "metric", "metrics"}
SHIPPED = {
    *("cpo", "cpo-rank", "dpo", "mle", "pss", "an", "bn", "mn", "tn", "un"),
    *("embedding", "bertscore", "rouge", "reward", "correct", "mauve", "nll", "ranking", "reverse_kl", "similarity"),
    *("text", "truth", "win_rate"),
}
# The same word for something else: columns of texts and of candidates, keys of the pages' data, a kind of export, a
# verdict by rewards, the rows of the paper's tables.
OTHER_MEANINGS = {
    "data/soundness.py": {"similarity"},
    "data/sources/readers.py": {"text"},
    "data/sources/tasks.py": {"text"},
    "negatives_gen/job/answers.py": {"text"},
    "negatives_gen/verbs/export_file.py": {"ranking"},
    "negatives_gen/verbs/group_page.py": {"truth", "text", "similarity"},
    "negatives_gen/verbs/stats.py": {"similarity", "truth"},
    "trainer/groups/store.py": {"similarity"},
    "evaluation/judging/reward_judge.py": {"reward"},
    "evaluation/paper.py": {"mle", "pss", "dpo", "an"},
    "evaluation/report/report_page.py": {"truth", "text"},
}


def compared(path: Path) -> set[str]:
    """Built-in names that a module compares something with, looks up, or tests for membership."""
    found: set[str] = set()
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
        called = {getattr(x, "id", getattr(x, "attr", "")) for x in ast.walk(node)} & CALLED
        names = NAMES if called and isinstance(node, ast.Compare) else SHIPPED
        found |= {str(x.value) for x in inner if isinstance(x, ast.Constant) and x.value in names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_beside_the_homes_compares_a_built_in_name(room: str) -> None:
    modules = [p for p in (ROOT / room).rglob("*.py") if not str(p.relative_to(ROOT)).startswith(tuple(HOMES))]
    assert modules
    found = {where: names for path in modules if (names := compared(path)) and (where := str(path.relative_to(ROOT)))}
    assert found == {where: names for where, names in OTHER_MEANINGS.items() if where.startswith(f"{room}/")}


def test_a_comparison_is_found(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text('if name == "an" or name in ("bn", "x"):\n    print({"embedding": 1}, settings["mn"])\n')
    assert compared(module) == {"an", "bn", "embedding", "mn"}
