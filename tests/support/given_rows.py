"""Rows that list scored responses, in shapes that people have, and negative sets made of them without an engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.command.options import make_config
from data.shards import NegativeSet
from data.sources import facts
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from tests.support.without_ray import without_ray

# Each with an answer of its own.
FACTS = list({row["completion"]: row for row in facts.examples()}.values())[:24]
COLUMNS = "prompt=instruction,candidates=completions[].response,scores=completions[].overall_score"


def ultrafeedback(numbers: list[int]) -> list[dict[str, Any]]:
    """Rows of UltraFeedback's shape; row i lists `numbers[i]` completions, of which the second is the best."""
    return [
        {
            "source": "test",
            "instruction": row["prompt"],
            "models": ["a"] * number,
            "completions": [
                {
                    "model": "a",
                    "response": FACTS[(place + offset) % len(FACTS)]["completion"],
                    "overall_score": 9.5 if offset == 1 else 5.0 - offset,
                    "fine-grained_score": 4.25,
                    "annotations": {"helpfulness": {"Rating": "N/A"}},
                }
                for offset in range(number)
            ],
        }
        for place, (row, number) in enumerate(zip(FACTS, numbers, strict=False))
    ]


def nectar(number: int) -> list[dict[str, Any]]:
    """Rows of Nectar's shape, seven ranked answers each, rank 1 the best."""
    return [
        {
            "prompt": row["prompt"],
            "answers": [
                {"answer": FACTS[(place + rank) % len(FACTS)]["completion"], "model": "a", "rank": float(rank)}
                for rank in (3, 1, 2, 4, 5, 6, 7)
            ],
            "turns": 1,
            "num_responses": 7,
            "source": ["test"],
            "good_natured": True,
        }
        for place, row in enumerate(FACTS[:number])
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class NoEngine:
    """Must not start."""

    def __init__(self, *_: Any, **__: Any):
        pytest.fail("an engine was started")


def made(reference: Path, out: Path, dataset: str, **options: Any) -> NegativeSet:
    config = make_config(
        GenerateConfig,
        **{"model": str(reference), "dataset": dataset, "out": str(out), "groups_per_shard": 6, **options},
    )
    with without_ray():
        generate(config, Components(engine=NoEngine))
    return NegativeSet(str(out))
