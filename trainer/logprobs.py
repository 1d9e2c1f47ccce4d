"""The one place where token sequences become log-probabilities: for the scorer, the trainer and the evaluation.

The packed layout of `trainer.packing` goes through the model's backbone with a boolean 4-D attention mask; the
head is applied only where there is a target, in chunks, so that logits are never materialised. Whether a model
takes this is found out by trying (`prepare_model`); one that does not gets the padded layout and its own forward.
"""

import functools
import inspect
import logging
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.packing import Continuations, TokenBatch, pack, packed_attention, pad, split_by_budget

log = logging.getLogger(__name__)

# Logits held at a time, in elements: small enough to stay in cache on a CPU, large enough to fill a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
# Packed and padded may differ by rounding alone; a wrong mask or position shows up far above these (nats per token).
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 5e-2, torch.bfloat16: 2e-1}


class _TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] for each row, chunk by chunk, recomputed in the backward pass.

    With p = softmax(logits) and upstream gradient g, d logits = g * (onehot(target) - p).
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps = torch.empty(len(targets), dtype=_reduction_dtype(hidden.dtype), device=hidden.device)
        normalisers = torch.empty_like(logps)
        cast = weight.to(hidden.dtype)
        for rows in _chunks(hidden, weight):
            logits = (hidden[rows] @ cast.T).to(logps.dtype)
            normalisers[rows] = torch.logsumexp(logits, dim=-1)
            logps[rows] = logits.gather(-1, targets[rows, None])[:, 0] - normalisers[rows]
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (upstream,) = grads
        hidden, weight, targets, normalisers = ctx.saved_tensors
        cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _chunks(hidden, weight):
            logits = (hidden[rows] @ cast.T).to(normalisers.dtype)
            scaled = torch.exp(logits - normalisers[rows, None]).mul_(-upstream[rows, None])
            scaled.scatter_add_(-1, targets[rows, None], upstream[rows, None])
            scaled = scaled.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = scaled @ cast
            if grad_weight is not None:
                grad_weight.add_(scaled.T @ hidden[rows])
        return grad_hidden, grad_weight, None


def token_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the targets under a linear head, without materialising the logits.

    Args:
        hidden: [N, H], float32, float64, float16 or bfloat16.
        weight: [V, H], cast to hidden's dtype for the products.
        targets: [N], token ids.

    Returns:
        [N] in nats, reduced in float32 (float64 for float64 input).
    """
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        return _TokenLogps.apply(hidden, weight, targets)  # type: ignore[return-value]  # apply is untyped


def prepare_model(model: Any) -> str:
    """Teach a causal language model to return log-probabilities, and say by which path it does.

    Patches `model.forward` so that a call with `target_ids` returns log-probabilities; every other call, and so
    `generate` and wrappers such as PEFT, DDP and FSDP, works as before. Call it before wrapping the model.

    Returns:
        "packed", or "padded" if the model's attention cannot take the packed mask; the log says why.
    """
    if getattr(model, "_logprob_path", None):
        return model._logprob_path
    bound = model.forward
    original = bound.__func__ if inspect.ismethod(bound) else lambda _, *args, **kwargs: bound(*args, **kwargs)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, target_ids: Any = None, target_index: Any = None, **kwargs: Any) -> Any:
        if target_ids is None:
            return original(self, *args, **kwargs)
        if self._logprob_path == "packed":
            hidden = self.base_model(*args, use_cache=False, **kwargs)[0].flatten(0, 1)[target_index]
            head = self.get_output_embeddings()
            if type(head) is nn.Linear:
                return token_logps(hidden, head.weight, target_ids)
            logits = head(hidden)  # wrapped since: its weight alone would leave out an adapter
        else:
            logits = original(self, *args, use_cache=False, **kwargs).logits.flatten(0, 1)[target_index]
        logits = logits.to(_reduction_dtype(logits.dtype))
        return logits.log_softmax(-1).gather(-1, target_ids[:, None])[:, 0]

    model.forward = types.MethodType(forward, model)  # a method, so that a deep copy calls its own weights
    obstacle = _obstacle(model)
    model._logprob_path = "padded" if obstacle else "packed"
    if obstacle:
        log.warning("Using the padded layout, slower than the packed one: %s.", obstacle)
    return model._logprob_path


def candidate_logps(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Log-probability of each continuation given its prefix, summed over its tokens.

    Args:
        model: a model that went through `prepare_model`, wrapped or not.
        batch: packed or padded, on the model's device.

    Returns:
        [G, K] in nats, float32 or wider; 0 where `batch.mask` is False.
    """
    logps = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=_attention_mask(model, batch),
        target_ids=batch.target_ids,
        target_index=batch.target_index,
    )
    sums = torch.zeros(batch.mask.numel(), dtype=logps.dtype, device=logps.device)
    return sums.index_add(0, batch.slot, logps).view(batch.mask.shape)


