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
        words: what is added to the command line, and said of it.
        case: the run.
        row_tokens: token budget of its passes.
    """

    words: str
    case: Case
    row_tokens: int


def advice(
    case: Case, row_tokens: int, predict: Callable[[Case, int], Prediction]
) -> Iterator[tuple[Option, Prediction]]:
    """What lowers the peak of a run, each alone; where none is enough, one after the other until it fits.

    Args:
        row_tokens: token budget of its passes.
        predict: the prediction of a run with a budget.
    """
    before = predict(case, row_tokens).peak
    enough = False
    for change in CHANGES:
        option = change(Option("", case, row_tokens))
        if option is None:
            continue
        found = predict(option.case, option.row_tokens)
        if found.peak < before:
            enough |= found.peak <= case.device.usable
            yield option, found
    if enough:
        return
    option = Option("", case, row_tokens)
    for change in CHANGES:
        changed = change(option)
        if changed is None:
            continue
        found = predict(changed.case, changed.row_tokens)
        if found.peak >= before:
            continue
        before, together = found.peak, option.words != ""
        option = dataclasses.replace(changed, words=f"{option.words} {changed.words}".strip())
        if found.peak <= case.device.usable:
            if together:
                yield option, found
            return


def _checkpointing(option: Option) -> Option | None:
    if option.case.training.gradient_checkpointing:
        return None
    return _trained(option, "--gradient_checkpointing true", gradient_checkpointing=True)


def _mixed(option: Option) -> Option | None:
    if option.case.mixed or option.case.policy.config.dtype in ("bfloat16", "float16"):
        return None
    return _trained(option, "--bf16 true", mixed_precision="bf16", bf16=True)


def _smaller_rows(option: Option) -> Option | None:
    less = option.row_tokens // 2
    if less < LEAST_ROW:
        return None
    return dataclasses.replace(option, words=f"--row_tokens {less}", row_tokens=less)


def _sharded(option: Option) -> Option | None:
    """accelerate shards on GPUs only."""
    case = option.case
    if not case.device.is_gpu:
        return None
    world = 2 * case.world if case.sharded else max(NODE, case.world)
    changed = dataclasses.replace(case, sharded=True, world=world)
    return dataclasses.replace(option, words=f"--fsdp on {world} devices", case=changed)


def _pure(option: Option) -> Option | None:
    if option.case.policy.config.dtype in ("bfloat16", "float16"):
        return None
    return _loaded(option, "--dtype bfloat16", dtype="bfloat16")


def _adapter(option: Option) -> Option | None:
    if option.case.policy.config.use_peft:
        return None
    words = "--use_peft true --lora_target_modules all-linear"
    return _loaded(option, words, use_peft=True, lora_target_modules="all-linear")


def _trained(option: Option, words: str, **changed: object) -> Option:
    training = copy.copy(option.case.training)
    vars(training).update(changed)
    return dataclasses.replace(option, words=words, case=dataclasses.replace(option.case, training=training))


def _loaded(option: Option, words: str, **changed: object) -> Option:
    config = copy.copy(option.case.policy.config)
    vars(config).update(changed)
    policy = dataclasses.replace(option.case.policy, config=config)
    return dataclasses.replace(option, words=words, case=dataclasses.replace(option.case, policy=policy))


# In this order they are put together: first those that change the result by rounding at most.
CHANGES = (_checkpointing, _mixed, _smaller_rows, _sharded, _adapter, _pure)
