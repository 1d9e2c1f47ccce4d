"""The pipeline without Ray, in this process, for tests of what surrounds it. With Ray: test_generate, test_kills."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from negatives_gen.job.actors import STAGES, Work, new_row
from negatives_gen.job.pipeline import Outcome


def pipeline_without_ray_stub(work: Work, shards: Sequence[int], *, on_written: Callable[..., None], **_: Any) -> None:
    stages = [STAGES[name](work) for name in work.stages]
    outcome = Outcome(work.writer.folder, on_written)
    for index in shards:
        row = new_row(index)
        for stage in stages:
            row = stage(row)
        outcome.take(row)
    outcome.end()


@contextmanager
def without_ray() -> Iterator[None]:
    with mock.patch("negatives_gen.job.job.run_pipeline", pipeline_without_ray_stub):
        yield
