"""What the stage 1 benchmarks run on: real prompts and lengths, from ../shared (never in the repository)."""

import dataclasses
import random
from pathlib import Path

from data.models import context_length, load_tokenizer
from data.schema import Group
from data.sources.prepare import prepare_groups
from tests.support.read_examples import load_examples
from trainer.scoring.continuations import Continuations

SHARED = Path(__file__).parents[3] / "shared"
MODEL = str(SHARED / "models/base-6m")
DOLLY = str(SHARED / "data/dolly/databricks-dolly-15k.jsonl")


def dolly_groups(count: int) -> list[Group]:
    """The first usable rows of Dolly's training half, tokenised for base-6m, without negatives."""
    if not Path(DOLLY).is_file():
        raise SystemExit(f"error: this benchmark needs {DOLLY}")
    examples = load_examples(DOLLY, "dolly", "train", 2 * count)
    groups = prepare_groups(examples, "dolly", load_tokenizer(MODEL), context_length(MODEL)).groups
    return [dataclasses.replace(group, negatives=[]) for group in groups[:count]]


def dolly_continuations(count: int, candidates: int = 12, longest: int = 256) -> list[Continuations]:
    """Groups of K candidates: the ground truth, and responses of other rows for the rest, cut at `longest` tokens."""
    draw = random.Random(0)
    groups = dolly_groups(count)
    responses = [g.response_ids[:longest] for g in groups]
    return [
        Continuations(g.prompt_ids, [g.response_ids[:longest], *draw.sample(responses, candidates - 1)])
        for g in groups
        if len(g.prompt_ids) + longest <= context_length(MODEL)
    ]
