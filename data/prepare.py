"""Text to tokens, exactly (DESIGN section 3): examples in, groups without negatives and rejects out.

Prefix and continuation are tokenised separately and concatenated as ids. The ids made here are the ids that are
sampled from, scored, stored and trained on.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data.errors import UserError
from data.schema import Group, Reject
from data.sources import Example

# What happens to a row that does not fit into the model's context; written into the manifest.
OVER_LONG_POLICY = "reject"


def prepare_groups(examples: Sequence[Example], tokenizer: Any, max_length: int) -> tuple[list[Group], list[Reject]]:
    """Tokenise examples into groups; every example becomes either a group or a reject with a reason.

    A special token written out in a text (`<|endoftext|>`) would be tokenised as the special token itself, so that a
    response would end in its middle; such a row is rejected. What the tokenizer itself puts around a prompt stays.

    Args:
        tokenizer: transformers tokenizer with an EOS token.
        max_length: the model's context in tokens; prefix + continuation must fit.
    """
    groups: list[Group] = []
    rejects: list[Reject] = []
    usable: list[Example] = []
    seen: set[str] = set()
    for example in examples:
        problem = _problem(example, seen)
        seen.add(example.id)
        if problem:
            rejects.append(_reject(example, *problem))
        else:
            usable.append(example)
    if not usable:
        return groups, rejects

    prompts = tokenizer([e.prompt for e in usable])["input_ids"]
    bare_prompts = tokenizer([e.prompt for e in usable], add_special_tokens=False)["input_ids"]
    responses = tokenizer([e.response for e in usable], add_special_tokens=False)["input_ids"]
    special = _special_ids(tokenizer)
    for example, prompt_ids, bare_ids, bare_response in zip(usable, prompts, bare_prompts, responses, strict=True):
        response_ids = [*bare_response, tokenizer.eos_token_id]
        if not prompt_ids:
            rejects.append(_reject(example, "empty prompt", "the tokenizer gives no token for it"))
        elif not bare_response:
            rejects.append(_reject(example, "empty response", "the tokenizer gives no token for it"))
        elif found := special.intersection(bare_ids):
            rejects.append(_reject(example, "special token in prompt", _spell(found, tokenizer)))
        elif found := special.intersection(bare_response):
            rejects.append(_reject(example, "special token in response", _spell(found, tokenizer)))
        elif len(prompt_ids) >= max_length:
            rejects.append(_reject(example, "prompt too long", f"{len(prompt_ids)} tokens, context {max_length}"))
        elif len(prompt_ids) + len(response_ids) > max_length:
            detail = f"{len(prompt_ids)} + {len(response_ids)} tokens, context {max_length}"
            rejects.append(_reject(example, "prompt and response too long", detail))
        else:
            groups.append(
                Group(example.id, example.prompt, example.response, prompt_ids, response_ids, split=example.split)
            )
    return groups, rejects


def require_groups(groups: Sequence[Group], rejects: Sequence[Reject], where: str) -> None:
    """Raise UserError if nothing is left to work on, saying why the rows were rejected."""
    if groups:
        return
    raise UserError(f"no usable row in {where}: {describe_rejects(rejects)}. Fix the data or choose other rows.")


def describe_rejects(rejects: Sequence[Reject]) -> str:
    """E.g. "3 rejected (2 empty response, 1 prompt too long: 1100 tokens, context 1024)"."""
    counts = Counter(r.reason for r in rejects).most_common()
    examples = {r.reason: r.detail for r in rejects}
    parts = [f"{n} {reason}" + (f": {examples[reason]}" if examples[reason] else "") for reason, n in counts]
    return f"{len(rejects)} rejected ({'; '.join(parts)})" if parts else "0 rejected"


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens, but for one that only stands for unknown characters: ordinary text gives it."""
    special = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        special.discard(tokenizer.unk_token_id)
    return special


def _spell(ids: set[int], tokenizer: Any) -> str:
    return " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids)))


def _problem(example: Example, seen: set[str]) -> tuple[str, str] | None:
    for name, text in (("prompt", example.prompt), ("response", example.response)):
        if not isinstance(text, str):
            return f"{name} is not text", f"it is {type(text).__name__}"
        if not text.strip():
            return f"empty {name}", ""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"{name} is not valid Unicode", error.reason
    if example.id in seen:
        return "duplicate", "same prompt and response as an earlier row"
    return None


def _reject(example: Example, reason: str, detail: str) -> Reject:
    shown = str(example.prompt)[:200].encode("utf-8", "replace").decode()
    return Reject(example.id, reason, detail, shown)
