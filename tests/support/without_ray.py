"""The pipeline without Ray, in this process, for tests of what surrounds it. With Ray: test_generate, test_kills."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from data.command.errors import UserError
from negatives_gen.job.actors import STAGES, Work


def pipeline_without_ray_stub(
    work: Work, shards: Sequence[int], *, num_engines: int | None, on_written: Callable[..., None]
) -> None:
    stages = [STAGES[name](work) for name in work.stages]
    for index in shards:
        row: dict[str, Any] = {"shard": index, "error": "", "payload": b""}
        for stage in stages:
            row = stage(row)
        if row["error"]:
            raise UserError(row["error"])
        on_written(row["shard"], row["rows"], row["rejected"], row["tokens"])


@contextmanager
def without_ray() -> Iterator[None]:
    with mock.patch("negatives_gen.job.job.run_pipeline", pipeline_without_ray_stub):
        yield
