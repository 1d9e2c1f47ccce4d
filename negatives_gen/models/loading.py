"""Loading a model by a library: whatever it raises becomes an error of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data.command.errors import UserError, first_line

TRUST = " If you trust its code: --trust_remote_code true."
NO_CODE = " An evaluation runs no code of a model."


@contextmanager
def loading(what: str, custom_code: str = TRUST) -> Iterator[None]:
    """Turn an error in the block into a UserError.

    Args:
        what: the model, as the user named it.
        custom_code: what to say if the model comes with code that was not to be run.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries and a model's own code raise a dozen unrelated classes
        hint = custom_code if "custom code" in str(error) else ""
        raise UserError(f"transformers cannot load {what}: {first_line(error)}{hint}") from error


def load_scorer(
    model: str, *, dtype: str, named: str = "", trust_remote_code: bool = False, custom_code: str = TRUST
) -> Any:
    """A model as a `trainer.scoring.scorer.Scorer`.

    Args:
        named: what errors call the model; by default its path.
        trust_remote_code: run Python code that comes with the model.
        custom_code: what to say if the model comes with code that was not to be run.

    Raises:
        UserError: transformers cannot load the model, or its checkpoint does not hold it whole.
    """
    from trainer.scoring.scorer import Scorer

    with loading(named or f"'{model}'", custom_code):
        return Scorer.load(model, dtype=dtype, trust_remote_code=trust_remote_code)
