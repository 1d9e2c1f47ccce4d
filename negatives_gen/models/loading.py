"""Loading a model by a library: whatever it raises becomes an error of one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from data.command.errors import UserError, first_line

TRUST = " If you trust its code: --trust_remote_code true."


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
