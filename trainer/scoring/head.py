"""The head: log-probabilities and draws from hidden states, in chunks, so that logits are never materialised."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Logits held at a time, in elements. Large enough that a matrix product outweighs reading the head and adding to its
# gradient once per chunk, see docs/benchmarks.md; small beside the model.
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
NO_POSITIONS = torch.empty(0, dtype=torch.long)


class _TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] for each row, chunk by chunk, recomputed in the backward pass.

    With p = softmax(logits) and upstream gradient g, d logits = g * (onehot(target) - p). What is as wide as the
    vocabulary is passed over as seldom as can be, in one buffer that all chunks share: g goes into the narrow side of
    both products instead.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps, normalisers, _ = _scored(hidden, weight, targets, NO_POSITIONS)
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        return logps

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]  # the decorator's stub loses the name of ctx
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        upstream = -grads[0].to(hidden.dtype)[:, None]
        cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # In float32: a bfloat16 sum over many chunks would drop the small terms.
        wide = reduction_dtype(weight.dtype)
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for rows, logits in _logits(hidden, cast):
            difference = logits.sub_(normalisers[rows, None]).exp_()  # p - onehot(target)
            difference.scatter_add_(-1, targets[rows, None], difference.new_full((len(difference), 1), -1))
            difference = difference.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mul(difference @ cast, upstream[rows], out=grad_hidden[rows])
            if grad_weight is not None:
                weighted = hidden[rows] * upstream[rows]
                if wide == hidden.dtype:
                    grad_weight.addmm_(difference.T, weighted)
                else:
                    grad_weight.add_(difference.T @ weighted)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def _scored(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ranked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities and normalisers of all positions, [N], and the ranks of some targets, [M]."""
    logps = torch.empty(len(targets), dtype=reduction_dtype(hidden.dtype), device=hidden.device)
    normalisers = torch.empty_like(logps)
    ranks = [torch.empty(0, dtype=torch.long, device=hidden.device)]
    for rows, logits in _logits(hidden, weight.to(hidden.dtype)):
        chosen = logits.gather(-1, targets[rows, None])[:, 0]
        here = ranked[(ranked >= rows.start) & (ranked < rows.stop)] - rows.start
        if len(here):
            ranks.append(target_ranks(logits, targets[rows], here))
        top = logits.amax(-1, keepdim=True)
        normalisers[rows] = logits.sub_(top).exp_().sum(-1).log_().add_(top[:, 0])
        logps[rows] = chosen - normalisers[rows]
    return logps, normalisers, torch.cat(ranks)


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of rows and their logits, float32 or wider, to be overwritten: the next chunk's take their place."""
    buffer: torch.Tensor | None = None
    for rows in chunks(hidden, weight):
        part = hidden[rows]
        if buffer is None:
            buffer = part.new_empty(len(part), len(weight))
        logits = torch.mm(part, weight.T, out=buffer[: len(part)])
        yield rows, logits.to(reduction_dtype(logits.dtype))


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


@torch.no_grad()
def token_logps_and_ranks(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ranked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logps` without gradients, and the ranks of some targets: how many tokens have a larger logit.

    Args:
        ranked: [M], positions of those targets, ascending, on the CPU: a GPU would have to be waited for.

    Returns:
        [N] in nats, and [M], int64: 0 for the likeliest token and for those that tie with it.
    """
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        logps, _, ranks = _scored(hidden, weight, targets, ranked)
        return logps, ranks


def target_ranks(logits: torch.Tensor, targets: torch.Tensor, ranked: torch.Tensor) -> torch.Tensor:
    """[M], the ranks of some of the targets [N] of [N, V] logits, see `token_logps_and_ranks`."""
    here = ranked.to(logits.device, non_blocking=True)
    return (logits[here] > logits[here, targets[here]][:, None]).sum(-1)


def drawn(logits: torch.Tensor, uniforms: torch.Tensor, never: Sequence[int]) -> torch.Tensor:
    """[N, draws] tokens of [N, V] logits, where the uniforms fall in the cumulative sum; none of `never`.

    Of logits that are nan the last token: whoever scores the tokens finds that their log-probabilities are nan.
    Ids of `never` beyond V, which a tokenizer may have, cannot be drawn anyway.
    """
    logits = logits.double()
    logits[:, [token for token in never if token < logits.shape[1]]] = -torch.inf
    cumulative = logits.softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulative, uniforms.to(cumulative) * cumulative[:, -1:], right=True)
    return found.clamp_(max=logits.shape[-1] - 1)


def chunks(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    """Rows of hidden [N, H] whose logits with a head's weight [V, H] are held at a time."""
    elements = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    size = max(32, elements // len(weight))
    for start in range(0, len(hidden), size):
        yield slice(start, min(start + size, len(hidden)))


def reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or the type itself if it is wider."""
    return torch.promote_types(dtype, torch.float32)
