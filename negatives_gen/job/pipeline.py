"""The pipeline: shard numbers through Ray Data's actors, which make, score and write the shards."""

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from data.command.errors import UserError, first_line, user_error_in
from data.command.terminated import ending_on_sigterm
from data.manifest import shard_name
from data.storage import Folder
from negatives_gen.job.actors import STAGES, Work, new_row
from negatives_gen.job.attempts import Stall, refuse_set_aside
from negatives_gen.job.batching import FILLINGS
from negatives_gen.job.cluster import ray_started
from negatives_gen.job.inputs import SPENT
from negatives_gen.job.memory import actor_memory, shard_bytes
from negatives_gen.job.resources import Node, Resources
from negatives_gen.job.waiting import GpuWait
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import SAMPLE

log = logging.getLogger(__name__)

# Behind the last row.
END: Any = object()
# vLLM's defaults of max_num_seqs: the largest of a GPU, and that of a CPU.
MOST_SLOTS, CPU_SLOTS = 1024, 256


def run_pipeline(
    work: Work,
    shards: Sequence[int],
    *,
    num_engines: int | None,
    stall_timeout: float,
    on_written: Callable[..., None],
    on_pause: Callable[[], bool],
) -> None:
    """Make these shards. A row of the Ray data set is a whole shard, so that no block splitting changes its members.

    Args:
        num_engines, stall_timeout: what the user asked for.
        on_written: called in this process after each shard: index, rows, rejected, tokens, occupancy of the
            engine, what an API took by `SPENT`.
        on_pause: called every second or more often; says whether a shard got further.

    Raises:
        UserError: what an actor had to say, a shard that was set aside once the others are made, or that nothing moves
            any more; shards written until then stay.
    """
    with contextlib.ExitStack() as started:
        with ending_on_sigterm():
            started.enter_context(ray_started())
        # Ray has put a handler of its own in the place of ours, which would end it in the middle of what it does.
        with ending_on_sigterm():
            nodes = _nodes()
            resources, in_flight = _planned(work, shards, nodes, num_engines)
            wait = GpuWait(resources, sum(node.gpus for node in nodes), _free_gpus, len(shards))
            rows = Rows(_results(work, shards, resources, in_flight))
            outcome = Outcome(work.writer.folder, on_written)
            stall = Stall(work.writer.folder, stall_timeout, wait)
            try:
                follow(rows, outcome, stall, on_pause)
            except BaseException:
                if not rows.stop(seconds=3.0):  # it hangs, or was interrupted
                    _leave_ray(rows)
                raise
            outcome.end()


def follow(rows: "Rows", outcome: "Outcome", stall: Stall, on_pause: Callable[[], bool]) -> None:
    """Take all rows; for the rest see `run_pipeline`."""
    while (row := rows.next(seconds=1.0)) is not END:
        if on_pause() or row is not None:
            stall.move(through=row is not None)
        if row is None:
            stall.check()
        else:
            outcome.take(row)


def _nodes() -> list[Node]:
    """What the nodes of the cluster have, whoever holds it now."""
    import ray

    return [
        Node(offers.get("CPU", 0.0), int(offers.get("GPU", 0)), offers.get("memory", 0.0))
        for offers in (node["Resources"] for node in ray.nodes() if node["Alive"])
    ]


def _free_gpus() -> float:
    """GPUs that nobody holds now, of the whole cluster: Ray says it of no node."""
    import ray

    return ray.available_resources().get("GPU", 0.0)


def _planned(
    work: Work, shards: Sequence[int], nodes: Sequence[Node], num_engines: int | None
) -> tuple[Resources, int]:
    """What the actors get, and how many shards one with an engine may have in flight. Raises UserError."""
    on_gpu = any(node.gpus for node in nodes)
    in_flight = min(shards_in_flight(work, MOST_SLOTS if on_gpu else CPU_SLOTS), len(shards))
    # Shards are random samples: one is as large as another.
    size = shard_bytes(work, work.source.load(shards[0]))
    resources = Resources.plan(
        work.stages,
        nodes,
        num_engines=num_engines,
        engine=work.engine_options,
        memory=actor_memory(work, on_gpu=on_gpu, shard=size, in_flight=in_flight),
    )
    log.info("Ray: %s", resources)
    return resources, in_flight


