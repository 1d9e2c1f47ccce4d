"""Which ids of a tokenizer are no text: what ends a continuation, and what is special. The one definition of both.

Works on any transformers tokenizer and imports nothing heavy. What lies beside a model and is an end too
(generation_config.json) comes with the tokenizer: `data.models.load_tokenizer` reads it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.deadline import within
from data.command.errors import UserError

# The attribute of a tokenizer that holds what its model's files say: for `declare` and `declared` alone.
DECLARED = "declared_by_its_model"
# What a probe of a chat template has the assistant say: no template writes it, trims it or changes its case.
PROBE = "7391846205"
# Tokens in front of a continuation that are decoded with it, so that it reads as it does there.
CONTEXT = 16
LONGEST_RENDERING = 30.0  # seconds, of a chat template, which is a program that may never end
INCOMPLETE = "\ufffd"
# How control tokens are written; a word that was added to a vocabulary is none, though a template may hold it.
BRACKETED = re.compile(r"[<\[{|\uff5c]\S+[>\]}|\uff5c]")


@dataclass(frozen=True)
class Declared:
    """What a model's files say of its tokenizer's ids. Of a tokenizer without a model they say nothing.

    Attributes:
        ends: ids of generation_config.json that end a continuation beside EOS.
        rows: of the embedding; None where they are not known.
    """

    ends: tuple[int, ...] = ()
    rows: int | None = None


def declare(tokenizer: Any, said: Declared) -> None:
    """Leave with a tokenizer what its model's files say. `data.models.load_tokenizer` does."""
    setattr(tokenizer, DECLARED, said)


def declared(tokenizer: Any) -> Declared:
    """What a tokenizer's model says of its ids."""
    return getattr(tokenizer, DECLARED, Declared())


@dataclass(frozen=True)
class Marks:
    """The ids of a tokenizer that are no text.

    Attributes:
        eos: the tokenizer's own end, put behind a text that nothing else ends.
        ends: ids that end a continuation: eos, those of generation_config.json, and what the chat template ends an
            assistant's turn with. Engine, encoding, strategies, verify and evaluation go by these alone.
        special: special tokens, also those of `added_tokens_decoder` alone, the ends, and added tokens in brackets
            that the chat template writes around what is said: nothing else may put them into the middle of a
            continuation.
        written: of the special ones, those that a text may not hold, which is all but one that only stands for unknown
            characters: ordinary text gives that.
        leading: what the tokenizer puts before each text, such as its BOS.
        shows_turn_end: whether the chat template showed what it writes behind what an assistant says; it may refuse.
    """

    eos: int
    ends: frozenset[int]
    special: frozenset[int]
    written: frozenset[int]
    leading: tuple[int, ...]
    shows_turn_end: bool


def marks_of(tokenizer: Any) -> Marks:
    """The marks of a tokenizer as it is now. Takes milliseconds: ask once for many rows."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    eos, unk = tokenizer.eos_token_id, tokenizer.unk_token_id
    turns = _written_turns(tokenizer)
    ends = frozenset({eos, *declared(tokenizer).ends, *_turn_end(turns, added)}) - {None}
    special = ends | set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}
    special |= _turn_marks(turns, added)
    only_unknown = unk not in (tokenizer.bos_token_id, eos, tokenizer.pad_token_id) and unk not in ends
    written = special - {unk} if only_unknown else special
    return Marks(eos, ends, special, written, leading_ids(tokenizer), shows_turn_end=PROBE in turns)


def never_drawn(tokenizer: Any, marks: Marks) -> list[int]:
    """The ids that must not stand in a continuation by chance: special ones, ends, and rows that no token has.

    An embedding is often padded to a round number of rows.
    """
    rows = declared(tokenizer).rows or 0
    nameless = set(range(rows)).difference(tokenizer.get_vocab().values()) if rows > len(tokenizer) else set()
    return sorted(marks.special | nameless)


def describe_ends(marks: Marks) -> dict[str, Any]:
    """What a manifest says of the ends: EOS, and all of them where there are more."""
    more = {"end_token_ids": sorted(marks.ends)} if marks.ends != {marks.eos} else {}
    return {"eos_token_id": marks.eos, **more}


def described_ends(tokenizer: Mapping[str, Any]) -> frozenset[int]:
    """The ends that a manifest's `job.tokenizer` speaks of, see `describe_ends`."""
    return frozenset(tokenizer.get("end_token_ids", [tokenizer["eos_token_id"]]))


def through_first_end(ids: Sequence[int], marks: Marks) -> list[int]:
    """Ids up to their first end, or all of them and EOS if there is none."""
    first = next((place for place, token in enumerate(ids) if token in marks.ends), None)
    return [*ids, marks.eos] if first is None else list(ids[: first + 1])


