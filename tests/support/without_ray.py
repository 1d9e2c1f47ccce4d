"""The pipeline without Ray, in this process, for tests of what surrounds it. With Ray: test_generate, test_kills."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import negatives_gen.signals.embedding
from negatives_gen.job.actors import STAGES, Work, new_row
from negatives_gen.job.batching import work_on
from negatives_gen.job.pipeline import Outcome
from negatives_gen.models.embedder import Embedder
from negatives_gen.models.loading import load_scorer


class Kept:
    """Real models of unchanged directories, each loaded once per process: how one is loaded has tests of its own."""

    def __init__(self, load: Callable[..., Any]):
        self.load, self.loaded = load, dict[str, Any]()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        folders = [Path(a) for a in arguments if isinstance(a, str) and Path(a).is_dir()]
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for folder in folders for f in folder.rglob("*.*")]
        key = repr((arguments, sorted(options.items()), sorted(files)))
        if key not in self.loaded:
            self.loaded[key] = self.load(*arguments, **options)
        return self.loaded[key]


KEPT_SCORER, KEPT_EMBEDDER = Kept(load_scorer), Kept(Embedder)


def pipeline_without_ray_stub(work: Work, shards: Sequence[int], *, on_written: Callable[..., None], **_: Any) -> None:
    if work.components.scorer is load_scorer:
        work = dataclasses.replace(work, components=dataclasses.replace(work.components, scorer=KEPT_SCORER))
    stages = [STAGES[name](work) for name in work.stages]
    outcome = Outcome(work.writer.folder, on_written)
    try:
        for index in shards:
            row = new_row(index)
            for stage in stages:
                row = work_on(stage, row)
            outcome.take(row)
        outcome.end()
    finally:
        for stage in stages:
            stage.close()


@contextmanager
def without_ray() -> Iterator[None]:
    home = negatives_gen.signals.embedding
    embedder = KEPT_EMBEDDER if home.Embedder is Embedder else home.Embedder  # a test has put its own there
    with (
        mock.patch("negatives_gen.job.job.run_pipeline", pipeline_without_ray_stub),
        mock.patch.object(home, "Embedder", embedder),
    ):
        yield
