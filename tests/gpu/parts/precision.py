"""bfloat16 against float32 on the same device, of a model of 124 M parameters on groups as long as Dolly's."""

from collections.abc import Sequence
from typing import Any

import torch

from tests.gpu.parts.checks import at_most
from tests.gpu.parts.inputs import ROW_TOKENS, STEP, K, make_groups, make_model
from trainer.monitor.start import START_TOLERANCE
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import lay_out
from trainer.scoring.prepared_model import candidate_logps, prepare_model

PER_TOKEN = START_TOLERANCE[torch.bfloat16]  # nats
GRADIENT = 0.1  # of its norm: what eight bits leave of it through twelve layers, with room


def bfloat16(device: str) -> dict[str, Any]:
    """Nats per token of each candidate's log-probability, and the gradient of CPO as it is before the first step."""
    groups = [group.tokens for group in make_groups("124M", STEP)]
    tokens = torch.tensor([[len(c) for c in group.continuations] for group in groups])
    weights = make_model("124M", device, torch.float32).state_dict()
    exact, gradient = _values(weights, groups, device, torch.float32)
    ours, other = _values(weights, groups, device, torch.bfloat16)
    off = (ours - exact).abs() / tokens
    return {
        "checks": [
            at_most("log-probability, worst candidate, nats per token", off.max().item(), PER_TOKEN),
            at_most("log-probability, mean of candidates, nats per token", off.mean().item(), PER_TOKEN / 4),
            at_most("gradient, of its norm", ((other - gradient).norm() / gradient.norm()).item(), GRADIENT),
        ]
    }


def _values(
    weights: dict[str, Any], groups: Sequence[Continuations], device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, [G, K], and the gradient of all parameters, on the CPU in float32.

    The gradient is that of CPO at h = 0: the truths' own log-probabilities against the mean of all candidates'.
    """
    model = make_model("124M", device, dtype)
    model.load_state_dict(weights)
    prepared = prepare_model(model)
    logps = torch.zeros(len(groups), K)
    for indices, batch in lay_out(groups, prepared.layout, ROW_TOKENS):
        values = candidate_logps(prepared, batch.to(device))
        (values.mean(-1) - values[:, 0]).sum().backward()
        logps[indices] = values.detach().float().cpu()
    return logps, torch.cat([p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None])
