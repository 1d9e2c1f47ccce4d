"""Examples as tests want them: all of a source in a list, or one made of a prompt and a response."""

from typing import Any

from data.command.cleaning import shown
from data.schema import example_id
from data.sources.examples import Example, open_source
from data.sources.tasks import task_of


def load_examples(dataset: str, task: str, split: str = "all", limit: int | None = None) -> list[Example]:
    """All examples of one split."""
    return list(open_source(dataset, task, split, limit))


def as_example(prompt: Any, response: Any, task: str, split: str = "train") -> Example:
    """An example of what a task has read in one row."""
    problem = task_of(task).problem(prompt, response)
    kept = (prompt, response) if problem is None else (shown(prompt), shown(response))
    return Example(example_id(prompt, response), *kept, split, problem)
