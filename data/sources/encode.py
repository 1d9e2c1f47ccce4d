"""Text to tokens, exactly: prompts and responses in, token ids or the reason why not out.

The ids of a prompt and of its continuation are joined as ids; together they are those of the whole text
(`data.sources.tokenise`). They are the ids that are sampled from, scored, stored and trained on.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, first_line
from data.sources.tokenise import tokenise, tokenise_behind, tokenise_continuations
from data.tokens import PROBE, Marks, marks_of, text_behind, through_first_end

# Reason and detail of a reject, see data.schema.
Problem = tuple[str, str]

# Share of a text's tokens that is the prefix, in percent (task continuation; the paper's).
PREFIX_PERCENT = 15
# Characters: a text of more than so many for each token of the context is too long without being tokenised, which takes
# minutes for one of a gigabyte.
LONGEST_TOKEN = 1000
LONGEST_REASON = 40  # characters of a field's name in the reason of a reject


@dataclass(frozen=True)
class Encoded:
    """A prompt and a response in tokens.

    Attributes:
        prompt, response: the texts, as they are shown.
        response_ids: the last one, and no other, is an end (`data.tokens.Marks`).
        truncated: whether the text was cut to the longest length.
        messages: of a chat, those of the prompt.
    """

    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]
    truncated: bool = False
    messages: list[dict[str, str]] | None = None


# Pairs (prompt, response), tokenizer, longest length in tokens -> for each pair its tokens, or why there are none.
Encode = Callable[[Sequence[tuple[Any, Any]], Any, int], list[Encoded | Problem]]


def encode_pairs(pairs: Sequence[tuple[Any, Any]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    """Tokens of prompts with their responses: two texts, or two lists of messages with one message in the second.

    A special token written out in a text (`<|endoftext|>`) would be tokenised as the special token itself, so that a
    response would end in its middle; such a row is refused. What the tokenizer itself puts before a prompt stays, and
    so do the special tokens of a chat template. A row that does not fit into `max_length` is refused.

    Raises:
        UserError: all prompts are messages and the tokenizer has no chat template.
    """
    sizes = ((row, *map(_characters, pair)) for row, pair in enumerate(pairs))
    long: dict[int, Encoded | Problem] = {
        row: (
            "prompt too long" if prompt > max_length * LONGEST_TOKEN else "prompt and response too long",
            f"{prompt} + {response} characters, context {max_length} tokens",
        )
        for row, prompt, response in sizes
        if prompt + response > max_length * LONGEST_TOKEN
    }
    chats = [i for i, (prompt, _) in enumerate(pairs) if isinstance(prompt, list) and i not in long]
    texts = [i for i, (prompt, _) in enumerate(pairs) if not isinstance(prompt, list) and i not in long]
    if chats and not getattr(tokenizer, "chat_template", None):
        if not texts:
            raise UserError(
                "the model's tokenizer has no chat template, which prompts made of messages need. Use a chat model, or "
                "a data set with texts as prompts and completions."
            )
        encoded_chats: list[Encoded | Problem] = [("no chat template", "the prompt is a list of messages")] * len(chats)
    else:
        encoded_chats = _encode_chats([pairs[i] for i in chats], tokenizer, max_length)
    encoded_texts = _encode_texts([pairs[i] for i in texts], tokenizer, max_length)
    by_row = long | dict(zip([*chats, *texts], [*encoded_chats, *encoded_texts], strict=True))
    return [by_row[i] for i in range(len(pairs))]


def encode_continuations(pairs: Sequence[tuple[Any, Any]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    """Tokens of texts (the first of each pair), cut at 15% of their tokens, rounded down, but never to nothing.

    A text is tokenised once. The BOS that the tokenizer puts before a text comes before the prefix. A text that does
    not fit into `max_length` with BOS and EOS is cut at its end first.
    """
    marks, outcomes = marks_of(tokenizer), []
    room = max(0, max_length - len(marks.leading) - 1)
    for ids in tokenise(tokenizer, [text[: max_length * LONGEST_TOKEN] for text, _ in pairs]):
        if isinstance(ids, tuple):
            outcomes.append(ids)
            continue
        kept = ids[:room]
        if len(kept) < 2:
            outcomes.append(("too few tokens to continue", f"{len(kept)}, but a prefix and a continuation need 2"))
            continue
        if found := marks.written.intersection(kept):
            outcomes.append(("special token in text", _spell(found, tokenizer)))
            continue
        cut = max(1, len(kept) * PREFIX_PERCENT // 100)
        prompt = tokenizer.decode(kept[:cut], skip_special_tokens=True)
        response = text_behind(tokenizer, kept[:cut], kept[cut:], ())
        if not prompt.strip() or not response.strip():
            outcomes.append((f"empty {'response' if prompt.strip() else 'prompt'}", "this part of the text is blank"))
            continue
        response_ids = [*kept[cut:], marks.eos]
        outcomes.append(Encoded(prompt, response, [*marks.leading, *kept[:cut]], response_ids, len(ids) > room))
    return outcomes


def lost_field(prompt: Any, response: Any, besides: Sequence[dict[str, Any]], tokenizer: Any) -> Problem | None:
    """What a set cannot keep of a row that says more than prompt and response, or None if nothing gets lost.

    Of texts that is any field of the row, which no template is given; of messages a field that the tokenizer's chat
    template writes, or fails by, since judges and reward models are shown role and text alone.

    Args:
        besides: see `data.sources.tasks.Task.besides`.
    """
    if not isinstance(prompt, list):
        return _unkept(next(iter(besides[0]))), "beside a text, of which prompt and response are kept"
    messages, opens = [*prompt, *response], len(prompt)

    def rendered(more: Sequence[dict[str, Any]]) -> tuple[str, str] | Problem:
        whole = [{**fields, **message} for fields, message in zip(more, messages, strict=True)]
        opening, rest, failure = _rendered(tokenizer, whole[:opens], whole[opens:])
        return failure or (opening, rest)

    nothing: list[dict[str, Any]] = [{} for _ in messages]
    plain = rendered(nothing)
    if rendered(besides) == plain:
        return None
    for number, fields in enumerate(besides):
        for name, value in fields.items():
            alone = [*nothing[:number], {name: value}, *nothing[number + 1 :]]
            if rendered(alone) != plain:
                part, place = ("prompt", number + 1) if number < opens else ("response", number - opens + 1)
                return _unkept(name), f"message {place} of the {part}: the chat template writes it"
    return _unkept("fields"), "the chat template writes more than role and text of the messages"


def _unkept(name: str) -> str:
    """The reason of a reject whose field would get lost; reasons are counted, and stand in manifests."""
    return f"{name[:LONGEST_REASON]} cannot be kept"


def _encode_texts(pairs: Sequence[tuple[str, str]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    """The response is tokenised as a continuation, whatever the prompt is: as what BN lends to other prompts is."""
    marks = marks_of(tokenizer)
    prompts = tokenise(tokenizer, [prompt for prompt, _ in pairs])
    responses = tokenise_continuations(tokenizer, [response for _, response in pairs])
    outcomes: list[Encoded | Problem] = []
    for (prompt, response), *ids in zip(pairs, prompts, responses, strict=True):
        if failure := next((part for part in ids if isinstance(part, tuple)), None):
            outcomes.append(failure)
            continue
        of_prompt, of_response = ids
        encoded = Encoded(prompt, response, [*marks.leading, *of_prompt], [*of_response, marks.eos])
        outcomes.append(_written_special(of_prompt, of_response, marks, tokenizer) or _fitting(encoded, max_length))
    return outcomes


def _encode_chats(pairs: Sequence[tuple[list, list]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    """What the template writes up to the assistant's turn is the prompt; what it writes after that, the response.

    The response ends with the first end that the template writes after it, or with an EOS of ours.
    """
    marks = marks_of(tokenizer)
    templated = [_apply_template(tokenizer, prompt, response) for prompt, response in pairs]
    texts = [("", "") if failure else (opening, rest) for opening, rest, failure in templated]
    tokenised = tokenise_behind(tokenizer, [opening for opening, _ in texts], [rest for _, rest in texts])
    said = [[_said(messages) for messages in pair] for pair in pairs]
    written_prompts = tokenise(tokenizer, [prompt for prompt, _ in said])
    written_responses = tokenise(tokenizer, [response for _, response in said])
    outcomes: list[Encoded | Problem] = []
    for row, (messages, response) in enumerate(pairs):
        ids = *tokenised[row], written_prompts[row], written_responses[row]
        failure = templated[row][2] or next((part for part in ids if isinstance(part, tuple)), None)
        if failure:
            outcomes.append(failure)
            continue
        prompt_ids, rest, written_prompt, written_response = ids
        response_ids = through_first_end(rest, marks)
        opening, rest_text = texts[row]
        # Such a token, which the template writes behind the answer, is what ends a turn: nothing would stop there.
        behind = rest_text.rpartition(response[0]["content"].strip())[2]
        ending = [t for t in marks.written.intersection(response_ids[:-1]) if tokenizer.decode([t]) in behind]
        if ending and not marks.shows_turn_end:
            outcomes.append(("chat template's end unknown", f"{_spell(ending, tokenizer)} behind the response"))
            continue
        shown = _as_written(response[0]["content"], rest_text, tokenizer.decode(response_ids[-1:]))
        if shown is None:
            shown = text_behind(tokenizer, prompt_ids, response_ids, marks.ends)
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        encoded = Encoded(opening, shown, prompt_ids, response_ids, messages=plain)
        found = _written_special(written_prompt, written_response, marks, tokenizer)
        outcomes.append(found or _fitting(encoded, max_length))
    return outcomes


def _apply_template(tokenizer: Any, prompt: list, response: list) -> tuple[str, str, Problem | None]:
    """The text before the response and the text of it."""
    opening, rest, failure = _rendered(tokenizer, prompt, response)
    return opening, rest, failure or left_out(tokenizer, [*prompt, *response], opening + rest)


def _rendered(tokenizer: Any, prompt: list, response: list) -> tuple[str, str, Problem | None]:
    try:
        opening = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*prompt, *response], tokenize=False)
    except Exception as error:  # templates are programs, and refuse what they like
        return "", "", ("chat template failed", first_line(error))
    if not whole.startswith(opening):
        return "", "", ("chat template rewrites the prompt", "with the response, it does not begin as without")
    return opening, whole[len(opening) :], None


def left_out(tokenizer: Any, messages: list[dict[str, str]], whole: str) -> Problem | None:
    """The first message that the template writes nothing of, such as a tool's turn where it knows of none, or cuts.

    One of which nothing is written could say something else without a difference: a text that is seen may be another
    message's. Nearly always one rendering shows it of all of them: each says a number behind its text, which only its
    own turn can hold. One that is cut, as many a template does what stands before </think>, is not to be seen whole,
    and neither is a number in front of it.
    """
    numbers = [f"{PROBE}{number:08d}" for number in range(len(messages))]
    pairs = zip(messages, numbers, strict=True)
    told = [{**message, "content": message["content"] + number} for message, number in pairs]
    try:
        seen = tokenizer.apply_chat_template(told, tokenize=False) if PROBE not in whole else ""
    except Exception:  # it minds what is said; which message it reads is tried one by one
        seen = ""
    for number, message in enumerate(messages):
        if not message["content"].strip() or numbers[number] in seen:
            continue
        try:
            if tokenizer.apply_chat_template(_saying(messages, number, "", PROBE), tokenize=False) == whole:
                return "chat template leaves out a message", f"message {number + 1}, of role '{message['role']}'"
        except Exception:  # it minds what is said, so it reads it
            continue
    seen_of_all = _letters(whole)
    for number, message in enumerate(messages):
        if _letters(message["content"]) in seen_of_all:
            continue
        try:
            if PROBE not in tokenizer.apply_chat_template(_saying(messages, number, PROBE, ""), tokenize=False):
                return "chat template cuts a message", f"the beginning of message {number + 1}, '{message['role']}'"
        except Exception:
            continue
    return None


def _saying(messages: list[dict[str, str]], number: int, before: str, behind: str) -> list[dict[str, str]]:
    """The messages, of which one says something in front of its text or behind it."""
    message = messages[number]
    said = {**message, "content": before + message["content"] + behind}
    return [*messages[:number], said, *messages[number + 1 :]]


def _letters(text: str) -> str:
    """A text without its white space, which templates trim and add."""
    return "".join(text.split())


def _as_written(content: str, written: str, end: str) -> str | None:
    """What the assistant says, if the template writes that and nothing else before the end.

    None of one that rewrites it, or puts a space before it: candidates are decoded from ids, which hold that space, and
    their texts must not differ from the truth's by it.
    """
    for text in (content, content.strip()):
        rest = written.removeprefix(text)
        if written.startswith(text) and (not rest or rest.startswith(end)):
            return text
    return None


def _characters(part: Any) -> int:
    """The length of a text, or of what messages say."""
    return len(part if isinstance(part, str) else _said(part))


def _said(messages: list[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']}\n{message['content']}" for message in messages)


def _fitting(encoded: Encoded, max_length: int) -> Encoded | Problem:
    prompt, response = len(encoded.prompt_ids), len(encoded.response_ids)
    if not prompt or response == 1:
        return f"empty {'response' if prompt else 'prompt'}", "the tokenizer gives no token for it"
    if prompt >= max_length:
        return "prompt too long", f"{prompt} tokens, context {max_length}"
    if prompt + response > max_length:
        return "prompt and response too long", f"{prompt} + {response} tokens, context {max_length}"
    return encoded


def _written_special(prompt: list[int], response: list[int], marks: Marks, tokenizer: Any) -> Problem | None:
    for name, ids in (("prompt", prompt), ("response", response)):
        if found := marks.written.intersection(ids):
            return f"special token in {name}", _spell(found, tokenizer)
    return None


def _spell(ids: Iterable[int], tokenizer: Any) -> str:
    return " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids)))
