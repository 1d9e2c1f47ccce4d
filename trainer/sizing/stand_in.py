"""A policy without its weights: fake tensors in the shapes of its config, for its real forward and backward passes.

They are torch's FakeTensors on the CPU, of its subclass and outside of its mode: operations on real tensors only, such
as indices and masks, are computed, so that code that looks at their values works. On fake CUDA tensors a backward pass
aborts in torch's CPU build.
"""

import copy
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from trainer.policy import prepared_policy
from trainer.scoring.attention import NAME as PACKED_ROWS
from trainer.scoring.flex import autocast_dtype
from trainer.scoring.packing import TokenBatch
from trainer.scoring.prepared_model import PreparedModel
from trainer.scoring.support import attention_implementation, chosen_layout, model_inputs, set_attention

if TYPE_CHECKING:
    from trainer.policy import Policy

FLEX = "kept_by_flex"  # transformers asks of a model whether it takes what has "flex_attention" in its name
# Of the small model that is tried: neither attention nor positions depend on them.
SMALL = {"num_hidden_layers": 1, "vocab_size": 256, "intermediate_size": 256}
NO_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StandIn(PreparedModel):
    """A prepared model of fake tensors.

    Attributes:
        on_gpu: whether it takes masks as it would on a GPU.
        kept_in: types of the model's parameters by name, before they are gathered in another.
    """

    on_gpu: bool = False
    kept_in: dict[str, torch.dtype] = dataclasses.field(default_factory=dict)

    def inputs(self, batch: TokenBatch) -> dict[str, Any]:
        if self.block_masks and batch.group_ids is not None:
            length = batch.input_ids.shape[1]
            unread = torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(1, 1, length, length)
            inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": unread}
        else:  # segment by segment is how CPUs do it
            inputs = model_inputs(self.model, dataclasses.replace(batch, pieces=None) if self.on_gpu else batch)
        return {**inputs, "target_index": batch.target_index, "layout": self.layout}


def layout_of(policy: "Policy") -> str:
    """The layout that a policy takes, "packed" or "padded", found out on a model of one small layer of its kind."""
    config: Any = copy.deepcopy(AutoConfig.from_pretrained(policy.directory))
    of_text = config.get_text_config()
    known = of_text.to_dict().keys() | getattr(of_text, "attribute_map", {}).keys()
    for name, size in SMALL.items():
        if name in known and isinstance(getattr(of_text, name), int):
            setattr(of_text, name, min(size, getattr(of_text, name)))
    if getattr(of_text, "layer_types", None):
        of_text.layer_types = of_text.layer_types[:1]
    for name in NO_TOKENS:  # an id beyond the small vocabulary is none
        setattr(of_text, name, None)
    chosen = policy.config.attn_implementation
    options = {"attn_implementation": chosen} if chosen else {}
    with torch.random.fork_rng(devices=[]):
        small = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    set_attention(small)
    return chosen_layout(small)


def stand_in(policy: "Policy", layout: str, *, on_gpu: bool, gathered: torch.dtype | None = None) -> StandIn:
    """The policy with its adapter, ready for passes in a layout, without reading or holding its weights.

    Args:
        on_gpu: attend as on a GPU: with FlexAttention where the layout is packed and the model takes our attention.
        gathered: the type that FSDP gathers parameters in; None: their own.
    """
    with torch.device("meta"):
        prepared = prepared_policy(dataclasses.replace(policy, from_scratch=True).load(), policy.adapter, layout)
    kept_in = {name: parameter.dtype for name, parameter in prepared.model.named_parameters()}
    if gathered is not None:
        for parameter in prepared.model.parameters():
            parameter.data = parameter.data.to(gathered)
    _make_fake(prepared.called)
    flex = on_gpu and layout == "packed" and attention_implementation(prepared.model) == PACKED_ROWS
    if flex:
        prepared.model.set_attn_implementation(FLEX)
    return StandIn(prepared.model, prepared.called, layout, block_masks=flex, on_gpu=on_gpu, kept_in=kept_in)


def _make_fake(model: torch.nn.Module) -> None:
    """Put fake tensors on the CPU in the place of a model's on "meta"; what was shared stays so."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)  # type: ignore[assignment]  # a parameter for a parameter


class RealResults:
    """Calls a model of fake tensors; returns real zeros with a gradient, so that what uses them may look at values.

    Args:
        called: the model, or what wraps it.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self, called: Any):
        self._called = called
        self.calls = 0

    def __call__(self, **inputs: Any) -> torch.Tensor:
        self.calls += 1
        made = self._called(**inputs)
        if not made.is_floating_point():
            return torch.zeros(made.shape, dtype=made.dtype)
        return _Real.apply(made)  # type: ignore[return-value]  # apply is untyped


class _Real(torch.autograd.Function):
    """Zeros in the shape of a tensor, fake or not; the gradient goes back to it."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class _KeptByFlex(torch.autograd.Function):
    """What FlexAttention's kernels keep for the backward pass and return: no scores, no mask of T x T."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        normalisers = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, normalisers)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, normalisers = ctx.saved_tensors
        delta = torch.empty_like(normalisers)
        gradients = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        del delta
        return gradients


def what_flex_keeps(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface, in shapes only: [B, heads, T, D] in, [B, T, heads, D] out."""
    query, key, value = (tensor.to(autocast_dtype(query)) for tensor in (query, key, value))
    return _KeptByFlex.apply(query, key, value).transpose(1, 2).contiguous(), None  # type: ignore[attr-defined]  # untyped


AttentionInterface.register(FLEX, what_flex_keeps)
AttentionMaskInterface.register(FLEX, sdpa_mask)
