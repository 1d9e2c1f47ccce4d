"""FSDP on CPU processes: accelerate's own code, which it would run on GPUs only.

accelerate shards over the kinds of processes that it names, and the CPU's kind (MULTI_CPU) is not among them. That
name is all that is changed: wrapping, mixed precision, clipping, saving and loading are accelerate's and transformers'.
"""

import os
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.support.commands import ROOT

RECIPE = ROOT / "recipes/accelerate/fsdp.yaml"
_init = PartialState.__init__


def launched_with_fsdp(mixed_precision: str, state: str = "FULL_STATE_DICT") -> None:
    """Give this process what `accelerate launch --config_file recipes/accelerate/fsdp.yaml` gives those that it starts.

    Where a launcher says who meets where stays as it is. Call it before accelerate's state is made.
    """
    words = ["--config_file", str(RECIPE), "--main_process_port", "0", "--mixed_precision", mixed_precision, "script"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.fsdp_state_dict_type = state
    meeting = {name: value for name, value in os.environ.items() if name.startswith("MASTER_")}
    os.environ.update({**prepare_multi_gpu_env(arguments), **meeting})
    PartialState.__init__ = _as_on_gpus  # type: ignore[method-assign]


def _as_on_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