def _results(
    work: Work, shards: Sequence[int], resources: Resources, in_flight: int
) -> Generator[dict[str, Any], None, None]:
    """The rows that come out of the last stage, each as soon as its shard is written."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    sampling = dataclasses.replace(work, engine_options={**resources.engine_options, **work.engine_options})
    at_once: dict[str, int] = {}
    if SAMPLE in resources.shares:
        at_once[SAMPLE] = min(in_flight, -(-len(shards) // resources.shares[SAMPLE].actors))
        groups = at_once[SAMPLE] * work.writer.job["groups_per_shard"]
        log.info("at most %d shards, %d groups, in flight in an engine's actor", at_once[SAMPLE], groups)
    results = ray.data.from_items([new_row(index) for index in shards], override_num_blocks=len(shards))
    for stage, share in resources.shares.items():
        results = results.map(
            STAGES[stage],  # type: ignore[arg-type]  # Ray types a callable class as if it were a function
            fn_constructor_args=(sampling if stage == SAMPLE else work,),
            compute=ray.data.ActorPoolStrategy(
                size=min(share.actors, len(shards)),
                # Those of an engine's actor wait for it side by side (`batching.Admission`).
                max_tasks_in_flight_per_actor=at_once.get(stage),
                max_concurrent_calls_per_actor=at_once.get(stage),
            ),
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            memory=share.memory or None,
        )
    # A batch is a block is a shard; without prefetching each is told as soon as it is written.
    batches: Any = results.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    return _rows_of(iter(batches))


def shards_in_flight(work: Work, slots: int) -> int:
    """Shards that an actor with an engine has in flight at most.

    Enough to keep the engine busy (`batching.FILLINGS`) while as many again wait for their longest sequences.

    Args:
        slots: of the engine, unless the user says it.
    """
    # Strategies of a shard sample one after the other; of a set that is extended, what it lacks.
    lacking = {name: settings["count"] - work.present.get(name, 0) for name, settings in work.strategies.items()}
    samples = [count for name, count in lacking.items() if STRATEGIES.load(name).stage == SAMPLE]
    of_shard = work.writer.job["groups_per_shard"] * max([1, *samples])
    return 2 + -(-2 * FILLINGS * int(work.engine_options.get("max_num_seqs", slots)) // of_shard)


def _rows_of(batches: Any) -> Generator[dict[str, Any], None, None]:
    with contextlib.closing(batches):  # or Ray Data ends it when Ray is gone, with a trace
        for batch in batches:
            yield from batch.to_pylist()


class Outcome:
    """What the rows of the pipeline say to the driver.

    Args:
        on_written: see `run_pipeline`.
    """

    def __init__(self, folder: Folder, on_written: Callable[..., None]):
        self.folder, self.on_written = folder, on_written
        self.aside: dict[int, str] = {}

    def take(self, row: dict[str, Any]) -> None:
        """Raise UserError if the row says that the job cannot go on."""
        if row["error"]:
            if row["trace"]:
                log.error("in a worker: %s", row["trace"])
            raise UserError(row["error"])
        if row["aside"]:
            self.aside[row["shard"]] = row["aside"]
            log.warning("%s is set aside: %s", shard_name(row["shard"]), row["aside"])
        else:
            spent = {what: row[f"api_{what}"] for what in SPENT}
            self.on_written(row["shard"], row["rows"], row["rejected"], row["tokens"], row["occupancy"], spent)

    def end(self) -> None:
        """Raise UserError if shards were set aside."""
        refuse_set_aside(self.folder, self.aside)


class Rows:
    """Rows from an iterator that may block, read in a thread so that the caller can look at a clock and at signals.

    The thread stops after a row with an `error`: the rows behind it would be made for nobody.
    """

    def __init__(self, rows: Generator[dict[str, Any], None, None]):
        self._rows = rows
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._read, name="rows", daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Any:
        """The next row, END behind the last one, or None if there is none within so many seconds.

        Raises:
            UserError: the iterator failed.
        """
        try:
            row = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(row, BaseException):
            raise _failed(row) from row
        return row

    def stop(self, seconds: float) -> bool:
        """Read no more. Whether the thread has ended within so many seconds."""
        self._stopped = True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _read(self) -> None:
        try:
            with contextlib.closing(self._rows) as rows:
                for row in rows:
                    self._queue.put(row)
                    if row["error"] or self._stopped:
                        return
            self._queue.put(END)
        except BaseException as error:
            self._queue.put(error)


def _leave_ray(rows: Rows) -> None:
    """Disconnect, which ends the actors, whatever they are doing."""
    import ray
    from ray._private import auto_init_hook

    # What the thread calls next would join the cluster again ($RAY_ENABLE_AUTO_CONNECT is read when Ray is imported),
    # and Ray Data would log, as an error of its own, that there is no cluster any more.
    auto_init_hook.enable_auto_connect = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.shutdown()
    rows.stop(seconds=3.0)


def _failed(error: BaseException) -> UserError:
    """What to say of an error of Ray itself, with its trace in the log."""
    if said := user_error_in(error):
        return said
    log.error("in Ray", exc_info=error)
    return UserError(
        f"Ray could not go on: {type(error).__name__}: {first_line(error)}. The log has more; finished shards stay, "
        "and the same command goes on."
    )
