"""A new built-in entry is one new file: docs/extending.md's examples, put into their homes in a copy of the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

# Where an example goes, and what its last line defines there.
HOMES = {
    "objectives": ("trainer/objectives/margin.py", "MARGIN", "OBJECTIVE"),
    "negatives": ("negatives_gen/strategies/shuffled.py", "SHUFFLED", "STRATEGY"),
    "signals": ("negatives_gen/signals/words.py", "WORDS", "SIGNAL"),
    "metrics": ("evaluation/metrics/questions.py", "QUESTIONS", "METRIC"),
}
# The tests that look at all entries, or at all files.
LOOKING = (
    *("project/test_architecture.py", "project/test_entry_names.py", "project/test_imports.py"),
    *("trainer/test_entries.py", "negatives_gen/test_strategies.py", "evaluation/test_evaluation_config.py"),
    *("evaluation/test_metrics.py", "evaluation/test_report.py", "data/test_registry.py", "data/test_entry_options.py"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_examples_of_the_page_are_entries_where_they_are_put_into_their_homes(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout: " + listed.stderr.strip())
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    examples = dict(re.findall(r"`my_work/(\w+)\.py`.*?```python\n(.*?)```", page, flags=re.DOTALL))
    for example, (file, name, attribute) in HOMES.items():
        summary = f'"""{example}: an example."""\n\n'
        code = re.sub(rf"^{name} = ", f"{attribute} = ", examples[example], flags=re.MULTILINE)
        assert code != examples[example]
        (tmp_path / file).write_text(summary + code)
    subprocess.run("git init -q && git add -A", shell=True, cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{file}" for file in LOOKING)],
        cwd=tmp_path, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for command, names in (
        ("trainer.run", ["margin"]),
        ("negatives_gen", ["shuffled", "words"]),
        ("evaluation.run", ["questions"]),
    ):
        shown = subprocess.run([sys.executable, "-m", command, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert set(names) <= set(re.findall(r"\w+", shown.stdout)), command
