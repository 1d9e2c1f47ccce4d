"""The trainer: transformers' Trainer whose step goes through packed groups; `trainer.objectives` decides the rest."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from trainer.dataset import PackedGroups
from trainer.logprobs import attention_implementation, candidate_logps
from trainer.objectives import cpo_loss, cpo_ranking_loss, implicit_rewards, mle_loss, preference_metrics

log = logging.getLogger(__name__)

# Before the first step the policy is the reference, so h = beta * (policy - reference) is 0 but for rounding: at most
# beta * tokens of the continuation * this many nats. Scorer and trainer may pack a group differently, which moves the
# last digits of float32: 2.4e-7 nats per token measured on a tiny model, a few 1e-5 on deep ones. bfloat16 keeps 8
# bits: each token is off by about a hundredth, and at beta 5 and 100 tokens |h| may reach several nats. float16 keeps
# three bits more.
START_TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
START_PASSES = 8  # the forward passes to check it on


class ContrastiveTrainer(Trainer):
    """Trains on groups with one of the objectives of `trainer.config.OBJECTIVES`.

    An optimiser step sees exactly per_device_train_batch_size x gradient_accumulation_steps x processes groups,
    however many forward passes they take, and each group (mle: each token) weighs the same.

    Args:
        objective: "mle", "cpo" or "cpo-rank".
        beta: temperature of the contrast.
        path: "packed" or "padded", for messages.
        Everything else as for transformers' Trainer. The data collator must be `trainer.dataset.Collator`.
    """

    def __init__(self, *args: Any, objective: str, beta: float, path: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.objective = objective
        self.beta = beta
        self.path = path
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._logged_at = time.perf_counter()
        self._checked_start = objective == "mle"

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[list[PackedGroups]], torch.Tensor]:
        """The micro-batches of one optimiser step, and what its loss is a mean over: groups, or tokens for mle."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = sum(self._num_items(packed) for batch in batches for packed in batch)
        return batches, self.accelerator.reduce(torch.tensor(float(items), device=device), "sum")  # type: ignore[return-value]

    def training_step(
        self,
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward for one micro-batch, pass by pass; gradients are synchronised after its last pass.

        Args:
            inputs: list of PackedGroups.
            num_items_in_batch: from `get_batch_samples`.

        Returns:
            This process's share of the step's loss, detached.
        """
        assert num_items_in_batch is not None
        if not self._checked_start:
            self._checked_start = True
            if self.state.global_step == 0:
                self._check_start(inputs[:START_PASSES])
        model.train()
        total = torch.zeros((), device=self.args.device)
        for index, packed in enumerate(inputs):
            last = index == len(inputs) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                packed = packed.to(self.args.device)
                with self.compute_loss_context_manager():
                    policy_logps = candidate_logps(model, packed.tokens)
                    loss = self._objective(policy_logps, packed)
                # DDP averages over processes; the loss is a sum over all of them.
                share = loss * self._num_items(packed) / num_items_in_batch
                self.accelerator.backward(share * self.accelerator.num_processes)
                total += share.detach() * self.accelerator.num_processes
            self._record(policy_logps.detach(), packed)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log: metrics, tokens per second, padding fraction."""
        if self._counts and "loss" in logs:
            now = time.perf_counter()
            elapsed, self._logged_at = now - self._logged_at, now
            names = sorted(self._sums)
            totals = torch.tensor([[self._sums[n], self._counts[n]] for n in names], device=self.args.device)
            totals = self.accelerator.reduce(totals, "sum").tolist()  # type: ignore[union-attr]
            values = {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
            tokens = dict(zip(names, totals, strict=True))["padding_fraction"][1]
            logs = {**logs, **values, "tokens_per_second": round(tokens / elapsed, 1)}
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Six operations per parameter and token, forward and backward."""
        tokens = sum(packed.tokens.input_ids.numel() for packed in inputs)
        return 6 * tokens * sum(p.numel() for p in self.model.parameters())  # type: ignore[union-attr]

    def _num_items(self, packed: PackedGroups) -> int:
        return packed.num_truth_tokens if self.objective == "mle" else packed.num_groups

    def _objective(self, policy_logps: torch.Tensor, packed: PackedGroups) -> torch.Tensor:
        if self.objective == "mle":
            return mle_loss(policy_logps, packed.num_truth_tokens)
        reference, mask = packed.reference_logps, packed.tokens.mask
        if self.objective == "cpo":
            return cpo_loss(policy_logps, reference, beta=self.beta, mask=mask)
        return cpo_ranking_loss(policy_logps, reference, packed.ranks, beta=self.beta, mask=mask)

    def _record(self, policy_logps: torch.Tensor, packed: PackedGroups) -> None:
        def add(name: str, total: float, count: int) -> None:
            self._sums[name] += total
            self._counts[name] += count

        if self.objective == "mle":
            add("logps/ground_truth", policy_logps[:, 0].sum().item(), packed.num_groups)
        else:
            metrics = preference_metrics(
                policy_logps, packed.reference_logps, packed.ranks, beta=self.beta, mask=packed.tokens.mask
            )
            for name, values in metrics.items():
                add(name, values.sum().item(), packed.num_groups)
        add("padding_fraction", packed.tokens.padding, packed.tokens.input_ids.numel())

    @torch.no_grad()
    def _check_start(self, passes: Sequence[PackedGroups]) -> None:
        """Warn if the policy is not the reference before the first step: then every h is near 0, the loss log K."""
        model: Any = self.model  # not DDP's wrapper: the processes may hold different numbers of passes
        model.eval()
        rewards, losses, expected, longest = [], [], [], 0
        for packed in (packed.to(self.args.device) for packed in passes):
            with self.compute_loss_context_manager():
                policy_logps = candidate_logps(model, packed.tokens)
            mask = packed.tokens.mask
            rewards.append(implicit_rewards(policy_logps, packed.reference_logps, beta=self.beta, mask=mask).flatten())
            losses.append(self._objective(policy_logps, packed).item() * packed.num_groups)
            counts = mask.sum(-1).float()
            expected.append((counts.log() if self.objective == "cpo" else (counts + 1).lgamma()).sum().item())
            longest = max(longest, int(packed.tokens.slot.bincount().max()))
        groups = sum(packed.num_groups for packed in passes)
        worst = torch.cat(rewards).abs().max().item()
        dtype = next(model.parameters()).dtype
        compute = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else dtype
        bound = self.beta * longest * START_TOLERANCE.get(compute, START_TOLERANCE[torch.float32])
        found = (
            f"max |h| {worst:.2g} (bound {bound:.2g}: beta {self.beta:g}, up to {longest} tokens, {compute}), loss "
            f"{sum(losses) / groups:.4f} ({'log K' if self.objective == 'cpo' else 'log K!'} is "
            f"{sum(expected) / groups:.4f})"
        )
        log.info("before the first step, on %d groups: %s", groups, found)
        if not worst <= bound:  # nan is beyond it too
            log.warning(
                "The policy differs from the reference before the first step: %s. Compare how the set was scored (its "
                "manifest: dtype and attention path) with this run: weights in %s, computed in %s, path '%s', "
                "attention '%s'.",
                found,
                dtype,
                compute,
                self.path,
                attention_implementation(model),
            )
