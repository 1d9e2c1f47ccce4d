"""Candidates that weigh next to nothing have no backward pass (`--skip_below`): which ones, and what is left.

The gradient of any loss of a group's log-probabilities is sum_k c_k grad log pi(y_k|x), and the coefficients
c_k = d loss / d log pi(y_k|x) are known after a forward pass. For cpo |c_k| is beta times a negative's softmax weight,
and of the ground truth beta times what all negatives weigh together. So |c_k| / beta is called a candidate's weight,
whatever the objective, and candidates up to a weight of W are left out: their log-probabilities are constants. What the
gradient of a group then lacks is at most W x beta x the sum of |grad log pi(y_k|x)| over those left out. Where that
would save nothing (`goes_back_whole`) none are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.groups.dataset import PackedGroups
from trainer.objectives.base import Term
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import TokenBatch, lay_out

# A pass of which more is left goes backward as it is. Else what is left is laid out anew, and then has a forward pass
# more; a backward pass costs about two.
LEFT_AS_IT_IS = 2 / 3


@dataclass(frozen=True)
class Remainder:
    """What is left of a group.

    Attributes:
        tokens: its prefix and the k candidates that are kept.
        coefficients: [k], their c_k in the loss of the optimiser step.
    """

    tokens: Continuations
    coefficients: torch.Tensor


def gradient(total: torch.Tensor, policy_logps: torch.Tensor) -> torch.Tensor:
    """d total / d policy_logps, [G, K]; zeros where total does not depend on them. The graph is kept."""
    if total.requires_grad:
        (found,) = torch.autograd.grad(total, policy_logps, retain_graph=True, allow_unused=True)
        if found is not None:
            return found
    return torch.zeros_like(policy_logps)


def weighty(
    terms: Mapping[str, Term],
    policy_logps: torch.Tensor,
    mask: torch.Tensor,
    *,
    scale: float | torch.Tensor,
    below: float,
) -> torch.Tensor:
    """Which candidates are kept, [G, K]: those of a weight above `below`, or that a mean over tokens depends on.

    Such a mean, MLE's, is no contrast that gets decided. Terms that are means over groups are weighed together, as
    their slopes add up. A weight that is not a number is kept, for others to find.

    Args:
        terms: of the loss of these groups, made from policy_logps.
        policy_logps: [G, K], a leaf that requires a gradient.
        mask: [G, K], True where a candidate exists.
        scale: what the loss multiplies log-probabilities with, see `Objective.scale`.
    """
    of_groups, of_tokens = torch.zeros_like(policy_logps), torch.zeros_like(policy_logps)
    for term in terms.values():
        slopes = of_groups if term.mean_over == "groups" else of_tokens
        slopes += term.weight * gradient(term.total, policy_logps)
    return (~(of_groups.abs() <= below * scale) | (of_tokens != 0)) & mask


def remainders(packed: PackedGroups, kept: torch.Tensor, coefficients: torch.Tensor) -> list[Remainder]:
    """What is left of the groups of a pass; of a group without a kept candidate nothing. Both [G, K]."""
    found = []
    for group, row, chosen in zip(packed.sequences, coefficients.cpu(), kept.cpu(), strict=True):
        if chosen.any():
            continuations = [group.continuations[k] for k in chosen.nonzero()[:, 0].tolist()]
            found.append(Remainder(Continuations(group.prefix, continuations), row[chosen]))
    return found


def goes_back_whole(packed: PackedGroups, parts: Sequence[Remainder], layout: str) -> bool:
    """Whether so much is left of a pass that it goes backward as it is, with all of its candidates.

    Args:
        parts: what is left of its groups.
    """
    return positions(parts, layout) > LEFT_AS_IT_IS * packed.tokens.input_ids.numel()


def lay_out_remainders(
    parts: Sequence[Remainder], layout: str, row_tokens: int
) -> Iterator[tuple[TokenBatch, torch.Tensor]]:
    """Forward passes of what is left of some groups, and their coefficients, [G, K], 0 where there is no candidate."""
    # Passes of similar length waste little in the padded layout and cost nothing in the packed one.
    parts = sorted(parts, key=lambda part: part.tokens.longest)
    for indices, tokens in lay_out([part.tokens for part in parts], layout, row_tokens):
        values = torch.cat([parts[i].coefficients for i in indices])
        coefficients = torch.zeros(tokens.mask.shape, dtype=values.dtype)
        coefficients[tokens.mask] = values
        yield tokens, coefficients


def positions(parts: Iterable[Remainder], layout: str) -> int:
    """How many positions they take in one pass of a layout."""
    groups = [part.tokens for part in parts]
    if layout == "packed":
        return sum(group.packed_length for group in groups)
    return sum(len(group.continuations) for group in groups) * max((group.longest for group in groups), default=0)


def nothing(passes: Sequence[PackedGroups]) -> Remainder:
    """A small candidate of some passes, with coefficient 0: its backward pass gives each parameter a gradient of 0."""
    group = min((group for packed in passes for group in packed.sequences), key=lambda group: len(group.prefix))
    return Remainder(Continuations(group.prefix, [min(group.continuations, key=len)]), torch.zeros(1))
