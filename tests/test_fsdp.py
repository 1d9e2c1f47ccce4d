"""Sharded training: FSDP2 over two processes gives the gradients of one; the accelerate recipes are accelerate's."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.fsdp_worker import GROUPS, loss_of
from tests.tiny import tiny_model
from trainer.logprobs import prepare_model


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_fsdp_processes_have_the_gradients_of_one(architecture: str, tmp_path: Path) -> None:
    """Each with half of the groups, in packed passes; the head's weight is one of the sharded parameters."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "tests.fsdp_worker"]
    workers = [
        subprocess.Popen([*words, rank, port, str(tmp_path / "g.pt"), architecture], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    errors = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    found = torch.load(tmp_path / "g.pt")
    model = tiny_model(architecture)
    prepare_model(model)
    loss_of(model, GROUPS).backward()
    largest = max(p.grad.abs().max().item() for p in model.parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_the_recipes_are_accelerates(name: str, kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(ROOT / f"recipes/accelerate/{name}.yaml"))
    assert str(config.distributed_type).endswith(kind)
    assert config.mixed_precision == "bf16"
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # one directory that loads anywhere