def layout(groups: Sequence[Continuations], path: str, row_tokens: int) -> Iterator[tuple[list[int], TokenBatch]]:
    """Lay out groups as the model's path wants them: (indices of the groups, their tensors) per forward pass."""
    packed = path == "packed"
    lengths = [g.packed_length if packed else g.padded_length for g in groups]
    for indices in split_by_budget(lengths, row_tokens):
        chosen = [groups[i] for i in indices]
        yield indices, pack(chosen) if packed else pad(chosen)


@dataclass
class Scorer:
    """Scores groups with a frozen model: the stage 1 scorer and the evaluation.

    Attributes:
        model: transformers causal language model, in eval mode, on its device.
        path: "packed" or "padded".
        row_tokens: token budget of a forward pass.
    """

    model: Any
    path: str
    row_tokens: int = 2048

    @classmethod
    def load(cls, model: str, *, dtype: str = "float32", device: str | None = None) -> "Scorer":
        """Load a model directory for scoring, on the GPU if there is one."""
        from transformers import AutoModelForCausalLM

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True)
        loaded = loaded.to(device).eval()
        return cls(loaded, prepare_model(loaded))

    @torch.no_grad()
    def score(self, groups: Sequence[Continuations]) -> list[list[float]]:
        """Summed log-probabilities in nats, one list per group with one number per continuation."""
        scores: list[list[float]] = [[] for _ in groups]
        # Rows of similar groups waste nothing in the padded layout and cost nothing in the packed one.
        order = sorted(range(len(groups)), key=lambda i: groups[i].packed_length)
        for indices, batch in layout([groups[i] for i in order], self.path, self.row_tokens):
            logps = candidate_logps(self.model, batch.to(self.model.device)).tolist()
            for index, row in zip(indices, logps, strict=True):
                group = order[index]
                scores[group] = row[: len(groups[group].continuations)]
        return scores


def _obstacle(model: Any) -> str | None:
    """Why the packed path would be wrong for this model, or None if it agrees with the model's own forward."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    uses_window = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    if window and uses_window:
        return f"{config.model_type} attends through a sliding window of {window} tokens"
    if "local" in (getattr(config, "attention_layers", None) or []):  # GPT-Neo's name for it
        return f"{config.model_type} attends through a sliding window of {config.window_size} tokens"
    if type(model.get_output_embeddings()) is not nn.Linear or model.get_output_embeddings().bias is not None:
        return f"the head of {config.model_type} is not a plain linear map"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention implementation '{config._attn_implementation}' takes no 4-D mask"
    generator = torch.Generator().manual_seed(0)
    lengths = ((5, (4, 1, 6)), (1, (3, 5)), (7, (2, 2)))
    draw = lambda n: torch.randint(config.vocab_size, (n,), generator=generator).tolist()  # noqa: E731
    groups = [Continuations(draw(p), [draw(n) for n in ns]) for p, ns in lengths]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            values = {}
            for path, arrange in (("padded", pad), ("packed", pack)):
                model._logprob_path = path
                values[path] = candidate_logps(model, arrange(groups).to(model.device))
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError) as error:
        if path == "padded":
            raise  # the model's own forward fails: nothing to fall back to
        return f"{config.model_type} does not run with a 4-D mask ({str(error).splitlines()[0]})"
    finally:
        model.train(training)
    tokens = torch.tensor([[*ns, *[1] * (3 - len(ns))] for _, ns in lengths], device=model.device)
    worst = ((values["packed"] - values["padded"]).abs() / tokens).max().item()
    dtype = next(model.parameters()).dtype
    if worst > PROBE_TOLERANCE.get(dtype, 2e-1):
        return f"{config.model_type} gives other log-probabilities with the packed mask (off by {worst:.2g} per token)"
    return None


def _attention_mask(model: Any, batch: TokenBatch) -> torch.Tensor | None:
    if batch.group_ids is None or batch.segment_ids is None:
        return batch.attention_mask
    allowed = packed_attention(batch.group_ids, batch.segment_ids)
    config = getattr(model, "module", model).config
    if config.get_text_config()._attn_implementation == "sdpa":
        return allowed
    # Eager attention adds its mask to the scores.
    dtype = getattr(getattr(model, "module", model), "dtype", torch.float32)
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    size = max(32, elements // len(weight))
    for start in range(0, len(hidden), size):
        yield slice(start, min(start + size, len(hidden)))


def _reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
