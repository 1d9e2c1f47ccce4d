"""Whether other trainers make of an export's texts the ids that the set has."""

from collections.abc import Sequence
from typing import Any

from data.command.errors import UserError
from data.schema import Candidate, Group
from data.shards import NegativeSet
from negatives_gen.verbs.export_rows import by_assistant


def tokenizer_of(negatives: NegativeSet, chats: bool) -> Any:
    """The tokenizer that the set was made with, or None where the manifest's model, as it was, is not to be had.

    Args:
        chats: whether its chat template counts.
    """
    from data.models import chat_template_hash, load_tokenizer, tokenizer_hash
    from negatives_gen.job.job import local_path

    job = negatives.manifest.job
    try:
        tokenizer = load_tokenizer(local_path(job["model"]["name"]))
    except UserError:
        return None
    known = job["tokenizer"]
    if chats and chat_template_hash(tokenizer) != known.get("chat_template_sha256"):
        return None
    return tokenizer if tokenizer_hash(tokenizer) == known["sha256"] else None


def count_inexact(pairs: Sequence[tuple[Group, Candidate | None]], tokenizer: Any) -> int:
    """How many rows TRL tokenises to other ids than the set's: it tokenises prompt + text + EOS in one.

    Of a chat the template writes all of it.
    """
    if pairs and pairs[0][0].messages is not None:
        return sum(not _is_exact_chat(group, candidate, tokenizer) for group, candidate in pairs)
    wanted: list[list[int]] = []
    texts: list[str] = []
    for group, candidate in pairs:
        for text, ids in [
            (group.response, group.response_ids),
            *([(candidate.text, candidate.ids)] if candidate else []),
        ]:
            texts.append(group.prompt + text + ("" if text.endswith(tokenizer.eos_token) else tokenizer.eos_token))
            wanted.append([*group.prompt_ids, *ids])
    if not texts:
        return 0
    prompts = tokenizer([group.prompt for group, _ in pairs])["input_ids"]
    same = [ours == theirs for ours, theirs in zip(tokenizer(texts)["input_ids"], wanted, strict=True)]
    each = len(texts) // len(pairs)
    return sum(
        prompts[row] != pair[0].prompt_ids or not all(same[row * each : (row + 1) * each])
        for row, pair in enumerate(pairs)
    )


def _is_exact_chat(group: Group, candidate: Candidate | None, tokenizer: Any) -> bool:
    messages = group.messages or []
    answers = [(group.response, group.response_ids), *([(candidate.text, candidate.ids)] if candidate else [])]
    try:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        wholes = [
            tokenizer.apply_chat_template([*messages, *by_assistant(text)], return_dict=True)["input_ids"]
            for text, _ in answers
        ]
    except Exception:  # templates are programs, and refuse what they like
        return False
    wanted = [[*group.prompt_ids, *ids] for _, ids in answers]
    return prompt == group.prompt_ids and wholes == wanted
