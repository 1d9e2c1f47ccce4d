"""docs/notebooks/walkthrough.ipynb: its cells run, and what it shows is what they give."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support import notebook
from tests.support.commands import ROOT
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

PATH = ROOT / "docs/notebooks/walkthrough.ipynb"


def shown(content: dict[str, Any]) -> list[list[Any]]:
    """What each code cell's last line gave: the kinds of its forms."""
    return [
        [sorted(output["data"]) for output in cell["outputs"] if "data" in output]
        for cell in content["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_walkthrough_runs_and_its_outputs_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray and vLLM: pipeline_without_ray_stub runs the same stages in this process."""
    monkeypatch.chdir(tmp_path)
    committed = json.loads(PATH.read_text())
    content = json.loads(PATH.read_text())
    with without_ray():
        found = notebook.run(content)
    assert found["log"]["loss"].iloc[0] == pytest.approx(math.log(8), abs=1e-3)
    rows = {(row["model"], row["metric"]): row["value"] for row in found["found"]}
    assert rows["cpo", "ranking_accuracy"] > rows["reference", "ranking_accuracy"]
    assert ("reference", "reward_top1") not in rows
    assert "truth logp (lower: cpo)" in found["verdict"]
    assert shown(committed) == shown(content)
    assert not [path for path in tmp_path.rglob("*") if path.name == "generations"]  # no answers were made
