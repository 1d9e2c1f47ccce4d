"""Text to tokens, exactly: prompts and responses in, token ids or the reason why not out.

Prefix and continuation are tokenised separately and concatenated as ids. The ids made here are the ids that are
sampled from, scored, stored and trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, first_line

# Reason and detail of a reject, see data.schema.
Problem = tuple[str, str]

# Share of a text's tokens that is the prefix, in percent (task continuation; the paper's).
PREFIX_PERCENT = 15


@dataclass(frozen=True)
class Encoded:
    """A prompt and a response in tokens.

    Attributes:
        prompt, response: the texts, as they are shown.
        response_ids: the last one is EOS.
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
    response would end in its middle; such a row is refused. What the tokenizer itself puts around a prompt stays, and
    so do the special tokens of a chat template. A row that does not fit into `max_length` is refused.

    Raises:
        UserError: all prompts are messages and the tokenizer has no chat template.
    """
    chats = [i for i, (prompt, _) in enumerate(pairs) if isinstance(prompt, list)]
    texts = [i for i, (prompt, _) in enumerate(pairs) if not isinstance(prompt, list)]
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
    by_row = dict(zip([*chats, *texts], [*encoded_chats, *encoded_texts], strict=True))
    return [by_row[i] for i in range(len(pairs))]


def encode_continuations(pairs: Sequence[tuple[Any, Any]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    """Tokens of texts (the first of each pair), cut at 15% of their tokens, rounded down, but never to nothing.

    A text is tokenised once. The BOS that the tokenizer puts before a text comes before the prefix. A text that does
    not fit into `max_length` with BOS and EOS is cut at its end first.
    """
    special, bos, outcomes = special_ids(tokenizer), _bos(tokenizer), []
    room = max(0, max_length - len(bos) - 1)
    for ids in _tokenize(tokenizer, [text for text, _ in pairs], add_special_tokens=False):
        if isinstance(ids, tuple):
            outcomes.append(ids)
            continue
        kept = ids[:room]
        if len(kept) < 2:
            outcomes.append(("too few tokens to continue", f"{len(kept)}, but a prefix and a continuation need 2"))
            continue
        if found := special.intersection(kept):
            outcomes.append(("special token in text", _spell(found, tokenizer)))
            continue
        cut = max(1, len(kept) * PREFIX_PERCENT // 100)
        prompt, response = (tokenizer.decode(part, skip_special_tokens=True) for part in (kept[:cut], kept[cut:]))
        if not prompt.strip() or not response.strip():
            outcomes.append((f"empty {'response' if prompt.strip() else 'prompt'}", "this part of the text is blank"))
            continue
        response_ids = [*kept[cut:], tokenizer.eos_token_id]
        outcomes.append(Encoded(prompt, response, [*bos, *kept[:cut]], response_ids, truncated=len(ids) > room))
    return outcomes


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens, but for one that only stands for unknown characters: ordinary text gives it."""
    added = getattr(tokenizer, "added_tokens_decoder", {})  # a chat model's control tokens may be in no other list
    special = set(tokenizer.all_special_ids) | {token_id for token_id, token in added.items() if token.special}
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        special.discard(tokenizer.unk_token_id)
    return special


def leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before each text: its BOS, or nothing."""
    with_special, bare = _probed(tokenizer)
    starts = range(len(with_special) - len(bare) + 1)
    return with_special[: next((i for i in starts if with_special[i : i + len(bare)] == bare), 0)]


def _encode_texts(pairs: Sequence[tuple[str, str]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    special = special_ids(tokenizer)
    bare_prompts = prompts = _tokenize(tokenizer, [prompt for prompt, _ in pairs], add_special_tokens=False)
    if _adds_special_tokens(tokenizer):
        prompts = _tokenize(tokenizer, [prompt for prompt, _ in pairs], add_special_tokens=True)
    responses = _tokenize(tokenizer, [response for _, response in pairs], add_special_tokens=False)
    outcomes: list[Encoded | Problem] = []
    for (prompt, response), *ids in zip(pairs, prompts, bare_prompts, responses, strict=True):
        if failure := next((part for part in ids if isinstance(part, tuple)), None):
            outcomes.append(failure)
            continue
        prompt_ids, bare_ids, bare_response = ids
        encoded = Encoded(prompt, response, prompt_ids, [*bare_response, tokenizer.eos_token_id])
        outcomes.append(_written_special(bare_ids, bare_response, special, tokenizer) or _fitting(encoded, max_length))
    return outcomes


def _encode_chats(pairs: Sequence[tuple[list, list]], tokenizer: Any, max_length: int) -> list[Encoded | Problem]:
    """What the template writes up to the assistant's turn is the prompt; what it writes after that, the response.

    The response ends with the first EOS that the template writes after it, or with one of ours.
    """
    special, eos = special_ids(tokenizer), tokenizer.eos_token_id
    templated = [_apply_template(tokenizer, prompt, response) for prompt, response in pairs]
    texts = [("", "") if failure else (opening, rest) for opening, rest, failure in templated]
    prompts = _tokenize(tokenizer, [opening for opening, _ in texts], add_special_tokens=False)
    rests = _tokenize(tokenizer, [rest for _, rest in texts], add_special_tokens=False)
    said = [[_said(messages) for messages in pair] for pair in pairs]
    written_prompts = _tokenize(tokenizer, [prompt for prompt, _ in said], add_special_tokens=False)
    written_responses = _tokenize(tokenizer, [response for _, response in said], add_special_tokens=False)
    outcomes: list[Encoded | Problem] = []
    for row, (messages, response) in enumerate(pairs):
        ids = prompts[row], rests[row], written_prompts[row], written_responses[row]
        failure = templated[row][2] or next((part for part in ids if isinstance(part, tuple)), None)
        if failure:
            outcomes.append(failure)
            continue
        prompt_ids, rest, written_prompt, written_response = ids
        response_ids = [*rest[: rest.index(eos)], eos] if eos in rest else [*rest, eos]
        (opening, rest_text), content = texts[row], response[0]["content"]
        shown = next((text for text in (content, content.strip()) if text in rest_text), None)
        if shown is None:  # a template that rewrites what the assistant says
            shown = tokenizer.decode(response_ids, skip_special_tokens=True)
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        encoded = Encoded(opening, shown, prompt_ids, response_ids, messages=plain)
        found = _written_special(written_prompt, written_response, special, tokenizer)
        outcomes.append(found or _fitting(encoded, max_length))
    return outcomes


def _apply_template(tokenizer: Any, prompt: list, response: list) -> tuple[str, str, Problem | None]:
    """The text before the response and the text of it."""
    try:
        opening = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*prompt, *response], tokenize=False)
    except Exception as error:  # templates are programs, and refuse what they like
        return "", "", ("chat template failed", first_line(error))
    if not whole.startswith(opening):
        return "", "", ("chat template rewrites the prompt", "with the response, it does not begin as without")
    return opening, whole[len(opening) :], None


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


def _written_special(prompt: list[int], response: list[int], special: set[int], tokenizer: Any) -> Problem | None:
    for name, ids in (("prompt", prompt), ("response", response)):
        if found := special.intersection(ids):
            return f"special token in {name}", _spell(found, tokenizer)
    return None


def _tokenize(tokenizer: Any, texts: Sequence[str], add_special_tokens: bool) -> list[Any]:
    """Ids of each text, or a Problem where the tokenizer fails on it: then the texts are tried one by one."""

    def ids_of(texts: Sequence[str]) -> list[Any]:
        return tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]

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


def _bos(tokenizer: Any) -> list[int]:
    """The BOS that the tokenizer puts before a text, if it does."""
    bos = [tokenizer.bos_token_id]
    with_special, bare = _probed(tokenizer)
    return bos if with_special[:1] == bos != bare[:1] else []


def _adds_special_tokens(tokenizer: Any) -> bool:
    with_special, bare = _probed(tokenizer)
    return with_special != bare


def _probed(tokenizer: Any) -> list[list[int]]:
    """Ids of some text with and without the special tokens that the tokenizer adds."""
    return [tokenizer(["a"], add_special_tokens=added)["input_ids"][0] for added in (True, False)]


def _spell(ids: set[int], tokenizer: Any) -> str:
    return " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids)))
