"""AN: autoregressive negatives, sampled from the reference model given the prefix (paper section 4.2)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.schema import Candidate, Group, Reject

# Draws of `count` samples per group before it is given up; only groups that still lack candidates draw again.
MAX_ROUNDS = 8


class Sampler(Protocol):
    """What AN needs of an engine: `negatives_gen.engine.Engine.sample`."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        top_k: int,
        temperature: float,
        max_tokens: Sequence[int],
        seeds: Sequence[int],
    ) -> list[list[Any]]: ...


@dataclass(frozen=True)
class AutoregressiveSettings:
    """How AN samples; part of the manifest.

    Attributes:
        count: candidates per group.
        max_new_tokens: length of a candidate in tokens, at most; the model's context may leave less.
    """

    count: int
    top_k: int
    temperature: float
    max_new_tokens: int


def add_autoregressive(
    groups: Sequence[Group], sampler: Sampler, settings: AutoregressiveSettings, *, context: int, seed: int
) -> tuple[list[Group], list[Reject]]:
    """Give every group `count` sampled negatives that differ from its ground truth and from one another.

    Empty candidates and repeated texts are replaced by fresh draws. A group that still lacks candidates after
    MAX_ROUNDS draws is rejected.

    Args:
        context: the model's context in tokens.
        seed: the job's seed; a request's own seed is derived from it, the group's id and the round.

    Returns:
        Groups with their negatives appended (in place), and rejects; together as many as came in.
    """
    found: list[dict[str, Candidate]] = [{} for _ in groups]
    for round_number in range(MAX_ROUNDS):
        open_groups = [i for i in range(len(groups)) if len(found[i]) < settings.count]
        if not open_groups:
            break
        drawn = sampler.sample(
            [groups[i].prompt_ids for i in open_groups],
            n=settings.count,
            top_k=settings.top_k,
            temperature=settings.temperature,
            max_tokens=[min(settings.max_new_tokens, context - len(groups[i].prompt_ids)) for i in open_groups],
            seeds=[_request_seed(seed, groups[i].id, round_number) for i in open_groups],
        )
        for i, samples in zip(open_groups, drawn, strict=True):
            _keep_new(groups[i], samples, found[i], settings.count)

    kept, rejects = [], []
    for group, candidates in zip(groups, found, strict=True):
        if len(candidates) == settings.count:
            group.negatives.extend(candidates.values())
            kept.append(group)
        else:
            detail = f"{len(candidates)} of {settings.count} after {MAX_ROUNDS} draws"
            rejects.append(Reject(group.id, "too few distinct samples", detail, group.prompt[:200]))
    return kept, rejects


def _keep_new(group: Group, samples: Sequence[Any], found: dict[str, Candidate], count: int) -> None:
    truth = group.response.strip()
    for sample in samples:
        text = sample.text.strip()
        if len(found) < count and text and text != truth and text not in found:
            found[text] = Candidate(
                strategy="an",
                ids=sample.ids,
                text=sample.text,
                finish_reason=sample.finish_reason,
                seed=sample.seed,
                sampler_logp=sample.logp,
            )


def _request_seed(seed: int, group_id: str, round_number: int) -> int:
    digest = hashlib.sha256(f"{seed}:{group_id}:{round_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
