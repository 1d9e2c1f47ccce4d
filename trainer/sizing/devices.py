"""Devices that a run is predicted for: how much memory, and what bfloat16 peak."""

import os
from dataclasses import dataclass

import torch

from data.command.errors import UserError, did_you_mean
from trainer.monitor.utilisation import PEAKS

GIB, MIB = 1 << 30, 1 << 20
# What torch says of them (`get_device_properties(0).total_memory`) is up to 1.5% less than their makers do.
MEMORY = {
    "NVIDIA A100-SXM4-40GB": 39.4,
    "NVIDIA A100-SXM4-80GB": 79.2,
    "NVIDIA A100-PCIE-40GB": 39.4,
    "NVIDIA A100 80GB PCIe": 79.2,
    "NVIDIA H100 80GB HBM3": 79.1,
    "NVIDIA H100 PCIe": 79.1,
    "NVIDIA H200": 139.7,
    "NVIDIA L4": 22.0,
    "NVIDIA L40S": 44.4,
    "NVIDIA GeForce RTX 3090": 23.6,
    "NVIDIA GeForce RTX 4090": 23.5,
}
# Of a GPU's memory, what its context, the libraries' workspaces and the allocator's gaps leave: an assumption.
USABLE = 0.93
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    """A device to train on.

    Attributes:
        name: as CUDA gives it, or "cpu".
        memory: bytes.
        peak: dense bfloat16, FLOP/s; None where not known.
    """

    name: str
    memory: int
    peak: float | None

    @property
    def is_gpu(self) -> bool:
        return self.name != CPU

    @property
    def usable(self) -> int:
        """Bytes that a run may take."""
        return round(self.memory * (USABLE if self.is_gpu else 1))

    @property
    def kind(self) -> str:
        """The type that torch.device has for it."""
        return "cuda" if self.is_gpu else "cpu"


def device_of(name: str | None) -> Device:
    """The device of a name, of which a part that no other has will do; None: the one of this machine.

    Raises:
        UserError: there is no such device in the table, or several.
    """
    if name is None and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Device(found.name, found.total_memory, PEAKS.get(found.name))
    if name in (None, CPU):
        return Device(CPU, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None)
    assert name is not None
    fitting = [known for known in MEMORY if name.lower() in known.lower()]
    exact = [known for known in fitting if known.lower() == name.lower()]
    if len(exact or fitting) != 1:
        problem = f"may be {', '.join(fitting)}." if fitting else f"is none that is known.{did_you_mean(name, MEMORY)}"
        raise UserError(
            f"--dry_run_device '{name}' {problem} Give one of: {CPU}, {', '.join(MEMORY)}; a part of a name will do."
        )
    chosen = (exact or fitting)[0]
    return Device(chosen, round(MEMORY[chosen] * GIB), PEAKS.get(chosen))
