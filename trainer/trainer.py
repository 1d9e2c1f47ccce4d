"""The trainer: transformers' Trainer whose step goes through packed groups; `trainer.objectives` decides the rest."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from trainer.dataset import PackedGroups
from trainer.logprobs import candidate_logps
from trainer.objectives import cpo_loss, cpo_ranking_loss, mle_loss, preference_metrics

log = logging.getLogger(__name__)

# Before the first step the policy is the reference: allowed difference of log-probabilities, nats per token.
# Scorer and trainer may pack a group differently, which moves float32 sums in the last digits; under bfloat16
# autocast each token is off by up to a few hundredths.
START_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


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
        model.train()
        if not self._checked_start:
            self._checked_start = True
            if self.state.global_step == 0:
                self._check_start(model, inputs[0])
        total = torch.zeros((), device=self.args.device)
        for index, packed in enumerate(inputs):
            last = index == len(inputs) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                packed = packed.to(self.args.device)
                with self.compute_loss_context_manager():
                    policy_logps = candidate_logps(model, packed.tokens)
                    loss = self._objective(policy_logps, packed)
                # DDP and FSDP average over processes; the loss is a sum over all of them.
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
    def _check_start(self, model: nn.Module, packed: PackedGroups) -> None:
        """Warn if the policy is not the reference before the first step: then every h is near 0."""
        packed = packed.to(self.args.device)
        model.eval()
        with self.compute_loss_context_manager():
            policy_logps = candidate_logps(model, packed.tokens)
        model.train()
        mask = packed.tokens.mask
        lengths = torch.zeros(mask.numel(), device=policy_logps.device)
        lengths.index_add_(0, packed.tokens.slot, torch.ones_like(packed.tokens.slot, dtype=lengths.dtype))
        off = (policy_logps - packed.reference_logps).abs() / lengths.view(mask.shape).clamp(min=1)
        worst = off[mask].max().item()
        dtype = next(model.parameters()).dtype
        compute = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else dtype
        log.info("policy against reference before the first step: off by at most %.2g nats per token", worst)
        if worst > START_TOLERANCE.get(compute, 1e-3):
            log.warning(
                "The policy differs from the reference before the first step: log-probabilities are off by up to %.3g "
                "nats per token (expected below %.0e), so the loss does not start at log K. Compare how the set was "
                "scored (its manifest: dtype and attention path) with this run: weights in %s, computed in %s, path "
                "'%s', attention '%s'.",
                worst,
                START_TOLERANCE.get(compute, 1e-3),
                dtype,
                compute,
                self.path,
                getattr(self.model, "config", None) and self.model.config._attn_implementation,  # type: ignore[union-attr]
            )
