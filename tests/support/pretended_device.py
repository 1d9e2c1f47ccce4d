"""A second device without one: real values on the CPU whose tensors say that they are elsewhere.

`pretended_device()` makes DEVICE a device like any other for what runs within: tensors made there or moved there hold
their values, and an operation on tensors of both devices raises as CUDA's does. Unlike FakeTensorMode it has values, so
`.item()`, boolean masks and loops over them work. DEVICE is called "meta", the one device beside the CPU of which
torch's CPU build knows enough for a backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

aten = torch.ops.aten
COPIES = aten._to_copy.default, aten.copy_.default
INDEXED = aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default
# What besides pointwise operations takes a number on the CPU, a tensor without dimensions, as CUDA's kernels do.
TAKES_NUMBERS = *INDEXED, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill.Tensor, aten.fill_.Tensor


class OtherDevice(RuntimeError):
    """Tensors of two devices met."""


class Elsewhere(torch.Tensor):
    """A tensor on DEVICE; its values are a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    values_here: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "Elsewhere":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.size(), **layout, device=DEVICE)  # type: ignore[attr-defined]
        made.values_here = values
        return made

    def __repr__(self, **_: Any) -> str:
        return f"elsewhere {self.values_here}"

    def tolist(self) -> Any:
        return self.values_here.tolist()

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:  # type: ignore[override]
        return self.values_here.new_tensor(data, **options).to(self.device)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Placing(TorchDispatchMode):
    """Catches operations without a tensor of DEVICE among their arguments: those that make or move one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[None]:
    """Let DEVICE be a device of its own for the body of a `with`: it works, and its tensors mix with no others.

    Autocast, of which "meta" has none, is off there.
    """
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    is_enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def is_autocast_enabled(*device: str) -> bool:
        return DEVICE.type not in device and is_enabled(*device)

    def no_autocast(device_type: str, *args: Any, enabled: bool = True, **kwargs: Any) -> Any:
        if device_type != DEVICE.type:
            return autocast(device_type, *args, enabled=enabled, **kwargs)
        assert not enabled, "there is no autocast on the pretended device"
        return nullcontext()

    def moved_from_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """torch's own would have no values."""
        return lambda data, *, device=None, **kwargs: make(data, **kwargs).to(device)

    with ExitStack() as stack:
        replaced = {"is_autocast_enabled": is_autocast_enabled, "autocast": no_autocast}
        replaced |= {"tensor": moved_from_cpu(torch.tensor), "as_tensor": moved_from_cpu(torch.as_tensor)}
        for name, function in replaced.items():
            stack.enter_context(patch.object(torch, name, function))
        # A module that moves keeps its parameters, and so what shares them.
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(_Placing())
        yield


def _without_lists(index: Any) -> Any:
    """An index whose lists of numbers are tensors on the CPU; torch would make tensors of them without values."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.tensor(part, dtype=torch.long) if isinstance(part, list) else part for part in parts)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    elsewhere = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if any(tensor.device == DEVICE and not isinstance(tensor, Elsewhere) for tensor in tensors):
        raise NotImplementedError(f"{func}: an argument was made on {DEVICE} past `pretended_device`, without values")
    if elsewhere and func not in COPIES:
        _check(func, args, tensors)
    if func is aten.copy_.default:
        to_there = isinstance(args[0], Elsewhere)
    else:
        device = kwargs.get("device")
        to_there = elsewhere if device is None else torch.device(device) == DEVICE
    if not elsewhere and not to_there:
        return func(*args, **kwargs)
    here = tree_map(lambda leaf: leaf.values_here if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    if "device" in kwargs:
        here[1]["device"] = torch.device("cpu")
    made = func(*here[0], **here[1])
    if not to_there:
        return made
    made = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, torch.Tensor) else leaf, made)
    return return_and_correct_aliasing(func, args, kwargs, made)  # what works in place returns its argument


def _check(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raise OtherDevice where CUDA would: it takes numbers on the CPU, and indices."""
    takes_numbers = torch.Tag.pointwise in func.tags or func in TAKES_NUMBERS
    indices = [id(index) for index in args[1]] if func in INDEXED else []
    for tensor in tensors:
        is_number = takes_numbers and tensor.dim() == 0
        if not isinstance(tensor, Elsewhere) and not is_number and id(tensor) not in indices:
            raise OtherDevice(f"{func}: a tensor {list(tensor.shape)} on {tensor.device} met one on {DEVICE}")
