"""One of two processes that shard a model with FSDP2 over gloo, without a Trainer: accelerate has FSDP on GPUs only.

`python -m tests.fsdp_worker RANK PORT OUT`: gradients of the CPO loss, each process with half of the groups.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.tiny import tiny_model
from trainer.logprobs import candidate_logps, prepare_model
from trainer.objectives import cpo_loss
from trainer.packing import Continuations, pack

GROUPS = [
    Continuations([1, 2, 3], [[11, 12, 13], [21, 22], [31]]),
    Continuations([4], [[41, 42], [51, 52, 53], [61, 62]]),
    Continuations([5, 6], [[7], [8, 9], [10, 20, 30, 40]]),
    Continuations([50, 51, 52, 53], [[60, 61], [70], [80, 81, 82]]),
]


def loss_of(model: Any, groups: list[Continuations]) -> torch.Tensor:
    """Each group in a pass of its own."""
    losses = []
    for group in groups:
        logps = candidate_logps(model, pack([group]))
        losses.append(cpo_loss(logps, torch.zeros_like(logps), beta=0.1))
    return torch.stack(losses).mean()


def main() -> None:
    rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = tiny_model(sys.argv[4])
    assert prepare_model(model) == "packed"
    blocks = model.transformer.h if sys.argv[4] == "gpt2" else model.model.layers
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss_of(model, GROUPS[rank::2]).backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    if rank == 0:
        torch.save(gradients, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
