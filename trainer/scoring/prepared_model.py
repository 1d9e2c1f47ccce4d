"""The one place where token sequences become log-probabilities: for the scorer, the trainer and the evaluation.

The packed layout of `trainer.scoring.packing` goes through the model's backbone with a 4-D attention mask (dense, or
on a GPU FlexAttention's blocks); the head is applied only where there is a target, in chunks. Whether a model takes
this is found out by trying (`trainer.scoring.support`); one that does not gets the padded layout and its own forward.
"""

import dataclasses
import inspect
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data.architectures import attention_heads
from trainer.scoring.flex import autocast_dtype, works_on
from trainer.scoring.head import chunks, drawn, reduction_dtype, target_ranks, token_logps, token_logps_and_ranks
from trainer.scoring.packing import TokenBatch
from trainer.scoring.support import chosen_layout, model_inputs, set_attention, takes_block_masks

# On the forward that `prepare_model` puts in place: what is known of the model, so that it is found out once.
KNOWN = "known_of_model"


@dataclass(frozen=True)
class PreparedModel:
    """A causal language model that returns log-probabilities, and what is known of it.

    Attributes:
        model: as transformers made it; its forward is `prepare_model`'s.
        called: what is called: the model, or what wraps it (PEFT, DDP, accelerate).
        layout: "packed" or "padded", how it takes groups.
        block_masks: whether it takes FlexAttention's block masks.
        compute_dtype: what matrix products are computed in; None: its weights' type.
    """

    model: Any
    called: Any
    layout: str
    block_masks: bool
    compute_dtype: torch.dtype | None = None

    def of(self, wrapped: Any) -> "PreparedModel":
        """This model, called through what wraps it."""
        return dataclasses.replace(self, called=wrapped)

    def inputs(self, batch: TokenBatch) -> dict[str, Any]:
        """A batch on the model's device as arguments of `called`."""
        blocks = self.block_masks and batch.group_ids is not None and batch.input_ids.is_cuda
        if blocks:
            # FlexAttention is tried before the first forward, outside of its mixed precision.
            dtype = self.compute_dtype or self.model.dtype
            blocks = works_on(self.model.device, dtype, *attention_heads(self.model.config.get_text_config()))
        inputs = model_inputs(self.model, batch, blocks=blocks)
        return {**inputs, "target_index": batch.target_index, "layout": self.layout}


def prepare_model(model: Any, layout: str | None = None) -> PreparedModel:
    """Teach a causal language model to return log-probabilities, and find out in which layout.

    Patches `model.forward` so that a call with `target_ids` returns log-probabilities, with `ranked` too also the ranks
    of those targets, and one with `uniforms` tokens drawn at the same positions; every other call, and so `generate`
    and wrappers such as PEFT and DDP, works as before. Call it before wrapping the model. Where the patch is in place
    it does nothing; where something took it off, it patches again.

    Args:
        layout: what the model is known to take, so that nothing is tried: one without values cannot be.
    """
    patched = inspect.unwrap(model.forward, stop=lambda f: hasattr(f, KNOWN))  # within accelerate's autocast, perhaps
    if hasattr(patched, KNOWN):
        return PreparedModel(model, model, **getattr(patched, KNOWN))
    # Filled below. It holds no model: a deep copy of the model shares the function.
    known: dict[str, Any] = {}
    bound = model.forward
    original = bound.__func__ if inspect.ismethod(bound) else lambda _, *args, **kwargs: bound(*args, **kwargs)

    def forward(
        self: Any,
        *args: Any,
        target_ids: Any = None,
        target_index: Any = None,
        ranked: Any = None,
        uniforms: Any = None,
        never: Sequence[int] = (),
        layout: str = "",
        **kwargs: Any,
    ) -> Any:
        if target_index is None:
            return original(self, *args, **kwargs)
        if layout == "packed":
            hidden = self.base_model(*args, use_cache=False, **kwargs)[0].flatten(0, 1)[target_index]
            head = self.get_output_embeddings()
            if uniforms is not None:
                parts = [drawn(head(hidden[rows]), uniforms[rows], never) for rows in chunks(hidden, head.weight)]
                return torch.cat(parts)
            if type(head) is nn.Linear:
                hidden = hidden.to(autocast_dtype(hidden))  # as the head itself would be
                if ranked is not None:
                    return token_logps_and_ranks(hidden, head.weight, target_ids, ranked)
                return token_logps(hidden, head.weight, target_ids)
            logits = head(hidden)  # wrapped since: its weight alone would leave out an adapter
        else:
            logits = original(self, *args, use_cache=False, **kwargs).logits.flatten(0, 1)[target_index]
        if uniforms is not None:
            return drawn(logits, uniforms, never)
        logits = logits.to(reduction_dtype(logits.dtype))
        logps = logits.log_softmax(-1).gather(-1, target_ids[:, None])[:, 0]
        return logps if ranked is None else (logps, target_ranks(logits, target_ids, ranked))

    # The signature alone, not functools.wraps: accelerate's unwrap_model follows __wrapped__, past this function.
    vars(forward).update({"__signature__": inspect.signature(type(model).forward), KNOWN: known})
    model.forward = types.MethodType(forward, model)  # a method, so that a deep copy calls its own weights
    set_attention(model)
    found = layout or chosen_layout(model)
    known |= {"layout": found, "block_masks": layout is None and found == "packed" and takes_block_masks(model)}
    return PreparedModel(model, model, **known)


