"""docs/extending.md: the code of each section, written into files outside of the packages, does what the text says."""

import importlib
import json
import math
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.models import load_tokenizer
from data.schema import Group
from data.shards import NegativeSet
from evaluation.metrics import METRICS
from negatives_gen.signals import SIGNALS
from negatives_gen.signals.base import Reference
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools
from tests.support.commands import ROOT, fork_command
from tests.support.odd_tokenizers import sentencepiece
from tests.support.read_examples import load_examples

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's modules lie, and are found."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "my_work").mkdir()
    (folder / "my_work" / "__init__.py").touch()
    for name, code in re.findall(r"`(my_work/\w+\.py)`.*?```python\n(.*?)```", PAGE, flags=re.DOTALL):
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def test_the_page_has_a_file_for_each_home(folder: Path) -> None:
    names = {file.stem for file in (folder / "my_work").glob("*.py")}
    assert names == {"__init__", "objectives", "negatives", "signals", "metrics", "tasks", "architecture"}


@pytest.mark.seconds
def test_the_objective_trains_with_its_option(
    folder: Path, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    done = fork_command(
        *("trainer.run", "--objective", "my_work.objectives:MARGIN", "--margin", "2", "--max_steps", "1"),
        *("--shards", str(negative_set), "--model", str(reference), "--output_dir", str(tmp_path / "out")),
        *("--per_device_train_batch_size", "4", "--logging_steps", "1", "--use_cpu", "--report_to", "none"),
        env={"PYTHONPATH": f"{folder}:{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    # The policy is the reference before the first step, so that each of the three negatives lacks the whole margin.
    assert next(line["loss"] for line in lines if "loss" in line) == pytest.approx(3 * 2.0, abs=1e-3)


def test_the_strategy_makes_the_first_of_more(folder: Path, reference: Path, negative_set: Path) -> None:
    strategy = STRATEGIES.load("my_work.negatives:SHUFFLED")
    tools = Tools(seed=0, context=128, tokenizer=load_tokenizer(str(reference)))
    made = []
    for count in (2, 3):
        groups = list(NegativeSet(str(negative_set)).groups())[:5]
        assert strategy.add(groups, groups, {"count": count}, tools) == {}
        made.append([[c.ids for c in group.negatives if c.strategy == "shuffled"] for group in groups])
        for group, candidates in zip(groups, made[-1], strict=True):
            assert len(candidates) == count
            assert all(sorted(ids) == sorted(group.response_ids) for ids in candidates)
            assert all(ids != group.response_ids for ids in candidates)
    assert [candidates[:2] for candidates in made[1]] == made[0]


def test_the_strategys_texts_read_as_behind_their_prompt(folder: Path) -> None:
    """Alone they would lack the space that SentencePiece takes off the beginning."""
    tokenizer = sentencepiece()
    ids = tokenizer.convert_tokens_to_ids(["▁the", "▁cat", "▁to", "▁go"])
    group = Group("g", "a", " the cat to go", tokenizer("a")["input_ids"], [*ids, tokenizer.eos_token_id])
    tools = Tools(seed=0, context=128, tokenizer=tokenizer)
    assert STRATEGIES.load("my_work.negatives:SHUFFLED").add([group], [group], {"count": 3}, tools) == {}
    for candidate in group.negatives:
        assert candidate.text == "".join(tokenizer.convert_ids_to_tokens(candidate.ids[:-1])).replace("▁", " ")


def test_the_signal_compares_words(folder: Path, negative_set: Path) -> None:
    signal = SIGNALS.load("my_work.signals:WORDS")
    (group, *_) = NegativeSet(str(negative_set)).groups()
    group.response = "the river is long"
    texts = ["the river is long", "the river", "a hill"]
    for candidate, text in zip(group.negatives, texts, strict=True):
        candidate.text = text
    signal({}, Reference("")).add([group])
    assert [c.similarity["words"] for c in group.negatives] == [1.0, 0.5, 0.0]


def test_the_metric_finds_questions(folder: Path) -> None:
    metric: Any = METRICS.load("my_work.metrics:QUESTIONS")
    answers = types.SimpleNamespace(texts=["Why?", "Because.", "Is it? "])
    assert metric.values(metric, answers) == {"questions": [1.0, 0.0, 1.0]}
    assert metric.columns[0].better == importlib.import_module("evaluation.metrics.base").LOWER


def test_the_task_reads_rows(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Which river?", "answer": "The Blue."}))
    (example,) = load_examples(str(tmp_path / "rows.jsonl"), "my_work.tasks:QUESTION_ANSWER")
    assert (example.prompt, example.response) == ("Question: Which river?\nAnswer:", "The Blue.")
    assert example.query == "Which river?"


def test_the_architecture_takes_the_packed_layout(folder: Path) -> None:
    module = importlib.import_module("my_work.architecture")
    assert module.LAYOUT == "packed"
    ((first, second),) = module.LOGPS
    # Its weights are random and small: nearly uniform over 97 tokens.
    assert first == pytest.approx([-2 * math.log(97), -3 * math.log(97)], rel=0.05)
    assert second == pytest.approx([-2 * math.log(97), 0.0], rel=0.05)
