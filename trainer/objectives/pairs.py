"""The paper's DPO baseline: TRL's own DPOTrainer on pairs (ground truth, negative) of a negative set.

TRL is fed the ids and the reference log-probabilities of the set: it tokenises nothing, truncates nothing, loads no
reference model and runs none.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Subset
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from data.command.errors import UserError
from data.counts import format_counts
from trainer.groups.dataset import ContrastiveGroups, TrainingGroup
from trainer.monitor.resumption import SoundResumption
from trainer.monitor.safety import SoundSaves, check_finite
from trainer.monitor.start import report_start
from trainer.monitor.stretches import Highest
from trainer.objectives.base import START
from trainer.objectives.rewards import (
    contrast_metrics,
    h_per_token,
    implicit_rewards,
    kl_bound,
    log_shares,
    preference_metrics,
)
from trainer.publishing import OwnCard
from trainer.sharding import SoundSharding

# The group's id, the columns of TRL's DataCollatorForPreference, and the tokens of the longer sequence, by which
# transformers sorts for --train_sampling_strategy group_by_length.
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        *((name, pa.list_(pa.int32())) for name in ("prompt_ids", "chosen_ids", "rejected_ids")),
        *((name, pa.float32()) for name in ("ref_chosen_logps", "ref_rejected_logps")),
        ("length", pa.int32()),
    ]
)
GROUPS_AT_A_TIME = 1000


def preference_pairs(groups: ContrastiveGroups | Subset[TrainingGroup], objective: str) -> Dataset:
    """Each group's ground truth against each of its negatives, in the groups' order: the columns of `PAIRS`.

    Args:
        objective: its name, for the message.

    Raises:
        UserError: the groups hold negatives of several strategies.
    """
    whole: Any = groups.dataset if isinstance(groups, Subset) else groups
    use = whole.choice.counts
    if len(use) > 1:
        raise UserError(
            f"objective '{objective}' takes the negatives of one strategy, not of {format_counts(use)}. Choose one: "
            f"{' or '.join(f'--use {format_counts({name: count})}' for name, count in use.items())}."
        )
    tables = []
    for start in range(0, len(groups), GROUPS_AT_A_TIME):
        part = range(start, min(start + GROUPS_AT_A_TIME, len(groups)))
        tables.append(pa.Table.from_pylist([pair for i in part for pair in _pairs_of(groups[i])], schema=PAIRS))
    return Dataset(pa.concat_tables(tables))  # type: ignore[arg-type]  # it takes pyarrow's tables too


def dpo_config(training: TrainingArguments, beta: float) -> DPOConfig:
    """The user's training arguments as TRL's, field by field; `per_device_train_batch_size` counts pairs."""
    given = {f.name: getattr(training, f.name) for f in dataclasses.fields(TrainingArguments) if f.init}
    return DPOConfig(**given, beta=beta, max_length=None, precompute_ref_log_probs=True)


def make_dpo_trainer(
    pairs: Dataset,
    model: Any,
    peft_config: Any,
    tokenizer: Any,
    training: TrainingArguments,
    beta: float,
    held_out: Dataset | None = None,
) -> "PairTrainer":
    """TRL's trainer on `preference_pairs`.

    Args:
        model: the policy as loaded, neither patched nor wrapped; TRL does both.
        peft_config: peft's configuration of an adapter, or None.
        held_out: pairs to watch.
    """
    return PairTrainer(
        model=model,
        args=dpo_config(training, beta),
        train_dataset=pairs,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def pair_metrics(
    policy_logps: torch.Tensor, reference_logps: torch.Tensor, lengths: torch.Tensor, *, beta: float
) -> dict[str, torch.Tensor]:
    """What cpo logs of its groups, of pairs: groups of K = 2, [pairs] per metric.

    Left out is Kendall's tau, of which a pair has none beside top-1.

    Args:
        policy_logps, reference_logps: [pairs, 2] in nats, chosen and rejected.
        lengths: [pairs, 2], tokens.
    """
    logps = policy_logps, reference_logps
    ranks = torch.arange(2, device=policy_logps.device).expand_as(policy_logps)
    metrics = preference_metrics(*logps, ranks, beta=beta)
    del metrics["rewards/kendall_tau"]
    metrics |= contrast_metrics(*logps, beta=beta)
    metrics["contrast/kl_bound"] = kl_bound(*logps, beta=beta)
    metrics["contrast/h_per_token"] = h_per_token(*logps, lengths, beta=beta)
    metrics[f"{START}contrast"] = torch.full_like(metrics["contrast/spread"], math.log(2))
    return metrics


@dataclasses.dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batch, and the id of each pair's group."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super().torch_call(examples), "id": [example["id"] for example in examples]}


class PairTrainer(SoundResumption, SoundSaves, OwnCard, SoundSharding, DPOTrainer):
    """DPOTrainer whose data set is prepared already and holds the reference log-probabilities.

    It stops before an optimiser step whose loss or gradient is not finite: TRL would go on, and transformers would
    leave the value out of the log.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # TRL has chosen the padding token by now.
        self.data_collator = PairCollator(**vars(self.data_collator))
        # Of the current step: ids of its groups, of those whose micro-batch had a loss that was not finite, the loss.
        self._ids: list[str] = []
        self._unsound: list[str] = []
        self._loss: Any = 0.0
        self._highest = Highest()  # since the last log
        self._checked_start = False

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's forward and backward of one micro-batch; before the first step the policy is compared with the set.

        Returns:
            This process's share of the step's loss, detached.

        Raises:
            UserError: the loss or a gradient of the step is not finite; nothing was updated.
        """
        if not self._checked_start:
            self._checked_start = True
            if self.state.global_step == 0:
                self._check_start(self._prepare_inputs(inputs))
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._ids += inputs["id"]
        self._unsound += [] if torch.isfinite(loss) else inputs["id"]
        self._loss = self._loss + loss
        if self.accelerator.sync_gradients:
            self._check_finite(model)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics and ours, averages over pairs; the pairs of every epoch are the same ones."""
        if "loss" in logs:
            logs = {**logs, **self._highest.logged(), "contrast/repeats": round(self.state.epoch or 0.0, 4)}
            self._highest = Highest()
        super().log(logs, start_time)

    @torch.no_grad()
    def metric_names(self, dataset: Any) -> list[str]:
        """The names of what `evaluate` logs; the data set, of a few pairs, goes through the model as one batch."""
        model: Any = self.model
        model.eval()
        with self.compute_loss_context_manager():
            pairs = [dataset[i] for i in range(len(dataset))]
            self.compute_loss(model, self._prepare_inputs(self.data_collator(pairs)))
        found = self._metrics["eval"]
        names = sorted({"loss", *found})
        found.clear()
        return names

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss of a batch; what its forward pass returns is measured our way too."""

        def measured(**given: Any) -> Any:
            outputs = model(**given)
            self._measure(outputs, inputs)
            return outputs

        stand_in: Any = measured  # TRL calls it, and nothing else
        without_ids = {k: v for k, v in inputs.items() if k != "id"}
        return super().compute_loss(stand_in, without_ids, *args, **kwargs)

    @torch.no_grad()
    def _measure(self, outputs: Any, inputs: dict[str, Any]) -> None:
        """Add the metrics of `pair_metrics` to TRL's, as it does: of all processes, a mean per batch."""
        metrics = pair_metrics(*_logps_and_lengths(outputs, inputs), beta=self.beta)
        gathered: Any = self.accelerator.gather(torch.stack([*metrics.values()], dim=-1))
        values = dict(zip(metrics, gathered.mean(0).tolist(), strict=True))
        if self.model.training:  # type: ignore[union-attr]
            start, pairs = values[f"{START}contrast"], len(gathered)
            self._highest.add((start - values["contrast/kl_bound"]) * pairs, start * pairs, pairs)
        found = self._metrics["train" if self.model.training else "eval"]  # type: ignore[union-attr]
        for name, value in values.items():
            found[name].append(value)

    def _check_finite(self, model: nn.Module) -> None:
        # The pairs of a group share an id.
        ids, unsound, loss = list(dict.fromkeys(self._ids)), list(dict.fromkeys(self._unsound)), self._loss
        self._ids, self._unsound, self._loss = [], [], 0.0
        if len(unsound) == len(ids):
            unsound = []  # they are named anyway
        check_finite(self.accelerator, model, loss, self.state.global_step + 1, ids, unsound)

    @torch.no_grad()
    def _check_start(self, inputs: dict[str, Any]) -> None:
        """Warn if the policy is not the reference before the first step, on the first micro-batch."""
        model = self.model
        assert model is not None
        model.eval()
        with self.compute_loss_context_manager():
            # As TRL calls it for its loss.
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100),
                use_cache=False,
                fused_lm_head=True,
            )
        policy, reference, lengths = _logps_and_lengths(outputs, inputs)
        rewards = implicit_rewards(policy, reference, beta=self.beta)
        loss = -log_shares(rewards)[:, 0].mean().item()
        report_start(
            model,
            self.args,
            rewards,
            beta=self.beta,
            longest=int(lengths.max()),
            what=f"{len(rewards)} pairs",
            loss=f"{loss:.4f} (log 2 is {math.log(2):.4f})",
            layout="padded",
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "id" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "id"]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset


def _pairs_of(group: TrainingGroup) -> Iterator[dict[str, Any]]:
    chosen, *negatives = group.tokens.continuations
    chosen_logp, *negative_logps = group.reference_logps
    for rejected, rejected_logp in zip(negatives, negative_logps, strict=True):
        yield {
            "id": group.id,
            "prompt_ids": group.tokens.prefix,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "ref_chosen_logps": chosen_logp,
            "ref_rejected_logps": rejected_logp,
            "length": len(group.tokens.prefix) + max(len(chosen), len(rejected)),
        }


def _logps_and_lengths(outputs: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities under policy and reference, and numbers of tokens, each [pairs, 2], of a forward pass of TRL's.

    A batch is all chosen, then all rejected.
    """
    mask = inputs["completion_mask"]
    policy = outputs.log_probs[:, -(mask.shape[1] - 1) :].sum(1)  # prompt tuning puts tokens of its own in front
    by_pair = [torch.stack(rows.chunk(2), dim=-1) for rows in (policy, mask.sum(1))]
    reference = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], dim=-1)
    return by_pair[0], reference, by_pair[1]
