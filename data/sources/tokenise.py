"""Texts to ids: whole, or as the continuation of something, so that a text in parts is the text as a whole."""

from collections.abc import Sequence
from typing import Any

from data.command.errors import first_line

# What stands in front of a continuation while it is tokenised. One of them does not melt into what follows it.
ANCHORS = ("\n", "=", "0", "a")
WORD = "there"


def tokenise(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """Ids of each text, without special tokens of the tokenizer's own.

    Of a text that the tokenizer fails on there is a reason and detail instead, see `data.schema.Reject`: then the texts
    are tried one by one.
    """

    def ids_of(texts: Sequence[str]) -> list[Any]:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def ids_or_problem(text: str) -> Any:
        try:
            return ids_of([text])[0]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return "tokenizer failed", first_line(error)

    if not texts:
        return []
    try:
        return ids_of(texts)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic in the tokenizer's Rust code is no Exception
        return [ids_or_problem(text) for text in texts]


def tokenise_continuations(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """Ids of each text as it stands behind another one, see `tokenise`; whatever the other one is.

    SentencePiece puts a space before a text: ` there` alone is `_`, `_there`, behind a word it is `_there`, and `ther`
    alone is `_ther`. Such a tokenizer gets the text behind an anchor, whose own ids are then taken off. For any other,
    such as byte-level BPE, a continuation is what it is alone.
    """
    found = tokenise(tokenizer, texts)
    if not _changes_beginnings(tokenizer):
        return found
    todo = [number for number, ids in enumerate(found) if isinstance(ids, list)]
    for anchor in ANCHORS:
        start = tokenise(tokenizer, [anchor])[0]
        behind = tokenise(tokenizer, [anchor + texts[number] for number in todo])
        taken = {number: _rest(start, whole) for number, whole in zip(todo, behind, strict=True)}
        found = [taken.get(number) or ids for number, ids in enumerate(found)]
        todo = [number for number, rest in taken.items() if not rest]
    return found


def tokenise_behind(tokenizer: Any, prompts: Sequence[str], rests: Sequence[str]) -> list[tuple[Any, Any]]:
    """Ids of each prompt and of what follows it: both texts are tokenised as one, which is cut where the second begins.

    Where a token would straddle the cut, the prompt keeps the tokens that it has alone, as a model that is asked to go
    on is given it, and the rest is tokenised as a continuation of it.
    """
    of_prompts = tokenise(tokenizer, prompts)
    wholes = tokenise(tokenizer, [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)])
    of_rests = [_rest(prompt, whole) for prompt, whole in zip(of_prompts, wholes, strict=True)]
    straddled = [number for number, ids in enumerate(of_rests) if ids is None]
    continued = tokenise_continuations(tokenizer, [rests[number] for number in straddled])
    for number, ids in zip(straddled, continued, strict=True):
        of_rests[number] = ids
    return list(zip(of_prompts, of_rests, strict=True))


def _rest(start: Any, whole: Any) -> list[int] | None:
    """What follows in ids that begin with those of a start; None if they do not, or if one of them is a failure."""
    if not isinstance(start, list) or not isinstance(whole, list) or whole[: len(start)] != start:
        return None
    return whole[len(start) :]


def _changes_beginnings(tokenizer: Any) -> bool:
    """Whether the tokenizer gives a word other ids at the beginning of a text than behind something."""
    alone, *rest = tokenise(tokenizer, [WORD, *ANCHORS, *(anchor + WORD for anchor in ANCHORS)])
    starts, wholes = rest[: len(ANCHORS)], rest[len(ANCHORS) :]
    behind = [_rest(start, whole) for start, whole in zip(starts, wholes, strict=True) if start]
    return any(ids and ids != alone for ids in behind)
