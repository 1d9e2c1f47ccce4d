"""The tables that `--dry_run` prints."""

from collections.abc import Iterable, Sequence

from data.command.fitting import Column, as_text
from data.command.terminal import width
from data.command.wording import counted, duration, size, whole_duration
from trainer.sizing.devices import USABLE, Device
from trainer.sizing.first_steps import FirstSteps, LaidOut
from trainer.sizing.predicted import Case, Prediction
from trainer.sizing.savings import Option

# What something is, its value, a remark.
Row = tuple[str, str, str]
MEANING = {
    "weights": "of the model and its adapter, buffers included",
    "gradients": "of what is trained",
    "optimiser": "its state",
    "DDP's buckets": "a copy of the gradients",
    "FSDP's whole layers": "weights and gradients of two layers and outside of layers, and a sum of gradients",
    "cast weights": "in 16 bits, kept for the backward pass of mixed precision",
    "activations": "of the largest pass, and what its backward pass makes",
    "head": "what is as wide as the vocabulary: a chunk of logits, gradients of head and embedding being made",
}
NOT_COUNTED = (
    "what kernels allocate for themselves, the allocator's gaps, a GPU's context (about 0.5 GiB) and NCCL's buffers; "
    "Python and its libraries on a CPU; evaluation and checkpoints, which take less than a step"
)


def seconds_per_step(case: Case, found: Prediction, steps: LaidOut, utilisation: float) -> float | None:
    """Predicted seconds; None where the peak of the device is not known for what is computed in."""
    if case.device.peak is None or found.computed_in.itemsize != 2:
        return None
    checkpointing = bool(case.training.gradient_checkpointing)
    computed = steps.computed(found.flop, checkpointing=checkpointing, forwards=found.forwards)
    return computed / (case.device.peak * utilisation * case.world)


def table(
    case: Case, found: Prediction, first: FirstSteps, steps: LaidOut, layout: str, row_tokens: int, utilisation: float
) -> str:
    """The prediction of a run, as a terminal shows it."""
    devices = f"{case.world} x {case.device.name}" if case.world > 1 else case.device.name
    sharing = "" if case.world == 1 else (", FSDP" if case.sharded else ", DDP")
    precision = str(found.computed_in).removeprefix("torch.")
    memory = [(kind, size(held), MEANING[kind]) for kind, held in found.kinds.items()]
    memory.append(("all", size(found.peak), f"{_of_pass(steps, row_tokens)}; {_room(case.device)}"))
    per_step = [
        ("groups", f"{first.groups:g}", ""),
        ("positions", f"{steps.positions:,.0f}", f"{steps.padding:.1%} of them padding"),
        ("forward passes of a device", f"{steps.most_passes}", "at most"),
        ("FLOP", f"{steps.flop(found.flop):.3g}", "matrix products with parameters, as for the log's mfu"),
        *_time(case, found, first, steps, utilisation),
    ]
    lines = [
        f"Predicted, not measured: {case.objective.name}, {found.parameters:,} parameters, {layout} layout, at most "
        f"{row_tokens} tokens per pass, on {devices}{sharing}, computed in {precision}.",
        "",
        _rows("peak memory per device", "", memory),
        "",
        _rows(f"per step, mean of the first {len(steps.passes)}", "", per_step),
        "",
        f"Attention: {_attention(case, found, layout)}.",
        *_by_formula(case, found),
        f"Not counted: {NOT_COUNTED}.",
    ]
    return "\n".join(lines)


def advice_table(advised: Iterable[tuple[Option, Prediction]], device: Device) -> str:
    """What would lower the peak, as a terminal shows it."""
    rows = []
    for option, found in advised:
        fits = "fits" if found.peak <= device.usable else "does not fit yet"
        rows.append((option.words, size(found.peak), f"{fits}{option.note and f'; {option.note}'}"))
    return _rows("what would help", "predicted peak per device", rows)


def _rows(what: str, value: str, rows: Sequence[Row]) -> str:
    """A table of what something is, its value and a remark."""
    names, values, remarks = zip(*rows, strict=True)
    return as_text(
        [Column(what, names, right=False), Column(value, values)], [Column("", remarks, right=False)], width()
    )


def _of_pass(steps: LaidOut, row_tokens: int) -> str:
    largest = steps.largest.tokens.input_ids.numel()
    later = f"; a later one may have up to {row_tokens:,}" if largest < row_tokens else ""
    return f"of the largest pass of the first {counted(len(steps.passes), 'step')}, {largest:,} positions{later}"


def _by_formula(case: Case, found: Prediction) -> list[str]:
    """The line of what the passes do not show."""
    sharing = "FSDP's shards and whole layers" if case.sharded else "DDP's buckets" if case.world > 1 else ""
    flex = "FlexAttention" if found.flex else ""
    fused = "the fused optimiser's state (by the one without kernels)" if "fused" in case.training.optim else ""
    autocast = "a GPU's autocast (by the CPU's)" if case.device.is_gpu and case.mixed and not case.sharded else ""
    named = [name for name in (sharing, flex, fused, autocast) if name]
    return [f"By formula or likeness, not by its own passes: {', '.join(named)}."] if named else []


def _room(device: Device) -> str:
    if not device.is_gpu:
        return f"this machine has {size(device.memory)}"
    return f"of {size(device.memory)}, of which {USABLE:.0%} are taken as usable: {size(device.usable)}"


def _time(case: Case, found: Prediction, first: FirstSteps, steps: LaidOut, utilisation: float) -> list[Row]:
    seconds = seconds_per_step(case, found, steps, utilisation)
    if seconds is None:
        why = "this device's peak is not known" if case.device.peak is None else "no peak is known but of 16 bits"
        return [("time", "not predicted", why)]
    assumed = f"if {utilisation:.0%} of {case.device.peak or 0:.3g} FLOP/s are reached, recomputation included"
    whole = whole_duration(seconds * first.steps)
    return [("time", duration(seconds), assumed), ("the run", whole, counted(first.steps, "step"))]


def _attention(case: Case, found: Prediction, layout: str) -> str:
    if found.flex:
        return "FlexAttention, which runs on GPUs only, by what its kernels keep"
    if layout == "packed" and not case.device.is_gpu:
        return "segment by segment, as on a CPU"
    return "as transformers computes it with dense masks, by what torch's CPU kernels keep"