def candidate_logps(prepared: PreparedModel, batch: TokenBatch) -> torch.Tensor:
    """Log-probability of each continuation given its prefix, summed over its tokens.

    Args:
        batch: in the model's layout, on its device.

    Returns:
        [G, K] in nats, float32 or wider; 0 where `batch.mask` is False.
    """
    logps = prepared.called(**prepared.inputs(batch), target_ids=batch.target_ids)
    sums = torch.zeros(batch.mask.numel(), dtype=logps.dtype, device=logps.device)
    return sums.index_add(0, batch.slot, logps).view(batch.mask.shape)


@torch.no_grad()
def candidate_logps_and_ranks(
    prepared: PreparedModel, batch: TokenBatch, ranked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`candidate_logps`, and of some continuations the rank of their least likely token, in the same pass.

    Args:
        batch: in the model's layout, on the CPU.
        ranked: [G, K], True for those continuations.

    Returns:
        [G, K] in nats, and [G, K], int64: the largest number of tokens that have a larger logit than one of the
        continuation's; -1 where none was asked for.
    """
    positions = ranked.flatten()[batch.slot].nonzero()[:, 0]
    on_device = batch.to(prepared.model.device)
    logps, ranks = prepared.called(**prepared.inputs(on_device), target_ids=on_device.target_ids, ranked=positions)
    worst = torch.full((batch.mask.numel(),), -1, dtype=ranks.dtype, device=ranks.device)
    worst.scatter_reduce_(0, on_device.slot[positions.to(ranks.device)], ranks, "amax")
    sums = torch.zeros(batch.mask.numel(), dtype=logps.dtype, device=logps.device)
    return sums.index_add(0, on_device.slot, logps).view(batch.mask.shape), worst.view(batch.mask.shape)


@torch.no_grad()
def draw_tokens(
    prepared: PreparedModel, batch: TokenBatch, uniforms: torch.Tensor, *, never: Sequence[int] = ()
) -> torch.Tensor:
    """Tokens drawn at every predicted position, each given what really stands before it: one pass.

    Args:
        batch: in the model's layout, on its device.
        uniforms: [N, draws] in [0, 1); where in the distribution's cumulative sum a draw falls.
        never: token ids that are not drawn.

    Returns:
        [N, draws], token ids, int64.
    """
    return prepared.called(**prepared.inputs(batch), uniforms=uniforms, never=never)
