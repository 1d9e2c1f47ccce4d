"""Whether the sampler could have said a ground truth: else no negative is ever like it (docs/what-it-learns.md)."""

from collections.abc import Mapping
from typing import Any

from data.schema import Group
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools


def in_support(group: Group, rank: int | None, samplers: Mapping[str, dict[str, Any]], tools: Tools) -> bool | None:
    """Whether at least one strategy could have sampled the whole ground truth.

    Args:
        rank: the largest one of its tokens, see `trainer.scoring.scorer.Scorer.score_and_rank`; None: not known.
        samplers: the set's strategies that sample, with their settings.

    Returns:
        None where nothing samples, or where none is known to reach it and of one that is not known.
    """
    said = [STRATEGIES.load(name).supports(group, rank, settings, tools) for name, settings in samplers.items()]
    if True in said:
        return True
    return None if None in said or not said else False
