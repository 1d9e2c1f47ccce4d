"""What would make a run fit: the same run with one thing changed, and what that is predicted to take."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.sizing.predicted import Case, Prediction

LEAST_ROW = 256  # tokens; smaller passes keep no device busy
NODE = 8  # devices


@dataclass(frozen=True)
class Option:
    """A run as it could be.

    Attributes:
        words: what is added to the command line.
        case: the run.
        row_tokens: token budget of its passes.
        note: what else it changes; "" for nothing.
    """

    words: str
    case: Case
    row_tokens: int
    note: str = ""


def advice(
    case: Case, row_tokens: int, predict: Callable[[Case, int], Prediction]
) -> Iterator[tuple[Option, Prediction]]:
    """What lowers the peak of a run, each alone; where none is enough, one after the other until it fits or all are.

    Args:
        row_tokens: token budget of its passes.
        predict: the prediction of a run with a budget.
    """
    run = Option("", case, row_tokens)
    before = predict(case, row_tokens).peak
    enough, said = False, set()
    for change in CHANGES:
        lower = ((option, predict(option.case, option.row_tokens)) for option in change(run))
        if alone := next(((option, found) for option, found in lower if found.peak < before), None):
            said.add(alone[0].words)
            enough |= alone[1].peak <= case.device.usable
            yield alone
    if enough:
        return
    together = _together(run, before, predict)
    if together is not None and together[0].words not in said:
        yield together


def _together(run: Option, before: int, predict: Callable[[Case, int], Prediction]) -> tuple[Option, Prediction] | None:
    """All changes that lower a peak, one after the other until it fits; None where none does."""
    best = None
    option = run
    for change in CHANGES:
        base = option
        for changed in change(base):
            found = predict(changed.case, changed.row_tokens)
            if found.peak >= before:
                continue
            before = found.peak
            option = dataclasses.replace(changed, words=f"{base.words} {changed.words}".strip())
            best = option, found
            if found.peak <= run.case.device.usable:
                return best
    return best


def _checkpointing(run: Option) -> Iterator[Option]:
    if not run.case.training.gradient_checkpointing:
        yield _trained(run, "--gradient_checkpointing true", gradient_checkpointing=True)


def _mixed(run: Option) -> Iterator[Option]:
    if not run.case.mixed and run.case.policy.config.dtype not in ("bfloat16", "float16"):
        yield _trained(run, "--bf16 true", mixed_precision="bf16", bf16=True)


def _smaller_rows(run: Option) -> Iterator[Option]:
    """Halved, and halved again."""
    less = run.row_tokens // 2
    while less >= LEAST_ROW:
        yield dataclasses.replace(run, words=f"--row_tokens {less}", row_tokens=less)
        less //= 2


def _sharded(run: Option) -> Iterator[Option]:
    """accelerate shards on GPUs only. The paper's batch is shared by more devices; another one grows with them."""
    case = run.case
    if not case.device.is_gpu:
        return
    world = 2 * case.world if case.sharded else max(NODE, case.world)
    batch, note = case.training.per_device_train_batch_size, ""
    if getattr(case.training, "shares_paper_batch", False):  # the command's arguments say it
        batch, rest = divmod(batch * case.world, world)
        if rest:
            return
    elif world > case.world:
        note = f"the batch is then {world / case.world:g} times as large"
    words = [] if case.sharded else ["--fsdp"]
    words += [f"--dry_run_world {world}"] if world > case.world else []
    changed = _trained(run, " ".join(words), per_device_train_batch_size=batch)
    case = dataclasses.replace(changed.case, sharded=True, world=world)
    yield dataclasses.replace(changed, case=case, note=note)


def _pure(run: Option) -> Iterator[Option]:
    if run.case.policy.config.dtype not in ("bfloat16", "float16"):
        yield _loaded(run, "--dtype bfloat16", dtype="bfloat16")


def _adapter(run: Option) -> Iterator[Option]:
    if not run.case.policy.config.use_peft:
        words = "--use_peft true --lora_target_modules all-linear"
        yield _loaded(run, words, use_peft=True, lora_target_modules="all-linear")


def _trained(run: Option, words: str, **changed: object) -> Option:
    training = copy.copy(run.case.training)
    vars(training).update(changed)
    return dataclasses.replace(run, words=words, case=dataclasses.replace(run.case, training=training))


def _loaded(run: Option, words: str, **changed: object) -> Option:
    config = copy.copy(run.case.policy.config)
    vars(config).update(changed)
    policy = dataclasses.replace(run.case.policy, config=config)
    return dataclasses.replace(run, words=words, case=dataclasses.replace(run.case, policy=policy))


# In this order they are put together: first those that change the result by rounding at most.
CHANGES = (_checkpointing, _mixed, _smaller_rows, _sharded, _adapter, _pure)
