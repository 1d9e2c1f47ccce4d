"""The peak memory of a run on one device, by kind, predicted from the shapes of its real passes."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from transformers import Trainer, TrainingArguments

from data.command.errors import UserError, first_line
from trainer.groups.dataset import PackedGroups
from trainer.monitor.utilisation import ModelFlop
from trainer.objectives.base import Objective
from trainer.scoring.head import CHUNK_ELEMENTS
from trainer.scoring.prepared_model import candidate_logps
from trainer.sizing.devices import Device
from trainer.sizing.stand_in import RealResults, StandIn, stand_in
from trainer.sizing.storages import ACTIVATIONS, CAST, GRADIENTS, HEAD, OPTIMISER, WEIGHTS, Storages

if TYPE_CHECKING:
    from trainer.policy import Policy

BUCKETS, GATHERED = "DDP's buckets", "FSDP's whole layers"
KINDS = (WEIGHTS, GRADIENTS, OPTIMISER, BUCKETS, GATHERED, CAST, ACTIVATIONS, HEAD)
MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """What decides a run's memory, beside its passes.

    Attributes:
        policy: the model, its dtype, its adapter.
        training: mixed precision, gradient checkpointing, optimiser.
        objective, options: what is trained towards.
        device: what it runs on.
        world: number of devices.
        sharded: whether FSDP shards over them.
    """

    policy: "Policy"
    training: TrainingArguments
    objective: Objective
    options: Any
    device: Device
    world: int = 1
    sharded: bool = False

    @property
    def mixed(self) -> torch.dtype | None:
        """What mixed precision computes in; None without."""
        return MIXED.get(self.training.mixed_precision)


@dataclass(frozen=True)
class Prediction:
    """A predicted peak of memory, and what else the passes told.

    Attributes:
        kinds: bytes of one device by kind at the peak, of `KINDS`.
        flop: what passes cost.
        parameters: of the model, adapter included.
        computed_in: type of the matrix products.
        forwards: forward passes without a backward one, before each pass (of scheduled sampling).
        flex: whether attention was taken for FlexAttention's.
    """

    kinds: dict[str, int]
    flop: ModelFlop
    parameters: int
    computed_in: torch.dtype
    forwards: int
    flex: bool

    @property
    def peak(self) -> int:
        """The bytes of all kinds."""
        return sum(self.kinds.values())


def predict(case: Case, layout: str, largest: PackedGroups, *, accumulates: bool) -> Prediction:
    """The peak memory of training steps: the real forward and backward pass, of fake tensors.

    Args:
        layout: "packed" or "padded", that of the pass (`trainer.sizing.stand_in.layout_of`).
        largest: the largest pass, laid out by `trainer.groups.dataset.Collator`.
        accumulates: whether a device makes several passes per step, so that the largest meets gradients.

    Raises:
        UserError: the optimiser's memory cannot be told.
    """
    gathered = case.mixed if case.sharded else None
    prepared = stand_in(case.policy, layout, on_gpu=case.device.is_gpu, gathered=gathered)
    model: Any = prepared.called
    model.train()
    if case.training.gradient_checkpointing:
        _checkpoint(model, case.training)
    trained = [p for p in model.parameters() if p.requires_grad]
    embedding = prepared.model.get_input_embeddings().weight
    # Of a sharded model these are shards, which come below.
    constant = (WEIGHTS, GRADIENTS, OPTIMISER) if case.sharded else ()
    with Storages(len(embedding), constant) as storages:
        storages.name((*model.parameters(), *model.buffers()), WEIGHTS)
        state = _optimiser_state(case.training, model, trained)
        storages.name(state, OPTIMISER)
        storages.gradients_of(trained)
        if accumulates:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            storages.name([p.grad for p in trained if p.grad is not None], GRADIENTS)
        storages.begin()
        calls = _pass(case, prepared, largest)
    kinds = dict(storages.peak)
    if case.sharded:
        kinds |= _shards(case, prepared, sum(map(_size, state)))
    elif case.world > 1:
        kinds[BUCKETS] = sum(map(_size, trained))
    computed_in = case.mixed or next(prepared.model.parameters()).dtype
    return Prediction(
        {kind: kinds[kind] for kind in KINDS if kinds.get(kind)},
        ModelFlop.of(prepared.model),
        sum(p.numel() for p in model.parameters()),
        computed_in,
        calls - 1,
        prepared.block_masks,
    )


def _pass(case: Case, prepared: StandIn, packed: PackedGroups) -> int:
    """A forward and a backward pass as `trainer.trainer` makes them; the loss, of [G, K], is computed for real.

    Returns:
        How often the model was called.
    """
    mixed = None if case.sharded else case.mixed  # FSDP gathers weights in that type
    context = torch.autocast("cpu", dtype=mixed) if mixed else nullcontext()
    results = RealResults(prepared.called)
    policy = prepared.of(results)
    with patch.dict(CHUNK_ELEMENTS, {"cpu": CHUNK_ELEMENTS[case.device.kind]}):  # of the head's logits
        with context:
            packed = case.objective.mix(policy, packed, case.options, (0, 0))
            policy_logps = candidate_logps(policy, packed.tokens)
        terms = case.objective.terms(policy_logps, packed, case.options)
        torch.stack([term.weight * term.total for term in terms.values()]).sum().backward()
    return results.calls


def _checkpoint(model: Any, training: TrainingArguments) -> None:
    """Let a model keep its layers' inputs alone, as transformers' Trainer does."""
    given: Any = training.gradient_checkpointing_kwargs
    options = dict(given or {})
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs=options or None, every_n_layers=every, offload=offload
    )


def _optimiser_state(training: TrainingArguments, model: Any, trained: list[Any]) -> list[torch.Tensor]:
    """What the optimiser keeps, found out by a step of it; of one with fused kernels, by a step without them."""
    kind_of_optimiser = getattr(training.optim, "value", training.optim)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
        optimizer = kind(trained, **{**options, **({"fused": False} if options.get("fused") else {})})
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    except Exception as error:  # of whatever package it is from
        raise UserError(
            f"--dry_run cannot tell the memory of --optim {kind_of_optimiser} ({first_line(error)}). Try "
            "adamw_torch_fused."
        ) from error
    model.zero_grad()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _shards(case: Case, prepared: StandIn, state: int) -> dict[str, int]:
    """A device's bytes under FSDP2, by formula: shards, and what is whole for a time.

    With mixed precision accelerate keeps what is trained in float32; what is frozen, and all without, keeps its type.
    Whole are the weights outside of layers and two layers', the next one being fetched while one computes; of the
    gradients likewise, and what those of a layer, or of all that is outside, are summed in over devices: float32 with
    mixed precision (`trainer.sharding`).
    """
    model = prepared.model
    layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    within = {id(p) for layer in layers for p in layer.parameters()}

    def of_group(only_trained: bool) -> tuple[int, int]:
        def size(parameters: Any) -> int:
            return sum(_size(p) for p in parameters if p.requires_grad or not only_trained)

        outside = size(p for p in model.parameters() if id(p) not in within)
        return outside, max((size(layer.parameters()) for layer in layers), default=0)

    def kept(name: str, parameter: Any) -> int:
        wide = case.mixed and parameter.requires_grad
        return parameter.numel() * (torch.float32 if wide else prepared.kept_in[name]).itemsize

    named = list(model.named_parameters())
    trained = sum(kept(name, p) for name, p in named if p.requires_grad)
    widened = trained / sum(_size(p) for _, p in named if p.requires_grad)
    parts = {WEIGHTS: sum(kept(name, p) for name, p in named), GRADIENTS: trained, OPTIMISER: widened * state}
    shards = {kind: round(size / case.world) for kind, size in parts.items()}
    gathered = sum(outside + 2 * layer for outside, layer in (of_group(False), of_group(True)))
    summed = round(widened * max(of_group(True))) if case.world > 1 else 0
    return {**shards, GATHERED: gathered + summed}


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
