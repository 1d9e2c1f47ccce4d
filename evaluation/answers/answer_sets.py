"""Answer sets: the answers of each checkpoint by each decoding, made or taken from the store."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.command.terminal import say
from data.command.trackers import report
from data.command.wording import counted
from data.models import context_option
from data.schema import Group
from evaluation.answers.decoding import Decoding
from evaluation.answers.generations import GenerationSet, generate
from evaluation.on_demand import OnDemand
from negatives_gen.models.engine import Sample

if TYPE_CHECKING:
    from evaluation.answers.cache import Store
    from evaluation.answers.checkpoints import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerSet:
    """One checkpoint's answers by one decoding: one per prompt, in the order of the prompts.

    Attributes:
        model, decoding: their names.
        groups: the prompts with their ground truths.
        asked: whether the user asked for this decoding; else it serves the metrics that are of it alone.
    """

    model: str
    decoding: str
    groups: Sequence[Group]
    generations: GenerationSet
    asked: bool = True

    @property
    def samples(self) -> list[Sample]:
        """The answers as the engine gave them."""
        return self.generations.samples

    @property
    def texts(self) -> list[str]:
        """The answers as texts."""
        return [sample.text for sample in self.samples]


def same_decoding(answer_sets: Sequence[AnswerSet], answers: AnswerSet, model: str) -> AnswerSet | None:
    """Another model's answers by the same decoding as some answers; None if there are none."""
    return next((a for a in answer_sets if (a.model, a.decoding) == (model, answers.decoding)), None)


def make_answers(
    checkpoints: Sequence["Checkpoint"],
    decodings: Sequence[Decoding],
    more: Sequence[Decoding],
    *,
    max_new_tokens: int,
    seed: int,
    engine: dict[str, Any],
    store: "Store",
) -> list[AnswerSet]:
    """The answers of each checkpoint by each decoding, one engine at a time.

    Args:
        decodings: that the user asked for.
        more: that metrics need beside them.
        seed: of drawn answers.
        engine: options of vLLM's LLM.

    Raises:
        UserError: a model cannot be generated from, see `evaluation.answers.generations.generate`.
    """
    if decodings or more:
        _warn_of_short_room(checkpoints, max_new_tokens)
    made = []
    for number, checkpoint in enumerate(checkpoints, start=1):
        with OnDemand(functools.partial(_start_engine, checkpoint, engine)) as started:
            for decoding in (*decodings, *more):
                say(
                    f"  answers of {checkpoint.name} ({number}/{len(checkpoints)}), {decoding.name}: "
                    f"{counted(len(checkpoint.groups), 'prompt')}"
                )
                generations = generate(
                    store, checkpoint.identity, engine, decoding, checkpoint.groups, max_new_tokens,
                    checkpoint.context, seed, started,
                )  # fmt: skip
                report({"answers/sets": len(made) + 1, "answers/of": len(checkpoints) * len((*decodings, *more))})
                asked = decoding in decodings
                made.append(AnswerSet(checkpoint.name, decoding.name, checkpoint.groups, generations, asked=asked))
    return made


def _warn_of_short_room(checkpoints: Sequence["Checkpoint"], max_new_tokens: int) -> None:
    """Say once where prompts leave less of a context than an answer may be long."""
    short = {c.name: sum(len(group.prompt_ids) + max_new_tokens > c.context for group in c.groups) for c in checkpoints}
    if any(short.values()):
        named = [f"{name} {count:,}" for name, count in short.items() if count]
        log.warning(
            "prompts that leave less of the context than --max_new_tokens %s, so that answers end where it does: "
            "%s of %s", f"{max_new_tokens:,}", ", ".join(named), f"{len(checkpoints[0].groups):,}",
        )  # fmt: skip


def _start_engine(checkpoint: "Checkpoint", options: dict[str, Any]) -> Any:
    from negatives_gen.models.engine import Engine

    say("  starting the engine (about 60 s)")
    told = context_option(checkpoint.path, checkpoint.context)
    return Engine(checkpoint.path, options={**told, **options})
