"""Whether a policy is its reference before the first step: then every h is 0 but for rounding."""

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from data.command.wording import counted
from trainer.objectives.rewards import implicit_rewards
from trainer.scoring.support import attention_implementation

if TYPE_CHECKING:
    from trainer.groups.dataset import PackedGroups
    from trainer.objectives.base import Objective

log = logging.getLogger(__name__)

# Before the first step the policy is the reference, so h = beta * (policy - reference) is 0 but for rounding: at most
# beta * tokens of the continuation * this many nats. Scorer and trainer may pack a group differently, which moves the
# last digits of float32: 2.4e-7 nats per token measured on a tiny model, a few 1e-5 on deep ones. bfloat16 keeps 8
# bits: each token is off by about a hundredth, and at beta 5 and 100 tokens |h| may reach several nats. float16 keeps
# three bits more.
START_TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}


def report_groups(
    scored: "Iterable[tuple[torch.Tensor, PackedGroups]]",
    objective: "Objective",
    options: Any,
    model: Any,
    arguments: TrainingArguments,
    *,
    layout: str,
) -> None:
    """`report_start` of packed groups; says nothing where there are none.

    Args:
        scored: the policy's log-probabilities, [G, K], and the groups.
        options: of the objective.
    """
    beta = objective.beta(options)
    rewards: list[torch.Tensor] = []
    losses: dict[str, list[float]] = {}
    longest = groups = 0
    for policy_logps, packed in scored:
        mask = packed.tokens.mask
        rewards.append(implicit_rewards(policy_logps, packed.reference_logps, beta=beta, mask=mask).flatten())
        expected = objective.expected_at_start(packed, options)
        if expected is not None:
            sums = losses.setdefault(expected.formula, [0.0, 0.0])
            sums[0] += objective.terms(policy_logps, packed, options)[expected.term].total.item()
            sums[1] += expected.values.sum().item()
        longest = max(longest, int(packed.tokens.lengths.max()))
        groups += packed.num_groups
    if not groups:
        return
    loss = ", ".join(
        f"{loss / groups:.4f} ({formula} is {value / groups:.4f})" for formula, (loss, value) in losses.items()
    )
    report_start(
        model, arguments, torch.cat(rewards), beta=beta, longest=longest, what=counted(groups, "group"), loss=loss,
        layout=layout,
    )  # fmt: skip


def report_start(
    model: Any,
    arguments: TrainingArguments,
    rewards: torch.Tensor,
    *,
    beta: float,
    longest: int,
    what: str,
    loss: str,
    layout: str,
) -> None:
    """Say how far the policy is from the reference before the first step; warn if that is beyond rounding.

    Args:
        rewards: h of some candidates.
        longest: tokens of the longest of them.
        what: how many groups, or pairs, they are.
        loss: of these, beside the value that it should have.
        layout: of the forward passes.
    """
    worst = rewards.abs().max().item()
    dtype, compute = next(model.parameters()).dtype, computed_in(arguments, model)
    bound = beta * longest * START_TOLERANCE.get(compute, START_TOLERANCE[torch.float32])
    found = f"max |h| {worst:.2g} (bound {bound:.2g}: beta {beta:g}, up to {longest} tokens, {compute}), loss {loss}"
    log.info("before the first step, on %s: %s", what, found)
    if not worst <= bound:  # nan is beyond it too
        log.warning(
            "The policy differs from the reference before the first step: %s. Compare how the set was scored (its "
            "manifest: dtype and layout) with this run: weights in %s, computed in %s, layout '%s', "
            "attention '%s'.",
            found,
            dtype,
            compute,
            layout,
            attention_implementation(model),
        )


def computed_in(args: TrainingArguments, model: Any) -> torch.dtype:
    """What matrix products are computed in: that of mixed precision (a flag's or accelerate's), else the weights'."""
    mixed: dict[str | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return mixed.get(args.mixed_precision) or next(model.parameters()).dtype


def compare_with_scorer(
    scored: Sequence[tuple[str, str]], model: Any, training: TrainingArguments, layout: str | None
) -> None:
    """Warn where the reference was scored otherwise than the policy will be: rounding alone then makes an h.

    Args:
        scored: (dtype, layout) of the scorer, of each set.
        layout: this run's; None: not to be compared, as for TRL, which always pads.
    """
    dtype = str(computed_in(training, model)).removeprefix("torch.")
    mine = f"{dtype}, {layout} layout" if layout else dtype
    theirs = {f"{other}, {their_layout} layout" if layout else other: other for other, their_layout in scored}
    plain = training.mixed_precision == "no"
    for spoken, other in theirs.items():
        if spoken != mine:
            log.warning(
                "The reference was scored in %s; this run computes in %s. Each token then starts off by rounding, "
                "which beta times the tokens of a response magnify. Train %s, or make the set with --scorer_dtype %s.",
                *(spoken, mine, f"with --dtype {other}" if plain else "without mixed precision", dtype),
            )
