"""The trainer: transformers' Trainer whose step goes through packed groups; `trainer.objectives` decides the rest."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from trainer.groups.dataset import PackedGroups
from trainer.groups.sampler import StepSampler
from trainer.monitor.safety import check_finite
from trainer.monitor.start import computed_in, report_start
from trainer.objectives.losses import (
    cpo_loss,
    cpo_ranking_loss,
    implicit_rewards,
    mle_loss,
    preference_metrics,
    pss_loss,
    strategy_metrics,
)
from trainer.objectives.scheduled import ScheduledSampling
from trainer.scoring.logprobs import candidate_logps

log = logging.getLogger(__name__)

START_PASSES = 8  # the forward passes to compare policy and reference on, before the first step
CONTRASTIVE = ("cpo", "cpo-rank")


class ContrastiveTrainer(Trainer):
    """Trains on groups with one of the objectives of `trainer.config.OBJECTIVES` (all but dpo).

    An optimiser step sees exactly per_device_train_batch_size x gradient_accumulation_steps x processes groups (the
    last one of an epoch those that are left, or with dataloader_drop_last there is none), however many forward passes
    they take, and each group (mle, pss and the MLE term: each token) weighs the same.

    Args:
        objective: "mle", "pss", "cpo" or "cpo-rank".
        beta: temperature of the contrast.
        path: "packed" or "padded", for messages.
        sft_weight: weight of the MLE term on the ground truths beside the contrast.
        scheduled: for pss, how its mixtures are made.
        Everything else as for transformers' Trainer. The data collator must be `trainer.groups.dataset.Collator`.
    """

    def __init__(
        self,
        *args: Any,
        objective: str,
        beta: float,
        path: str,
        sft_weight: float = 0.0,
        scheduled: ScheduledSampling | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.objective = objective
        self.beta = beta
        self.path = path
        self.sft_weight = sft_weight
        self.scheduled = scheduled
        # FlexAttention is tried before the first forward, outside of its mixed precision.
        self.model._computes_in = computed_in(self.args, self.model)  # type: ignore[union-attr,assignment]
        self._sums: dict[str, torch.Tensor] = {}
        self._logged_at: float | None = None
        self._checked_start = objective not in CONTRASTIVE
        # Of the current step: its loss so far, ids of its groups, and of those whose loss was not finite.
        self._total: Any = 0.0  # a tensor after the first micro-batch
        self._ids: list[str] = []
        self._unsound: list[str] = []
        if self.train_dataset is not None:
            self._get_train_sampler()  # it may refuse: before anything is written

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[list[PackedGroups]], torch.Tensor]:
        """The micro-batches of one optimiser step, and what its loss is a mean over: [2], groups and truth tokens."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        every = [packed for batch in batches for packed in batch if packed.counts]
        items = [sum(packed.num_groups for packed in every), sum(packed.num_truth_tokens for packed in every)]
        return batches, self.accelerator.reduce(torch.tensor(items, dtype=torch.float32, device=device), "sum")  # type: ignore[return-value]

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

        Raises:
            UserError: the loss or a gradient of the step is not finite; nothing was updated.
        """
        assert isinstance(num_items_in_batch, torch.Tensor)
        if not self._checked_start:
            self._checked_start = True
            if self.state.global_step == 0:
                self._check_start(inputs[:START_PASSES])
        if self._logged_at is None:  # tokens per second are the training's: not before its first step
            self._logged_at = time.perf_counter()
        model.train()
        total = torch.zeros((), device=self.args.device)
        passes = list(self._in_step(inputs))
        for index, (packed, counts) in enumerate(passes):
            # FSDP would keep whole gradients until it synchronises them.
            synchronise = index == len(passes) - 1 or self.is_fsdp_enabled
            with nullcontext() if synchronise else self.accelerator.no_sync(model):
                packed = packed.to(self.args.device)
                with self.compute_loss_context_manager():
                    if self.scheduled is not None:
                        packed = self.scheduled.mix(model, packed, (self.args.seed, self.state.global_step))
                    policy_logps = candidate_logps(model, packed.tokens)
                    share = self._share(policy_logps, packed, num_items_in_batch) * counts
                # DDP averages over processes; the loss is a sum over all of them.
                self.accelerator.backward(share * self.accelerator.num_processes)
            total += share.detach() * self.accelerator.num_processes
            self._record(policy_logps.detach(), packed, share.detach(), counts)
        self._total = self._total + total
        if self.accelerator.sync_gradients:
            self._check_finite(model)
        return total

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics on held-out groups, each group once, without gradients. For pss the loss is mle's."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.perf_counter()
        sums: dict[str, torch.Tensor] = {}
        model: Any = self.model
        model.eval()
        size, processes = self.args.eval_batch_size, self.accelerator.num_processes
        collate: Any = dataclasses.replace(self.data_collator, copies=1)  # type: ignore[type-var]  # no mixtures
        with torch.no_grad():
            for start in range(0, len(dataset), size * processes):
                start += size * self.accelerator.process_index
                mine = range(start, min(start + size, len(dataset)))
                groups = [dataset[i] for i in mine] or [dataset[0]]  # all take part, see `_in_step`
                for packed, counts in self._in_step(collate(groups)):
                    packed = packed.to(self.args.device)
                    with self.compute_loss_context_manager():
                        policy_logps = candidate_logps(model, packed.tokens)
                    _add(sums, self._metrics(policy_logps, packed, counts and len(mine) > 0))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._averages(sums).items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log: metrics, tokens per second, padding fraction."""
        if self._sums and "loss" in logs:
            now = time.perf_counter()
            assert self._logged_at is not None
            elapsed, self._logged_at = now - self._logged_at, now
            positions = self.accelerator.reduce(self._sums["padding_fraction"].clone(), "sum")  # type: ignore[arg-type]
            padding, number = positions.tolist()  # type: ignore[union-attr]
            averages = self._averages(self._sums)
            averages.pop("loss")  # transformers' own is the same number
            logs = {**logs, **averages, "tokens_per_second": round((number - padding) / elapsed, 1)}
            self._sums = {}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Six operations per parameter and token, forward and backward."""
        tokens = sum(packed.tokens.input_ids.numel() for packed in inputs)
        return 6 * tokens * sum(p.numel() for p in self.model.parameters())  # type: ignore[union-attr]

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        micro_batches = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return StepSampler(
            dataset, self.args.train_batch_size * micro_batches, micro_batches, seed, self.args.dataloader_drop_last
        )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._logged_at is not None:
            self._logged_at += time.perf_counter() - started

    def _in_step(self, passes: Sequence[PackedGroups]) -> Iterator[tuple[PackedGroups, bool]]:
        """The passes, and whether each counts.

        FSDP's processes need equally many, so some repeat their last. A process with no group in the last step of an
        epoch passes one that does not count.
        """
        number = len(passes)
        if self.is_fsdp_enabled:
            numbers: Any = self.accelerator.gather(torch.tensor([number], device=self.args.device))
            number = int(numbers.max())
        for index in range(number):
            packed = passes[min(index, len(passes) - 1)]
            yield packed, packed.counts and index < len(passes)

    def _share(self, policy_logps: torch.Tensor, packed: PackedGroups, items: torch.Tensor) -> torch.Tensor:
        """What a pass adds to the loss of its step, a mean over all groups, or truth tokens, of the step."""
        groups, tokens = items
        if self.objective == "mle":
            return mle_loss(policy_logps, tokens)
        if self.objective == "pss":
            return pss_loss(policy_logps, tokens)
        share = self._contrast(policy_logps, packed) * packed.num_groups / groups
        if self.sft_weight:
            share = share + self.sft_weight * mle_loss(policy_logps, tokens)
        return share

    def _contrast(self, policy_logps: torch.Tensor, packed: PackedGroups) -> torch.Tensor:
        reference, mask = packed.reference_logps, packed.tokens.mask
        if self.objective == "cpo":
            return cpo_loss(policy_logps, reference, beta=self.beta, mask=mask)
        return cpo_ranking_loss(policy_logps, reference, packed.ranks, beta=self.beta, mask=mask)

    def _record(self, policy_logps: torch.Tensor, packed: PackedGroups, share: torch.Tensor, counts: bool) -> None:
        if counts:
            self._ids += packed.ids
            self._unsound += [] if torch.isfinite(share) else packed.ids
        metrics = self._metrics(policy_logps, packed, counts)
        positions = packed.tokens.input_ids.numel() * counts
        padding = packed.tokens.padding * counts
        metrics["padding_fraction"] = torch.tensor(
            [padding, positions], dtype=torch.float64, device=policy_logps.device
        )
        _add(self._sums, metrics)

    def _metrics(self, policy_logps: torch.Tensor, packed: PackedGroups, counts: bool) -> dict[str, torch.Tensor]:
        """Sum and number of each metric, [2]; zeros if the pass does not count. Every process has the same names."""
        groups, tokens = packed.num_groups, packed.num_truth_tokens
        found: dict[str, tuple[Any, float]] = {}
        if self.objective not in CONTRASTIVE:
            found["loss"] = (mle_loss(policy_logps, 1), tokens)
            if self.objective == "pss":
                found["loss"] = (pss_loss(policy_logps, 1), tokens)
            found["logps/ground_truth"] = (policy_logps[:, 0].sum(), groups)
        else:
            arguments = policy_logps, packed.reference_logps, packed.ranks
            options: Any = {"beta": self.beta, "mask": packed.tokens.mask}
            contrast = self._contrast(policy_logps, packed) * groups
            found["loss"] = (contrast, groups)
            if self.sft_weight:
                # Both terms have a log of their own; `_averages` adds them up.
                found["loss/contrast"] = (contrast, groups)
                found["loss/sft"] = (mle_loss(policy_logps, 1), tokens)
            for name, values in preference_metrics(*arguments, **options).items():
                found[name] = (values.sum(), groups)
            names = self.data_collator.strategies  # type: ignore[union-attr]
            if len(names) > 1:
                by_strategy = strategy_metrics(*arguments, packed.strategy, names, **options)
                found.update({name: (values.sum(), len(values)) for name, values in by_strategy.items()})
        return {
            name: torch.stack([torch.as_tensor(x, dtype=torch.float64, device=policy_logps.device) for x in pair])
            if counts
            else torch.zeros(2, dtype=torch.float64, device=policy_logps.device)
            for name, pair in found.items()
        }

    def _averages(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Over all processes."""
        names = sorted(sums)
        totals = self.accelerator.reduce(torch.stack([sums[name].to(self.args.device) for name in names]), "sum")
        pairs = totals.tolist()  # type: ignore[union-attr]
        found = {name: total / number for name, (total, number) in zip(names, pairs, strict=True) if number}
        if "loss/sft" in found:
            found["loss"] = found["loss/contrast"] + self.sft_weight * found["loss/sft"]
        return found

    def _check_finite(self, model: nn.Module) -> None:
        total, ids, unsound = self._total, self._ids, self._unsound
        self._total, self._ids, self._unsound = 0.0, [], []
        check_finite(self.accelerator, model, total, self.state.global_step + 1, ids, unsound)

    @torch.no_grad()
    def _check_start(self, passes: Sequence[PackedGroups]) -> None:
        """Warn if the policy is not the reference before the first step: then every h is near 0, the loss log K."""
        model: Any = self.model
        model.eval()
        rewards, losses, expected, longest, groups = [], [], [], 0, 0
        for packed, counts in self._in_step(passes):
            packed = packed.to(self.args.device)
            with self.compute_loss_context_manager():
                policy_logps = candidate_logps(model, packed.tokens)
            if not counts:
                continue
            mask = packed.tokens.mask
            rewards.append(implicit_rewards(policy_logps, packed.reference_logps, beta=self.beta, mask=mask).flatten())
            losses.append(self._contrast(policy_logps, packed).item() * packed.num_groups)
            candidates = mask.sum(-1).float()
            expected.append((candidates.log() if self.objective == "cpo" else (candidates + 1).lgamma()).sum().item())
            longest = max(longest, int(packed.tokens.slot.bincount().max()))
            groups += packed.num_groups
        if not groups:
            return
        name = "log K" if self.objective == "cpo" else "log K!"
        report_start(
            model,
            self.args,
            torch.cat(rewards),
            beta=self.beta,
            longest=longest,
            what=f"{groups} groups",
            loss=f"{sum(losses) / groups:.4f} ({name} is {sum(expected) / groups:.4f})",
            path=self.path,
        )


def _add(sums: dict[str, torch.Tensor], metrics: dict[str, torch.Tensor]) -> None:
    for name, pair in metrics.items():
        sums[name] = sums[name] + pair.to(sums[name].device) if name in sums else pair
