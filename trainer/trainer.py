"""The trainer: transformers' Trainer whose step goes through packed groups; the objective decides the rest."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from data.command.errors import UserError
from trainer.assembly import as_groups, check_sets, chosen_objective, loaded_model, row_budget, tokenizer_of
from trainer.groups.dataset import Collator, PackedGroups
from trainer.groups.sampler import EpochOfSampler, StepSampler
from trainer.inherited import refuse_data_parallel, refuse_unhonoured
from trainer.model_card import ModelFacts
from trainer.monitor.log_lines import LogLines
from trainer.monitor.resumption import SoundResumption
from trainer.monitor.safety import SoundSaves, check_finite
from trainer.monitor.start import compare_with_scorer, computed_in, report_groups
from trainer.monitor.stretches import Stretches
from trainer.monitor.utilisation import ModelFlop, peak_flops
from trainer.objectives import DEFAULT
from trainer.objectives.base import TERM, Objective, Term
from trainer.policy import prepared_policy
from trainer.publishing import OwnCard, published_name
from trainer.scoring.packing import TokenBatch
from trainer.scoring.prepared_model import candidate_logps
from trainer.sharding import SoundSharding, refuse_deepspeed, refuse_unsharded, synchronise_each_pass
from trainer.skipping import Remainder, goes_back_whole, gradient, lay_out_remainders, nothing, remainders, weighty

log = logging.getLogger(__name__)

START_PASSES = 8  # the forward passes to compare policy and reference on, before the first step


class ContrastiveTrainer(SoundResumption, SoundSaves, OwnCard, SoundSharding, Trainer):
    """Trains on packed groups towards an objective that has loss terms.

    An optimiser step sees exactly per_device_train_batch_size x gradient_accumulation_steps x processes groups (the
    last one of an epoch those that are left, or with dataloader_drop_last there is none), however many forward passes
    they take, and in a term's mean each group, or token of a ground truth, weighs the same.

    The model is prepared here: taught to return log-probabilities, without dropout (but for objectives that keep it),
    wrapped for an adapter if asked. `python -m trainer.run` builds its trainer by this class too, and adds resuming,
    metrics.jsonl, curves and warnings about the run.

    Example:
        `ContrastiveTrainer("runs/reference", args, train_dataset=NegativeSet("runs/negatives"), beta=5).train()`

    Args:
        model: the reference, which is trained: a directory or hub id, or a causal language model of transformers, or
            one wrapped by PEFT. One that is named is held to the negative sets by its hashes.
        args: transformers' arguments; a batch counts groups. `remove_unused_columns` is turned off.
        train_dataset: a NegativeSet, of which the train half is taken with all negatives; or
            `trainer.groups.dataset.ContrastiveGroups.of([NegativeSet(...)], "train", "an=4")`, which chooses.
        eval_dataset: likewise; of a NegativeSet the test half.
        processing_class: the tokenizer, saved beside the model; that of a model that is named is found by itself.
        objective: "cpo", "cpo-rank", "nca", "mle", "pss", `package.module:NAME`, or an `Objective`.
        options: an instance of the objective's `Options`, in place of `objective_options`.
        peft_config: PEFT's configuration of an adapter to train.
        row_tokens: token budget of a forward pass; None: 1,024 on a CPU, 8,192 on a GPU.
        skip_below: the weight up to which candidates have no backward pass, see `trainer.skipping`; None: all have.
        callbacks, optimizers: as for transformers' Trainer.
        objective_options: the objective's options by name, such as `beta=5` or `sft_weight=0.1`.

    Raises:
        UserError: an unknown objective or option, arguments that this trainer would ignore, or a negative set of
            another reference or tokenizer.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        objective: str | Objective = DEFAULT,
        options: Any = None,
        peft_config: Any = None,
        row_tokens: int | None = None,
        skip_below: float | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        **objective_options: Any,
    ):
        refuse_unhonoured(args, pairs=False)
        refuse_data_parallel(args)
        refuse_deepspeed(args)
        refuse_unsharded(args)
        args.remove_unused_columns = False  # batches are groups, not columns that match the model's arguments
        objective, options = chosen_objective(objective, options, objective_options)
        train, held_out = (
            as_groups(data, split, objective, args)
            for data, split in ((train_dataset, "train"), (eval_dataset, "test"))
        )
        tokenizer = tokenizer_of(model, processing_class)
        identity = check_sets([train, held_out], model, tokenizer, objective)
        prepared = prepared_policy(loaded_model(model, objective), peft_config)
        compare_with_scorer(getattr(train, "scored", ()), prepared.called, args, prepared.layout)
        names = getattr(train, "strategies", ())
        collator: Any = Collator(
            prepared.layout, row_budget(row_tokens, args.device.type), names, objective.copies(options)
        )
        super().__init__(
            model=prepared.called,
            args=args,
            data_collator=collator,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=[EpochOfSampler(), *(callbacks or ())],
            optimizers=optimizers,
        )
        self.objective = objective
        self.options = options
        self.skip_below = skip_below
        self.facts = ModelFacts.of_objects(
            published_name(args),
            model,
            identity,
            args,
            objective=objective,
            options=options,
            train=train,
            skip_below=skip_below,
            adapter=bool(getattr(self.model, "peft_config", None)),
        )
        self.prepared = dataclasses.replace(prepared, compute_dtype=computed_in(self.args, self.model))
        self._model_flop = ModelFlop.of(self.prepared.model)  # before its weights are sharded
        self._sums: dict[str, torch.Tensor] = {}
        self._stretches = Stretches(self.accelerator)
        # Of this process, in the last micro-batch and since the last log.
        self._last_flop = self._flop = 0
        # Of each term in the loss, once a pass was made.
        self._weights: dict[str, float] = {}
        self._logged_at: float | None = None
        self._checked_start = objective.needs == "truths"
        # Of the current step: its loss so far, ids of its groups, and of those whose loss was not finite.
        self._total: Any = 0.0  # a tensor after the first micro-batch
        self._ids: list[str] = []
        self._unsound: list[str] = []
        LogLines.replace_in(self, ranking=objective.learns_order)
        if skip_below is not None:
            self._refuse_to_skip()
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
        self._last_flop = 0
        make_passes = self._passes if self.skip_below is None else self._passes_of_kept
        total = make_passes(model, inputs, num_items_in_batch)
        self._flop += self._last_flop
        self._stretches.mark(self._sums)
        self._total = self._total + total
        if self.accelerator.sync_gradients:
            self._check_finite(model)
        return total

    def _passes(self, model: nn.Module, inputs: Sequence[PackedGroups], items: torch.Tensor) -> torch.Tensor:
        """Forward and backward passes of a micro-batch; args and return value as of `training_step`."""
        total = torch.zeros((), device=self.args.device)
        policy = self.prepared.of(model)
        passes = list(self._in_step(inputs))
        if self.is_fsdp_enabled:
            synchronise_each_pass(model)
        for index, (packed, counts) in enumerate(passes):
            synchronise = index == len(passes) - 1 or self.is_fsdp_enabled
            with nullcontext() if synchronise else self.accelerator.no_sync(model):
                packed = packed.to(self.args.device)
                with self.compute_loss_context_manager():
                    seed = self.args.seed, self.state.global_step
                    packed = self.objective.mix(policy, packed, self.options, seed)
                    policy_logps = candidate_logps(policy, packed.tokens)
                    terms = self._terms(policy_logps, packed)
                    share = self._share(terms, items) * counts
                # DDP averages over processes; the loss is a sum over all of them.
                self.accelerator.backward(share * self.accelerator.num_processes)
            total += share.detach() * self.accelerator.num_processes
            self._record(policy_logps.detach(), packed, terms, share.detach(), counts)
            self._count_flop(packed.tokens, forward=counts, backward=counts)
        return total

    def _passes_of_kept(self, model: nn.Module, inputs: Sequence[PackedGroups], items: torch.Tensor) -> torch.Tensor:
        """`_passes` for --skip_below: forward passes of everything, backward passes of the candidates that are kept.

        Loss and metrics are those of `_passes`. A pass of which little is left has no backward pass; what is left of
        all these is laid out anew. Of another one nothing is skipped: it goes backward whole. Gradients are
        synchronised after the last pass, which each process therefore makes: where nothing is left one with a gradient
        of 0, so that the optimiser's momentum and weight decay go on; it is not among what is counted.
        """
        assert self.skip_below is not None
        total = torch.zeros((), device=self.args.device)
        policy, processes = self.prepared.of(model), self.accelerator.num_processes
        left: list[Remainder] = []
        all_positions = gone_back = 0
        for packed, counts in self._in_step(inputs):
            packed = packed.to(self.args.device)
            with self.accelerator.no_sync(model), self.compute_loss_context_manager():
                with_graph = candidate_logps(policy, packed.tokens)
                policy_logps = with_graph.detach().requires_grad_()
                terms = self._terms(policy_logps, packed)
                share = self._share(terms, items) * counts
            mask, scale = packed.tokens.mask, self.objective.scale(packed, self.options)
            kept = weighty(terms, policy_logps, mask, scale=scale, below=self.skip_below) & counts
            coefficients = gradient(share, policy_logps)
            parts = remainders(packed, kept, coefficients)
            if whole := goes_back_whole(packed, parts, self.prepared.layout):
                with self.accelerator.no_sync(model):
                    self.accelerator.backward((coefficients * with_graph).sum() * processes)
                gone_back += packed.tokens.input_ids.numel()
                kept = mask
            else:
                left += parts
            del with_graph  # and with it what a backward pass would need
            all_positions += packed.tokens.input_ids.numel() * counts
            self._add_share("skipped/candidates", int((mask & ~kept).sum()) * counts, int(mask.sum()) * counts)
            groups = packed.num_groups * counts
            self._add_share("skipped/groups", groups - int(kept.any(-1).sum()), groups)
            total += share.detach() * processes
            self._record(policy_logps.detach(), packed, terms, share.detach(), counts)
            self._count_flop(packed.tokens, forward=counts, backward=whole)
        nothing_left = not left
        if nothing_left and (processes > 1 or not gone_back):
            left = [nothing(inputs)]
        row_tokens: int = self.data_collator.row_tokens  # type: ignore[attr-defined, union-attr]
        passes = list(lay_out_remainders(left, self.prepared.layout, row_tokens))
        for index, (tokens, coefficients) in enumerate(passes):
            with nullcontext() if index == len(passes) - 1 else self.accelerator.no_sync(model):
                tokens = tokens.to(self.args.device)
                with self.compute_loss_context_manager():
                    policy_logps = candidate_logps(policy, tokens)
                self.accelerator.backward((coefficients.to(self.args.device) * policy_logps).sum() * processes)
            gone_back += 0 if nothing_left else tokens.input_ids.numel()
            self._count_flop(tokens, forward=False, backward=not nothing_left)
        self._add_share("skipped/tokens", all_positions - gone_back, all_positions)
        return total

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics on held-out groups, each group once, as it is laid out without copies; no gradients."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        started = time.perf_counter()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure(dataset).items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, dataset: Any) -> dict[str, float]:
        """What `evaluate` logs of a data set of groups, under its names without a prefix."""
        return self._averages(self._measured(dataset))

    def metric_names(self, dataset: Any) -> list[str]:
        """The names of what `evaluate` can log, also of what these few groups have nothing of."""
        names = {"loss", *self._measured(dataset)}
        return sorted(name for name in names if not (self._is_single_term and name.startswith(TERM)))

    def _measured(self, dataset: Any) -> dict[str, torch.Tensor]:
        """Sum and number of each term and metric over held-out groups, [2], of this process."""
        sums: dict[str, torch.Tensor] = {}
        model: Any = self.model
        model.eval()
        size, processes = self.args.eval_batch_size, self.accelerator.num_processes
        collate: Any = dataclasses.replace(self.data_collator, copies=1)  # type: ignore[type-var]
        with torch.no_grad():
            for start in range(0, len(dataset), size * processes):
                start += size * self.accelerator.process_index
                mine = range(start, min(start + size, len(dataset)))
                groups = [dataset[i] for i in mine] or [dataset[0]]  # all take part, see `_in_step`
                for packed, counts in self._in_step(collate(groups)):
                    packed = packed.to(self.args.device)
                    with self.compute_loss_context_manager():
                        policy_logps = candidate_logps(self.prepared.of(model), packed.tokens)
                    terms = self._terms(policy_logps, packed)
                    _add(sums, self._metrics(policy_logps, packed, terms, counts and len(mine) > 0))
        return sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log: metrics, tokens per second, padding fraction."""
        if self._sums and "loss" in logs:
            now = time.perf_counter()
            assert self._logged_at is not None
            elapsed, self._logged_at = now - self._logged_at, now
            mine = torch.cat([self._sums["padding_fraction"], self._sums["padding_fraction"].new_tensor([self._flop])])
            everywhere = self.accelerator.reduce(mine, "sum")  # type: ignore[arg-type]
            padding, number, flop = everywhere.tolist()  # type: ignore[union-attr]
            averages = self._averages(self._sums)
            averages.pop("loss")  # transformers' own is the same number
            averages |= self._stretches.highest()
            shown = getattr(self.train_dataset, "shown_per_epoch", None)
            if shown is not None:
                averages["contrast/repeats"] = round((self.state.epoch or 0.0) * shown, 4)
            logs = {**logs, **averages, "tokens_per_second": round((number - padding) / elapsed, 1)}
            peak = peak_flops(self.args.device, self.prepared.compute_dtype)
            if peak is not None:
                logs["mfu"] = round(flop / (elapsed * peak * self.accelerator.num_processes), 4)
            self._sums, self._flop = {}, 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """FLOP of the micro-batch trained on last, of this process, see `trainer.monitor.utilisation`."""
        return self._last_flop

    def _count_flop(self, tokens: TokenBatch, *, forward: bool, backward: bool) -> None:
        size = tokens.input_ids.numel() - tokens.padding, len(tokens.target_ids)
        self._last_flop += forward * self._model_flop.forward(*size) + backward * self._model_flop.backward(*size)

    def _add_share(self, name: str, part: int, whole: int) -> None:
        device = self.args.device
        _add(self._sums, {name: torch.tensor([part, whole], dtype=torch.float64, device=device)})

    def _refuse_to_skip(self) -> None:
        if self.is_fsdp_enabled:
            raise UserError(
                "--skip_below does not go with FSDP, whose processes need equally many passes. Use DDP, or leave it "
                "out."
            )
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.prepared.called.modules()):
            raise UserError(
                "--skip_below does not go with dropout: what is left of a group would be computed under another mask. "
                "Set --lora_dropout 0."
            )

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count the tokens of a micro-batch for --include_num_input_tokens_seen, over all processes."""
        if self.args.include_num_input_tokens_seen == "no":
            return
        passes = [packed.tokens for packed in inputs if packed.counts]
        padding = self.args.include_num_input_tokens_seen == "non_padding"
        seen = sum(tokens.input_ids.numel() - (tokens.padding if padding else 0) for tokens in passes)
        everywhere: Any = self.accelerator.reduce(torch.tensor(seen, device=self.args.device), "sum")
        self.state.num_input_tokens_seen += int(everywhere)

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        return StepSampler.of(dataset, self.args, self.accelerator.num_processes)

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

    def _terms(self, policy_logps: torch.Tensor, packed: PackedGroups) -> Mapping[str, Term]:
        terms = self.objective.terms(policy_logps, packed, self.options)
        self._weights = {name: term.weight for name, term in terms.items()}
        return terms

    def _share(self, terms: Mapping[str, Term], items: torch.Tensor) -> torch.Tensor:
        """What a pass adds to the loss of its step: of each term its share of the mean over the whole step."""
        groups, tokens = items
        number = {"groups": groups, "truth tokens": tokens}
        shares = [term.weight * (term.total / number[term.mean_over]) for term in terms.values()]
        return torch.stack(shares).sum()

    def _record(
        self,
        policy_logps: torch.Tensor,
        packed: PackedGroups,
        terms: Mapping[str, Term],
        share: torch.Tensor,
        counts: bool,
    ) -> None:
        if counts:
            self._ids += packed.ids
            self._unsound += [] if torch.isfinite(share) else packed.ids
        metrics = self._metrics(policy_logps, packed, terms, counts)
        positions = packed.tokens.input_ids.numel() * counts
        padding = packed.tokens.padding * counts
        metrics["padding_fraction"] = torch.tensor(
            [padding, positions], dtype=torch.float64, device=policy_logps.device
        )
        _add(self._sums, metrics)

    def _metrics(
        self, policy_logps: torch.Tensor, packed: PackedGroups, terms: Mapping[str, Term], counts: bool
    ) -> dict[str, torch.Tensor]:
        """Sum and number of each term and metric, [2]; zeros if the pass does not count.

        Every process has the same names.
        """
        number = {"groups": packed.num_groups, "truth tokens": packed.num_truth_tokens}
        found: dict[str, tuple[Any, float]] = {
            f"{TERM}{name}": (term.total.detach(), number[term.mean_over]) for name, term in terms.items()
        }
        values = self.objective.metrics(policy_logps, packed, self.options)
        found |= {name: (value.sum(), len(value)) for name, value in values.items()}
        return {
            name: torch.stack([torch.as_tensor(x, dtype=torch.float64, device=policy_logps.device) for x in pair])
            if counts
            else torch.zeros(2, dtype=torch.float64, device=policy_logps.device)
            for name, pair in found.items()
        }

    def _averages(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Over all processes: metrics, the loss, and its terms, but for a single one that is the loss."""
        names = sorted(sums)
        totals = self.accelerator.reduce(torch.stack([sums[name].to(self.args.device) for name in names]), "sum")
        pairs = totals.tolist()  # type: ignore[union-attr]
        found = {name: total / number for name, (total, number) in zip(names, pairs, strict=True) if number}
        terms = {name: found[f"{TERM}{name}"] for name in self._weights if f"{TERM}{name}" in found}
        if terms:
            found["loss"] = sum(self._weights[name] * value for name, value in terms.items())
        if self._is_single_term:
            found = {name: value for name, value in found.items() if not name.startswith(TERM)}
        return found

    @property
    def _is_single_term(self) -> bool:
        """Whether the loss is its only term, which then has no name of its own in logs."""
        return list(self._weights.values()) == [1]

    def _check_finite(self, model: nn.Module) -> None:
        total, ids, unsound = self._total, self._ids, self._unsound
        self._total, self._ids, self._unsound = 0.0, [], []
        check_finite(self.accelerator, model, total, self.state.global_step + 1, ids, unsound)

    @torch.no_grad()
    def _check_start(self, passes: Sequence[PackedGroups]) -> None:
        """Warn if the policy is not the reference before the first step: then every h is near 0."""
        model: Any = self.model
        model.eval()
        scored = self._scored(model, passes)
        report_groups(scored, self.objective, self.options, model, self.args, layout=self.prepared.layout)

    def _scored(self, model: Any, passes: Sequence[PackedGroups]) -> Iterator[tuple[torch.Tensor, PackedGroups]]:
        """Log-probabilities, [G, K], of the passes that count, beside these."""
        for packed, counts in self._in_step(passes):
            packed = packed.to(self.args.device)
            with self.compute_loss_context_manager():
                policy_logps = candidate_logps(self.prepared.of(model), packed.tokens)
            if counts:
                yield policy_logps, packed


def _add(sums: dict[str, torch.Tensor], metrics: dict[str, torch.Tensor]) -> None:
    for name, pair in metrics.items():
        sums[name] = sums[name] + pair.to(sums[name].device) if name in sums else pair
