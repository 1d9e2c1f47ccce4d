"""Continuous batching over shards: one engine, fed request by request by all shards of an actor that are in flight.

A thread steps the engine (`EngineLoop`), the shards wait for their samples in the actor's event loop (`ShardSampler`).
What must be drawn again joins the running batch; the oldest shard's requests go first, so that shards end. A shard
begins (`Admission`) while the engine has fewer sequences to do than fill its slots twice: so the engine finds work at
every step, and what is in flight stays bounded.
"""

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from negatives_gen.models.engine import Request, Sample

# Sequences that are kept ready for the engine, as a multiple of its slots.
FILLINGS = 2


class SteppedEngine(Protocol):
    """What the loop needs of an engine, see `negatives_gen.models.engine.Engine`."""

    slots: int

    @property
    def running(self) -> int | None: ...

    @property
    def unfinished(self) -> int: ...

    def start(self, key: str, request: Request) -> None: ...

    def step(self) -> list[tuple[str, list[Sample]]]: ...


@dataclass
class Reading:
    """What the loop has done since it began.

    Attributes:
        slot_seconds: time integral of the slots that were filled.
        tokens: of finished requests.
    """

    slot_seconds: float = 0.0
    tokens: int = 0


@dataclass(order=True)
class _Waiting:
    place: tuple[int, int]
    request: Request = field(compare=False)
    future: "Future[list[Sample]]" = field(compare=False)


