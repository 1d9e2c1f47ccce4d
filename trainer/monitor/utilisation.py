"""How much of a GPU's peak the training uses (`mfu` in the log), by formula: PaLM's model FLOP utilisation.

Counted are the model's matrix products with its parameters, two operations per parameter and token forward and four
backward, where they are needed: the head only where a token is predicted. Not counted are attention's own products, and
what is computed twice (logits for the backward pass, gradient checkpointing, candidates that `--skip_below` keeps).
"""

from dataclasses import dataclass
from typing import Any

import torch

# Dense bfloat16 with float32 accumulation, FLOP/s, by the name that CUDA gives. From NVIDIA's data sheets (those that
# state figures "with sparsity": half of it) and, of GeForce, the white papers of GA102 and AD102.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """FLOP/s of a device in a dtype of 16 bits; None where not known: other types, CPUs, GPUs of other names."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return PEAKS.get(torch.cuda.get_device_name(device))


@dataclass(frozen=True)
class ModelFlop:
    """What forward and backward passes of a model cost.

    Attributes:
        body: parameters but for the embeddings, where tokens are looked up, and the head.
        head: parameters of the head.
        trained: share of the parameters that are trained.
    """

    body: int
    head: int
    trained: float

    @classmethod
    def of(cls, model: Any) -> "ModelFlop":
        """The costs of a transformers model."""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head is None or head.weight is embedding.weight
        size, whole = embedding.weight.numel(), model.num_parameters()
        return cls(whole - size * (1 if tied else 2), size, model.num_parameters(only_trainable=True) / whole)

    def forward(self, positions: int, targets: int) -> int:
        """FLOP of a forward pass over some tokens, of which so many predict one."""
        return 2 * (self.body * positions + self.head * targets)

    def backward(self, positions: int, targets: int) -> int:
        """FLOP of a backward pass: gradients of what goes through, and of the parameters that are trained."""
        return round((1 + self.trained) * self.forward(positions, targets))
