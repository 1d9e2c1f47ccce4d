"""The weights of two models interpolated straight from file to file, a piece of a tensor at a time.

Neither model is ever in memory. Each output has the header of the model called `cpo`: its names, shapes, dtypes and
order, so that only the numbers differ.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError
from data.models import read_header, redundant_in, tensor_places, weight_files

if TYPE_CHECKING:
    import torch

# What is interpolated, by safetensors' names. Other dtypes (indices, masks, quantised codes) must be equal.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
SAME_ORIGIN = "Give two models that were fine-tuned from the same one."
CHUNK = 1 << 18  # numbers in memory at a time, of each model


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie: `size` of them from `start` on."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises:
        UserError: no safetensors file, or one whose size is not what its header says.
    """
    header, start = read_header(path)
    tensors = {name: _entry(path, name, entry, start) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)))
    end = start
    for name, tensor in tensors.items():
        if tensor.start != end:
            raise UserError(f"'{path}' is damaged: tensor '{name}' does not begin where the one before ends.")
        end += tensor.size
    if path.stat().st_size != end:
        raise UserError(f"'{path}' holds {path.stat().st_size} bytes, its header says {end}. Copy the file again.")
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        begin, end = entry["data_offsets"]
        tensor = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), start + begin, end - begin)
        expected = BYTES.get(tensor.dtype, 0) * math.prod(tensor.shape)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"'{path}' is damaged: its header does not say where '{name}' is. Copy it again.") from None
    if tensor.dtype in FLOATS and tensor.size != expected:
        raise UserError(f"'{path}' is damaged: {tensor.size} bytes for tensor '{name}' of {expected}. Copy it again.")
    return tensor


def read_model(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of all weight files of a model directory. Raises UserError for damaged ones."""
    return {name: tensor for path in weight_files(directory) for name, tensor in read_file(path).items()}


def read_models(mle: Path, cpo: Path) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The tensors of two models that are to be mixed, by the names that are in the files of `cpo`.

    What only one of them holds, though neither computes with it, makes no difference: a head that is the embedding
    again is mixed as that is, a buffer that transformers makes itself is taken as `cpo` has it.

    Raises:
        UserError: damaged files.
    """
    ours, theirs = read_model(mle), read_model(cpo)
    for name, repeated in redundant_in(cpo, tensor_places(cpo)).items():
        if name not in ours:
            ours[name] = ours.get(repeated, theirs[name]) if repeated else theirs[name]
    for name in redundant_in(mle, tensor_places(mle)).keys() - theirs.keys():
        del ours[name]
    return ours, theirs


def check_same_tensors(
    mle: Mapping[str, StoredTensor], cpo: Mapping[str, StoredTensor], mle_name: str, cpo_name: str
) -> None:
    """Check that two models can be interpolated.

    Args:
        mle_name, cpo_name: how errors call the models.

    Raises:
        UserError: naming the first tensor, by name, that one of the models lacks or that differs in shape, or,
            where it cannot be interpolated, in dtype or value.
    """
    for name in sorted(mle.keys() | cpo.keys()):
        if name not in mle or name not in cpo:
            lacks, has = (cpo_name, mle_name) if name in mle else (mle_name, cpo_name)
            raise UserError(f"tensor '{name}' of {has} is missing in {lacks}. {SAME_ORIGIN}")
        ours, theirs = mle[name], cpo[name]
        if ours.shape != theirs.shape:
            raise UserError(
                f"tensor '{name}' has shape {list(ours.shape)} in {mle_name} and {list(theirs.shape)} in {cpo_name}. "
                + SAME_ORIGIN
            )
        if ours.dtype in FLOATS and theirs.dtype in FLOATS:
            continue
        if ours.dtype != theirs.dtype:
            raise UserError(
                f"tensor '{name}' is {ours.dtype} in {mle_name} and {theirs.dtype} in {cpo_name}. {SAME_ORIGIN}"
            )
        if any(not m.equal(c) for m, c in zip(_chunks(ours), _chunks(theirs), strict=True)):
            raise UserError(
                f"tensor '{name}' ({ours.dtype}) cannot be interpolated and differs between {mle_name} and {cpo_name}. "
                + SAME_ORIGIN
            )


def interpolate(mle: "torch.Tensor", cpo: "torch.Tensor", alpha: float) -> "torch.Tensor":
    """alpha * mle + (1 - alpha) * cpo in float32 (float64 if either is), in the dtype of `cpo`.

    At 0 it is `cpo`, at 1 `mle`, and where both are equal that value, bit for bit.
    """
    import torch

    if alpha == 0:
        return cpo
    if alpha == 1:
        return mle.to(cpo.dtype)
    wide = torch.float64 if torch.float64 in (mle.dtype, cpo.dtype) else torch.float32
    m, c = mle.to(wide), cpo.to(wide)
    return torch.where(m == c, c, alpha * m + (1 - alpha) * c).to(cpo.dtype)


def write_interpolations(mle: Mapping[str, StoredTensor], source: Path, outputs: Mapping[float, Path]) -> None:
    """Write, for every alpha, the file of that interpolation; both models are read once.

    Args:
        mle: tensors of the one model, which `check_same_tensors` found to fit.
        source: a weight file of the other, whose layout the outputs get.
        outputs: new file by alpha.

    Raises:
        UserError: a number would be nan or infinite that is not the same in both models.
    """
    import torch

    _, start = read_header(source)
    with source.open("rb") as file:
        header = file.read(start)
    with ExitStack() as stack:
        files = {alpha: stack.enter_context(path.open("xb")) for alpha, path in outputs.items()}
        for file in files.values():
            file.write(header)
        for name, tensor in read_file(source).items():
            for m, c in zip(_chunks(mle[name]), _chunks(tensor), strict=True):
                for alpha, file in files.items():
                    mixed = interpolate(m, c, alpha)
                    if not bool((torch.isfinite(mixed) | (m == c)).all()):
                        raise not_finite(name, alpha)
                    # Equal bytes of another dtype come out as they went in.
                    file.write(mixed.view(torch.uint8).numpy().data)


def not_finite(tensor: str, alpha: float) -> UserError:
    """What is raised for an ensemble whose numbers are not all finite."""
    return UserError(
        f"tensor '{tensor}' of the ensemble at alpha {alpha:g} would not be finite. Look at it in both models: one of "
        "them holds nan or infinity there, or --mle a number that is too large for the dtype of --cpo."
    )


def _chunks(tensor: StoredTensor) -> Iterator["torch.Tensor"]:
    """The numbers of a tensor in order, flat, at most CHUNK at a time; dtypes that are no FLOATS as plain bytes."""
    import torch

    dtype = getattr(torch, FLOATS.get(tensor.dtype, "uint8"))
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.size
        while left:
            buffer = bytearray(min(left, CHUNK * dtype.itemsize))
            if file.readinto(buffer) != len(buffer):
                raise UserError(f"'{tensor.path}' became shorter while it was read. Try again when it is whole.")
            yield torch.frombuffer(buffer, dtype=dtype)
            left -= len(buffer)
