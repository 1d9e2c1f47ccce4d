"""Examples in, groups without negatives and rejects out: every example becomes one or the other."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data.command.cleaning import shown
from data.command.errors import UserError
from data.schema import Alternative, Group, Reject
from data.sources.encode import Encoded, Problem, lost_field
from data.sources.examples import Example
from data.sources.tasks import task_of


class Prepared(NamedTuple):
    """Groups and rejects in the order of the examples, and how many of the groups hold a text that was cut."""

    groups: list[Group]
    rejects: list[Reject]
    truncated: int


def prepare_groups(examples: Sequence[Example], task: str, tokenizer: Any, max_length: int) -> Prepared:
    """Tokenise examples into groups; every example becomes either a group or a reject with a reason.

    Args:
        task: that the examples were read with, see `data.sources.tasks.task_of`.
        tokenizer: transformers tokenizer with an EOS token.
        max_length: the model's context in tokens; prefix + continuation must fit.

    Raises:
        UserError: the examples need a chat template and the tokenizer has none.
    """
    usable = [e for e in examples if e.problem is None]
    truths = [(e.prompt, e.response) for e in usable]
    listed = [(e.prompt, response) for e in usable for response in e.alternatives or ()]
    outcomes = task_of(task).encode([*truths, *listed], tokenizer, max_length)
    encoded, others = iter(outcomes[: len(truths)]), iter(outcomes[len(truths) :])
    groups: list[Group] = []
    rejects: list[Reject] = []
    truncated = 0
    for example in examples:
        outcome = example.problem or next(encoded)
        alternatives = None if example.problem else _alternatives(example, outcome, others)
        if isinstance(outcome, Encoded) and example.besides:
            outcome = lost_field(example.prompt, example.response, example.besides, tokenizer) or outcome
        if isinstance(outcome, Encoded):
            ids = outcome.prompt_ids, outcome.response_ids
            texts = outcome.prompt, outcome.response
            query = outcome.prompt if example.query is None else example.query
            more = {"messages": outcome.messages, "query": query, "alternatives": alternatives}
            groups.append(Group(example.id, *texts, *ids, split=example.split, **more))
            truncated += outcome.truncated
        else:
            rejects.append(Reject(example.id, outcome[0], shown(outcome[1]), shown(example.prompt)))
    return Prepared(groups, rejects, truncated)


def _alternatives(example: Example, truth: Encoded | Problem, others: Iterator[Encoded | Problem]) -> Any:
    """The example's alternatives in tokens, each as a ground truth of its prompt would be; None if it lists none.

    Those that cannot be used come last.
    """
    if example.alternatives is None:
        return None
    scores = example.scores or [None] * len(example.alternatives)
    found = []
    for score in scores:
        outcome = next(others)
        if isinstance(outcome, tuple):
            found.append(Alternative([], score, outcome[0]))
        elif isinstance(truth, Encoded) and outcome.prompt_ids != truth.prompt_ids:
            found.append(Alternative([], score, "the prompt reads otherwise before it"))
        else:
            found.append(Alternative(outcome.response_ids, score))
    return found + [Alternative([], problem=problem) for problem in example.unusable or ()]


def require_groups(groups: Sequence[Group], rejects: Sequence[Reject], where: str) -> None:
    """Raise UserError if nothing is left to work on, saying why the rows were rejected."""
    if groups:
        return
    raise UserError(f"no usable row in {where}: {describe_rejects(rejects)}. Fix the data or choose other rows.")


def describe_rejects(rejects: Sequence[Reject]) -> str:
    """E.g. "3 rejected (2 empty response; 1 prompt too long: 1100 tokens, context 1024)"."""
    details: dict[str, list[str]] = {}
    for reject in rejects:
        details.setdefault(reject.reason, []).append(reject.detail)
    parts = []
    for reason, found in sorted(details.items(), key=lambda item: -len(item[1])):
        such = ", such as: " if len(set(found)) > 1 else ": "
        parts.append(f"{len(found)} {reason}" + (such + found[-1] if found[-1] else ""))
    return f"{len(rejects)} rejected ({'; '.join(parts)})" if parts else "0 rejected"
