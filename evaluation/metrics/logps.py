"""Log-probabilities of continuations under a checkpoint, kept in the store."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from data.command.errors import UserError
from data.finite import LOOK, first_not_finite
from data.schema import Group
from evaluation.answers.cache import Store, hash_of


def truth_logps(
    store: Store, identity: dict[str, str], groups: Sequence[Group], load: Callable[[], Any]
) -> list[float]:
    """Log-probability of each ground truth in nats, summed over its tokens.

    Args:
        identity: of the checkpoint.
        load: its `trainer.scoring.scorer.Scorer` in float32; called only if the store lacks the numbers.
    """
    tokens = [(g.prompt_ids, [g.response_ids]) for g in groups]
    return [scores[0] for scores in _scores(store, identity, groups, tokens, "float32", load)]


def candidate_logps(
    store: Store, identity: dict[str, str], groups: Sequence[Group], dtype: str, load: Callable[[], Any]
) -> list[list[float]]:
    """Log-probabilities of the candidates of held-out groups, the ground truth's first.

    Args:
        identity: of the checkpoint.
        dtype: that the reference scored them in; with another, what is rounded differently would pass for a preference.
        load: its `trainer.scoring.scorer.Scorer` in dtype; called only if the store lacks the numbers.
    """
    tokens = [(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    return _scores(store, identity, groups, tokens, dtype, load)


def _scores(
    store: Store,
    identity: dict[str, str],
    groups: Sequence[Group],
    tokens: Sequence[tuple[list[int], list[list[int]]]],
    dtype: str,
    load: Callable[[], Any],
) -> list[list[float]]:
    def make() -> pa.Table:
        from trainer.scoring.continuations import Continuations

        logps = load().score([Continuations(*group) for group in tokens])
        for group, values in zip(groups, logps, strict=True):
            if (index := first_not_finite(values)) is not None:
                raise UserError(
                    f"the log-probability of continuation {index} of group {group.id} is {values[index]} in {dtype}, "
                    f"which is no finite number. {LOOK}"
                )
        return pa.table({"logps": logps})

    key = {**identity, "tokens_sha256": hash_of({"tokens": tokens}), "dtype": dtype}
    return store.get_or_make("logps", key, make)["logps"].to_pylist()
