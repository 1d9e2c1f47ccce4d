"""Words of a command line: which are flags, and which stand behind them."""

from collections.abc import Iterable

from data.command.errors import UserError
from data.command.values import split_items


def split_flags(argv: list[str], command: str) -> dict[str, list[list[str]]]:
    """Flag -> the words behind each of its uses."""
    flags: dict[str, list[list[str]]] = {}
    current: list[str] | None = None
    for word in argv:
        if _is_flag(word):
            key, equals, text = word[2:].partition("=")
            current = [text] if equals else []
            flags.setdefault(key if "." in key else key.replace("-", "_"), []).append(current)
        elif current is None:
            raise _unexpected(word, command)
        else:
            current.append(word)
    return flags


def only_word(words: list[str], name: str, command: str, alone: str | None = None) -> str:
    """The one word behind a flag, or `alone` if there is none. Raises UserError."""
    if len(words) > 1:
        raise _unexpected(words[1], command)
    if not words and alone is None:
        raise needs_value(name, command)
    return words[0] if words else str(alone)


def needs_value(name: str, command: str) -> UserError:
    """The error of a flag that stands alone."""
    return UserError(f"--{name} on the command line of {command} needs a value.")


def list_flags(argv: list[str], names: Iterable[str]) -> list[str]:
    """A command line on which every flag that is a list stands once, with its items as words behind it.

    `--x a,b`, `--x=a b` and `--x a --x b` all become `--x a b`, at the place of the first.

    Args:
        names: of the flags that are lists.
    """
    items: dict[str, list[str]] = {name: [] for name in names}
    parts: list[list[str]] = []
    current: list[str] | None = None
    for word in argv:
        flag, _, text = word.partition("=")
        if not _is_flag(word):
            if current is None:
                parts.append([word])
            else:
                current += split_items(word)
        elif (current := items.get(flag[2:].replace("-", "_"))) is None:
            parts.append([word])
        else:
            if not any(part is current for part in parts):
                parts += [[flag], current]
            current += split_items(text)
    return [word for part in parts for word in part]


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _unexpected(word: str, command: str) -> UserError:
    return UserError(f"unexpected argument '{word}' on the command line of {command}; options read --key value.")
