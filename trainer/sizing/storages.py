"""Which storages live while operations run, by kind, and the moment at which they are most.

torch.distributed._tools.mem_tracker does the same by module; it has no kind for the head, which is no module's call
here, and none for weights cast for a pass.
"""

import weakref
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, GRADIENTS, OPTIMISER = "weights", "gradients", "optimiser"
ACTIVATIONS, HEAD, CAST = "activations", "head", "cast weights"

aten = torch.ops.aten


class Storages(TorchDispatchMode):
    """Counts the bytes of what operations make within the context, until it is freed.

    What a kernel allocates for itself alone is not seen.

    Args:
        rows: of the head: a tensor of two or more dimensions that has one of this size is of kind HEAD.
        passed_over: kinds that do not count.

    Attributes:
        peak: bytes by kind when all that counts was most.
    """

    def __init__(self, rows: int, passed_over: Collection[str] = ()):
        super().__init__()
        self.rows, self.passed_over = rows, passed_over
        self.peak: Counter[str] = Counter()
        self._most = 0
        self._now: Counter[str] = Counter()
        self._known: dict[int, tuple[str, int]] = {}

    def name(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Say of which kind tensors are, whether they were counted before or not."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) in self._known:
                before, size = self._known[id(storage)]
                self._now[before] -= size
                self._known[id(storage)] = kind, size
                self._now[kind] += size
            else:
                self._add(storage, kind)

    def gradients_of(self, parameters: Iterable[torch.Tensor]) -> None:
        """Count what accumulates in the `grad` of parameters as gradients."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._name_gradient)

    def begin(self) -> None:
        """Forget the peak so far."""
        self.peak, self._most = Counter(self._now), 0
        self._look()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.index_put.default and torch._C._current_graph_task_id() >= 0:
            func = aten.index_put_.default  # the gradient of an index: autograd copies only what is watched
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self._known:
                self._add(storage, self._kind_of(func, args, tensor))
        return made

    def _kind_of(self, func: Any, args: Any, tensor: torch.Tensor) -> str:
        if tensor.dim() > 1 and self.rows in tensor.shape:
            return HEAD
        if func is aten._to_copy.default:
            source, _ = self._known.get(id(args[0].untyped_storage()), ("", 0))
            return CAST if source == WEIGHTS else ACTIVATIONS
        return ACTIVATIONS

    def _name_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.name([parameter.grad], GRADIENTS)

    def _add(self, storage: Any, kind: str) -> None:
        key, size = id(storage), storage.nbytes()
        self._known[key] = kind, size
        weakref.finalize(storage, self._freed, key)
        self._now[kind] += size
        self._look()

    def _freed(self, key: int) -> None:
        kind, size = self._known.pop(key)
        self._now[kind] -= size

    def _look(self) -> None:
        total = sum(size for kind, size in self._now.items() if kind not in self.passed_over)
        if total > self._most:
            self._most = total
            self.peak = Counter({kind: size for kind, size in self._now.items() if kind not in self.passed_over})
