"""All weights of a model are its checkpoint's, or it is refused."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from data.architectures import HEAD
from data.command.errors import UserError

log = logging.getLogger(__name__)


def load_whole(cls: Any, directory: Any, model: str, **options: Any) -> Any:
    """A model of a class of transformers, in evaluation mode, as its `from_pretrained` gives it.

    What a checkpoint lacks, transformers draws at random, another time at each load, and only logs it.

    Args:
        cls: such as AutoModelForCausalLM.
        model: as the user named it.
        options: of `from_pretrained`.

    Raises:
        UserError: tensors that the model has are not in the checkpoint, or of another shape there.
    """
    loaded, found = _loaded(f"'{model}'", cls.from_pretrained, directory, use_safetensors=True, **options)
    _require_all(found["missing_keys"], f"'{model}'")
    _say_unused(found["unexpected_keys"], f"'{model}'")
    return loaded


@contextmanager
def whole_weights(what: str) -> Iterator[None]:
    """Where a library loads an encoder by transformers: refuse, as `load_whole` does, what would be drawn at random.

    But for a pooler, which encoders are often saved without, and of which no user of their last states takes anything.
    While the block lasts it holds for what other threads load too; it is to be entered by one thread at a time.

    Args:
        what: the model, for the error.

    Raises:
        UserError: tensors that the model has are not in the checkpoint, or of another shape there.
    """
    from transformers import PreTrainedModel

    inherited = vars(PreTrainedModel)["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        loaded, found = _loaded(what, inherited.__get__(None, cls), *args, **options)
        _require_all([key for key in found["missing_keys"] if "pooler" not in key.split(".")], what)
        _say_unused([key for key in found["unexpected_keys"] if not HEAD.search(key)], what)
        return (loaded, found) if output_loading_info else loaded

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]  # wrapped, while the block lasts
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = inherited


def _loaded(what: str, from_pretrained: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model and what transformers says of its checkpoint, which is kept off the terminal: it quotes any name raw.

    Raises UserError for tensors of another shape than the model's.
    """
    with _without_report():
        loaded, found = from_pretrained(
            *args, **{**options, "output_loading_info": True, "ignore_mismatched_sizes": True}
        )
    if other := sorted(found["mismatched_keys"]):
        name, there, here = other[0]
        raise UserError(
            f"the weights of {what} do not fit its config.json: {name} is of shape {list(there)}, and should be of "
            f"{list(here)}. Correct config.json, or save the model again."
        )
    return loaded, found


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers' table of a dozen lines off the terminal, which says in its way what we say in one."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _require_all(missing: Collection[str], what: str) -> None:
    if lacking := sorted(missing):
        raise UserError(
            f"the weights of {what} lack {len(lacking)} of the tensors that its config.json asks for, such as "
            f"{lacking[0]}; they would be drawn at random. Correct config.json (number of layers, "
            "tie_word_embeddings), or save the model whole."
        )


def _say_unused(unexpected: Collection[str], what: str) -> None:
    if unused := sorted(unexpected):
        log.warning(
            "%s: %d of its tensors are not used, such as %s: its config.json asks for none of that name",
            what, len(unused), unused[0],
        )  # fmt: skip
