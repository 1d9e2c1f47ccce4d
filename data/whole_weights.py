"""All weights of a model are its checkpoint's, or it is refused."""

import logging
from typing import Any

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
        UserError: tensors that the model has are not in the checkpoint.
    """
    loaded, found = cls.from_pretrained(directory, use_safetensors=True, output_loading_info=True, **options)
    if lacking := sorted(found["missing_keys"]):
        raise UserError(
            f"the weights of '{model}' lack {len(lacking)} of the tensors that its config.json asks for, such as "
            f"{lacking[0]}; they would be drawn at random. Correct config.json (number of layers, "
            "tie_word_embeddings), or save the model whole."
        )
    if unused := sorted(found["unexpected_keys"]):
        log.warning(
            "'%s': %d of its tensors are not used, such as %s: its config.json asks for none of that name",
            model, len(unused), unused[0],
        )  # fmt: skip
    return loaded