def text_behind(tokenizer: Any, before: Sequence[int], ids: Sequence[int], ends: Collection[int]) -> str:
    """The text of a continuation as it reads behind its prompt, without special tokens and without its end.

    Decoded by itself it would lose its leading space where the tokenizer marks the beginnings of words (SentencePiece).

    Args:
        before: ids of the prompt.
        ends: that the continuation may end with: one may be no special token to the tokenizer.
    """
    said = list(ids[:-1]) if ids and ids[-1] in ends else list(ids)
    context = list(before[-CONTEXT:])
    start = tokenizer.decode(context, skip_special_tokens=True) if context else ""
    # Where the prompt ends in the middle of a character, it is a character in neither part.
    if start and not start.endswith(INCOMPLETE):
        whole = tokenizer.decode([*context, *said], skip_special_tokens=True)
        if whole.startswith(start):
            return whole[len(start) :]
    return tokenizer.decode(said, skip_special_tokens=True)


def require_rows(tokenizer: Any, rows: int | None, model: str) -> None:
    """Refuse a tokenizer that gives ids beyond a model's embedding, as where tokens were added and nothing resized.

    Special tokens that reach no model do no harm (Gemma's tokenizer has one for images, its text models have no row for
    it): those that the chat template does not name, and that nothing ends, begins or is padded with.

    Args:
        rows: of the embedding; None where they are not known.
        model: its name, for the error.

    Raises:
        UserError: an id is beyond the embedding.
    """
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if rows is not None and number >= rows}
    if not beyond:
        return
    marks, template = marks_of(tokenizer), str(getattr(tokenizer, "chat_template", None) or "")
    idle = marks.written - marks.ends - {*marks.leading, tokenizer.pad_token_id}
    harmful = [number for number, token in beyond.items() if number not in idle or token in template]
    if harmful:
        last = max(harmful)
        raise UserError(
            f"the tokenizer of '{model}' has {len(tokenizer)} tokens, the model's embedding {rows} rows (vocab_size of "
            f"its config.json): there is none for '{beyond[last]}', id {last}. Resize the embedding "
            "(resize_token_embeddings) and save the model again, or put back the tokenizer that it was trained with."
        )


def reading_of(tokenizer: Any) -> str:
    """What decides, beside hashes of tokenizer and settings, where a continuation ends and how it reads; "" if nothing.

    For keys of what is kept: nothing is said of a tokenizer whose chat template adds no end, and which decodes a
    continuation to the same text wherever it stands.
    """
    said = []
    if of_template := _turn_end(_written_turns(tokenizer), tokenizer.added_tokens_decoder) - {
        tokenizer.eos_token_id,
        *declared(tokenizer).ends,
    }:
        said.append(f"ends with {min(of_template)} too")
    word = tokenizer("the", add_special_tokens=False)["input_ids"]
    if text_behind(tokenizer, word, word, ()) != tokenizer.decode(word, skip_special_tokens=True):
        said.append("decoded behind the prompt")
    return ", ".join(said)


def leading_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before each text: its BOS, or nothing. What it puts behind one is no part of a prompt."""
    whole, bare = (tokenizer(["a"], add_special_tokens=added)["input_ids"][0] for added in (True, False))
    starts = range(len(whole) - len(bare) + 1)
    return tuple(whole[: next((i for i in starts if whole[i : i + len(bare)] == bare), 0)])


def _written_turns(tokenizer: Any) -> str:
    """`_probed`, or "" if there is no chat template. Raises UserError for one that never ends."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    with within(LONGEST_RENDERING, f"the chat template of '{getattr(tokenizer, 'name_or_path', '')}'"):
        return _probed(tokenizer)


def _turn_marks(turns: str, added: dict[int, Any]) -> set[int]:
    """Added tokens in brackets that stand around turns, which many a tokenizer does not mark as special.

    Not those of a pair such as <think> and </think>: a template may write them, and so may a model as part of a text.
    """
    texts = {token.content for token in added.values()}
    pairs = {text for text in texts if text.startswith("<") and f"</{text[1:]}" in texts}
    pairs |= {f"</{text[1:]}" for text in pairs}
    return {
        number
        for number, token in added.items()
        if BRACKETED.fullmatch(token.content) and token.content in turns and token.content not in pairs
    }


def _turn_end(turns: str, added: dict[int, Any]) -> set[int]:
    """The token that the chat template ends what the assistant says with: at most one.

    It is the added token that stands right behind the words, or, where the template writes something between, the
    first special one behind them.
    """
    _, found, rest = turns.rpartition(PROBE)
    rest = rest.lstrip()
    places = [
        (rest.find(token.content), -len(token.content), number)
        for number, token in added.items()
        if token.content.strip() and (token.special or rest.startswith(token.content))
    ]
    places = [place for place in places if place[0] >= 0]
    return {min(places)[2]} if found and places else set()


def _probed(tokenizer: Any) -> str:
    """What the chat template writes of conversations in which the assistant says PROBE; "" if it refuses them.

    Some take no system prompt, others no conversation without; the plainest that is taken comes last.
    """
    system, user = ({"role": role, "content": "a"} for role in ("system", "user"))
    said, written = {"role": "assistant", "content": PROBE}, []
    for turns in ([system, user], [user], [system, user, said], [user, said]):
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=turns[-1] is user)
        except Exception:  # templates are programs, and refuse what they like
            continue
        written.append(text)
    return "".join(written)
