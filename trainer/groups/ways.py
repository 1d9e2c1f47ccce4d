"""Which candidates of a strategy are taken where a group holds more than are wanted: `--use an=4:hard`.

A way is a function of the shard, the places of the candidates in it, how many are wanted and the ranking signal. It
gives the indices of those that it takes, [count], in any order; of equal ones the first. Whatever a way needs, the
trainer reads anyway.
"""

from collections.abc import Callable

import numpy as np

from trainer.groups.store import Shard

Way = Callable[[Shard, np.ndarray, int, str], np.ndarray]


def hard(shard: Shard, places: np.ndarray, count: int, signal: str) -> np.ndarray:
    """The likeliest per token under the reference model."""
    lengths = shard.negatives.offsets[places + 1] - shard.negatives.offsets[places]
    return _highest(shard.negative_logps[places] / lengths, count)


def similar(shard: Shard, places: np.ndarray, count: int, signal: str) -> np.ndarray:
    """The most similar to the ground truth by the ranking signal."""
    return _highest(shard.similarity[signal][places], count)


def diverse(shard: Shard, places: np.ndarray, count: int, signal: str) -> np.ndarray:
    """Farthest first: the first one, then again and again the one whose nearest taken one is the farthest.

    Of two candidates the distance is one less the share of their different tokens that both have (Jaccard): a set holds
    embeddings of ground truths alone.
    """
    tokens = [set(shard.negatives[place].tolist()) for place in places]
    taken = [0]
    nearest = np.full(len(tokens), np.inf)
    while len(taken) < count:
        last = tokens[taken[-1]]
        nearest = np.minimum(nearest, [1 - len(last & other) / len(last | other) for other in tokens])
        nearest[taken] = -1
        taken.append(int(np.argmax(nearest)))
    return np.array(taken)


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-values.astype(np.float64), kind="stable")[:count]


SIMILAR = "similar"  # the one by the ranking signal
WAYS: dict[str, Way] = {"hard": hard, SIMILAR: similar, "diverse": diverse}