class EngineLoop:
    """Steps an engine in a thread of its own, in which it is made too: torch's threads belong to the one that asks.

    Args:
        make: makes the engine; what it raises the constructor raises.
    """

    def __init__(self, make: Callable[[], SteppedEngine]):
        self._waiting: list[_Waiting] = []
        self._queued = 0  # sequences of the requests that wait
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._closed = False
        self.reading = Reading()
        self._told: tuple[float, float] | None = None  # when `slot_seconds` began to count, and what was filled then
        made: Future[SteppedEngine] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="engine", daemon=True)
        self._thread.start()
        self.engine = made.result()
        self.slots = self.engine.slots

    @property
    def backlog(self) -> int:
        """Sequences that have been asked for and have not ended."""
        return self._queued + self.engine.unfinished

    def submit(self, request: Request, turn: int) -> "Future[list[Sample]]":
        """The samples of a request, once it has ended.

        Args:
            turn: of two requests that wait, the one with the smaller turn goes first.
        """
        future: Future[list[Sample]] = Future()
        with self._changed:
            if self._failure is not None:
                raise RuntimeError(f"the engine has failed: {self._failure}") from self._failure
            heapq.heappush(self._waiting, _Waiting((turn, next(self._numbers)), request, future))
            self._queued += request.n
            self._told = self._told or (time.perf_counter(), 0.0)
            self._changed.notify()
        return future

    def slot_seconds(self) -> dict[str, float]:
        """Slot-seconds that were "filled", and "all" that there were, since this was called last.

        The first call counts from the first request on. A step counts when it ends.
        """
        assert self._told is not None, "nothing has been asked for yet"
        (since, before), now, filled = self._told, time.perf_counter(), self.reading.slot_seconds
        self._told = now, filled
        return {"filled": filled - before, "all": (now - since) * self.slots}

    def close(self) -> None:
        """End the thread after its step, so that the engine is held by nobody else; what has not ended never does."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self, make: Callable[[], SteppedEngine], made: "Future[SteppedEngine]") -> None:
        try:
            engine = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(engine)
        futures: dict[str, Future[list[Sample]]] = {}
        try:
            while self._feed(engine, futures):
                self._step(engine, futures)
        except BaseException as error:
            with self._changed:
                self._failure, waiting = error, self._waiting
            # Those that wait may be cancelled at this very moment, those that run cannot be.
            waited = [w.future for w in waiting if w.future.set_running_or_notify_cancel()]
            for future in [*futures.values(), *waited]:
                future.set_exception(error)

    def _feed(self, engine: SteppedEngine, futures: dict[str, "Future[list[Sample]]"]) -> bool:
        """Start what waits, as far as the engine needs it; wait where it has nothing to do. False: it is closed."""
        with self._changed:
            while not self._closed and not futures and not self._waiting:
                self._changed.wait()
            if self._closed:
                return False
            # No more than it needs: each start takes time, in which it makes no step.
            taken, room = list[_Waiting](), FILLINGS * engine.slots - engine.unfinished
            while self._waiting and room > 0:
                taken.append(heapq.heappop(self._waiting))
                room -= taken[-1].request.n
        begun = {str(w.place[1]): w for w in taken if w.future.set_running_or_notify_cancel()}
        futures.update({key: waiting.future for key, waiting in begun.items()})
        for key, waiting in begun.items():
            try:
                engine.start(key, waiting.request)
            except ValueError as error:  # of this one request
                futures.pop(key).set_exception(error)
        with self._changed:
            self._queued -= sum(waiting.request.n for waiting in taken)
        return True

    def _step(self, engine: SteppedEngine, futures: dict[str, "Future[list[Sample]]"]) -> None:
        if not futures:
            return
        started = time.perf_counter()
        finished = engine.step()
        self.reading.slot_seconds += (engine.running or 0) * (time.perf_counter() - started)
        for key, samples in finished:
            self.reading.tokens += sum(len(sample.ids) for sample in samples)
            futures.pop(key).set_result(samples)


class Admission:
    """Which shard may begin: the first that waits, while the engine lacks work.

    Args:
        backlog: gives the sequences that have been asked for and have not ended.
        enough: so many sequences are enough for the engine.
    """

    def __init__(self, backlog: Callable[[], int], enough: int):
        self._backlog, self._enough = backlog, enough
        self._changed = asyncio.Condition()
        self._in_flight = 0
        self._beginning: int | None = None  # the turn of the shard that has begun and has asked for nothing yet
        self._alone = False  # whether the shard in flight must stay alone
        self._numbers, self._waiting = itertools.count(), list[int]()

    @asynccontextmanager
    async def turn(self, alone: bool) -> AsyncIterator[int]:
        """Wait for a shard's turn, and hold it while the block lasts. Gives its number among the turns.

        Args:
            alone: let no other shard be in flight meanwhile.
        """
        number = next(self._numbers)
        self._waiting.append(number)

        def may_begin() -> bool:
            if number != self._waiting[0] or self._alone or self._beginning is not None:
                return False
            return not self._in_flight or not (alone or self._backlog() >= self._enough)

        async with self._changed:
            try:
                await self._changed.wait_for(may_begin)
                self._in_flight, self._alone, self._beginning = self._in_flight + 1, alone, number
            finally:
                self._waiting.remove(number)
                self._changed.notify_all()
        try:
            yield number
        finally:
            async with self._changed:
                self._in_flight, self._alone = self._in_flight - 1, False
                if self._beginning == number:
                    self._beginning = None
                self._changed.notify_all()

    async def asked(self, turn: int) -> None:
        """Say that a shard asks the engine. If it has begun last, what it asks for counts, and the next may begin."""
        if self._beginning == turn:
            async with self._changed:
                self._beginning = None
                self._changed.notify_all()

    async def look_again(self) -> None:
        """Have the shards that wait look at the backlog."""
        async with self._changed:
            self._changed.notify_all()


class ShardSampler:
    """What one shard asks of the engine that it shares.

    Args:
        turn: of the shard.

    Attributes:
        asked: prompts.
        answered: samples that have tokens.
        tokens: of all samples, also of those that were not taken.
    """

    def __init__(self, loop: EngineLoop, admission: Admission, turn: int):
        self._loop, self._admission, self._turn = loop, admission, turn
        self.asked = self.answered = self.tokens = 0
        self._started, self._filled = time.perf_counter(), loop.reading.slot_seconds

    async def sample(
        self, prompt: Sequence[int], *, n: int, top_k: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        """Sample n continuations of a prompt, see `negatives_gen.models.engine.Request`."""
        self.asked += 1
        request = Request(prompt, n, top_k, temperature, max_tokens, seed)
        submitted = asyncio.wrap_future(self._loop.submit(request, self._turn))
        await self._admission.asked(self._turn)
        samples = await submitted
        self.answered += sum(bool(sample.ids) for sample in samples)
        self.tokens += sum(len(sample.ids) for sample in samples)
        await self._admission.look_again()
        return samples

    @property
    def occupancy(self) -> float | None:
        """Share of the engine's slots that were filled since the shard began, by whichever shard.

        None for a shard that asked for nothing. A step counts when it ends: of a few steps it may be off by one.
        """
        if not self.asked:
            return None
        seconds = time.perf_counter() - self._started
        return min(1.0, (self._loop.reading.slot_seconds - self._filled) / (seconds * self._loop.slots))

    def clock(self) -> Callable[[], float]:
        """What tells the shard's part of the seconds since now, by the tokens that were sampled in them."""
        started, own, before = time.perf_counter(), self.tokens, self._loop.reading.tokens

        def seconds() -> float:
            tokens, passed = self._loop.reading.tokens - before, time.perf_counter() - started
            return passed * min(1.0, (self.tokens - own) / tokens) if tokens else passed

        return seconds


def work_on(stage: Callable[[dict[str, Any]], Any], row: dict[str, Any]) -> dict[str, Any]:
    """What a stage makes of a row, outside of Ray: some stages are asynchronous."""
    made = stage(row)
    return asyncio.run(made) if asyncio.iscoroutine(made) else made
