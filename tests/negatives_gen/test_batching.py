"""Continuous batching over shards: which requests an engine works on, and which shards are in flight."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from negatives_gen.job.batching import FILLINGS, Admission, EngineLoop, Reading, ShardSampler
from negatives_gen.models.engine import Request, Sample

SLOTS = 8


class SlottedEngineStub:
    """An engine of some slots: a step gives each running sequence a token; a sequence is as long as its request says.

    Attributes:
        filled: slots that were filled, step by step.
        most: sequences that it held at a time, at most.
        stepping, may_step: a step has begun; no step goes on before.
    """

    def __init__(self, slots: int = SLOTS):
        self.slots, self.running = slots, 0
        self.stepping, self.may_step = threading.Event(), threading.Event()
        self.may_step.set()
        self.filled: list[int] = []
        self.started: list[int] = []
        self.most = 0
        self._left: dict[str, list[int]] = {}  # tokens that each sequence lacks

    @property
    def unfinished(self) -> int:
        return sum(left > 0 for lefts in self._left.values() for left in lefts)

    def start(self, key: str, request: Request) -> None:
        if not request.prompt:
            raise ValueError("an empty prompt")
        self.started.append(request.prompt[0])
        self._left[key] = [max(1, request.max_tokens - i) for i in range(request.n)]
        self.most = max(self.most, self.unfinished)

    def step(self) -> list[tuple[str, list[Sample]]]:
        self.stepping.set()
        self.may_step.wait()
        time.sleep(0.001)  # as a real step, it leaves time to those that ask for more
        room, finished = self.slots, []
        for key, lefts in list(self._left.items()):
            for place, left in enumerate(lefts):
                if left and room:
                    lefts[place], room = left - 1, room - 1
            if not any(lefts):
                del self._left[key]
                finished.append((key, [Sample([1], f" {key}", "stop", -1.0, None) for _ in lefts]))
        self.running = self.slots - room
        self.filled.append(self.running)
        return finished


def request(prompt: int, n: int = 1, length: int = 1) -> Request:
    return Request([prompt], n, 0, 1.0, length, 0)


def with_loop(engine: SlottedEngineStub) -> EngineLoop:
    return EngineLoop(lambda: engine)


def test_what_makes_the_engine_fails_where_the_loop_is_made() -> None:
    def fails() -> Any:
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        EngineLoop(fails)


def test_the_engine_is_given_what_fills_its_slots_twice_and_no_more() -> None:
    engine = SlottedEngineStub()
    engine.may_step.clear()
    loop = with_loop(engine)
    futures = [loop.submit(request(number, length=1 + number % 5), 0) for number in range(200)]
    engine.may_step.set()
    assert [len(future.result(timeout=10)) for future in futures] == [1] * 200
    assert engine.most == FILLINGS * SLOTS
    assert all(filled == SLOTS for filled in engine.filled[1:-5])  # from the first to the drain
    assert loop.backlog == 0
    loop.close()


def test_requests_of_an_earlier_shard_go_first_and_then_those_that_were_asked_first() -> None:
    engine = SlottedEngineStub(slots=1)
    engine.may_step.clear()
    loop = with_loop(engine)
    last = [loop.submit(request(0), 0)]
    assert engine.stepping.wait(timeout=10)  # it runs; the others wait
    last += [loop.submit(request(number), turn) for number, turn in ((1, 2), (2, 1), (3, 2), (4, 1))]
    engine.may_step.set()
    for future in last:
        future.result(timeout=10)
    # Two fillings of one slot are two sequences: 0 was running when the four came.
    assert engine.started == [0, 2, 4, 1, 3]
    loop.close()


def test_a_request_that_the_engine_refuses_fails_alone() -> None:
    loop = with_loop(SlottedEngineStub())
    bad, good = loop.submit(Request([], 1, 0, 1.0, 1, 0), 0), loop.submit(request(1), 0)
    assert good.result(timeout=10)
    with pytest.raises(ValueError, match="an empty prompt"):
        bad.result(timeout=10)
    assert loop.backlog == 0
    loop.close()


def test_an_engine_that_dies_fails_all_that_wait_and_whoever_asks_later() -> None:
    class DyingEngineStub(SlottedEngineStub):
        def step(self) -> list[tuple[str, list[Sample]]]:
            self.may_step.wait()
            raise RuntimeError("out of memory")

    engine = DyingEngineStub()
    engine.may_step.clear()
    loop = with_loop(engine)
    futures = [loop.submit(request(number), 0) for number in range(40)]
    engine.may_step.set()
    for future in futures:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(timeout=10)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.submit(request(1), 0)


def test_an_engine_that_fails_at_a_request_fails_all_that_it_was_given() -> None:
    class FailingEngineStub(SlottedEngineStub):
        def start(self, key: str, request: Request) -> None:
            if request.prompt[0] == 2:
                raise RuntimeError("no connection to the core")
            super().start(key, request)

    engine = FailingEngineStub()
    engine.may_step.clear()
    loop = with_loop(engine)
    running = loop.submit(request(0, length=9), 0)
    assert engine.stepping.wait(timeout=10)
    futures = [running, *(loop.submit(request(number), 0) for number in (1, 2, 3, 4))]
    engine.may_step.set()
    for future in futures:
        with pytest.raises(RuntimeError, match="no connection to the core"):
            future.result(timeout=10)


def shards_in_turn(backlog: Callable[[], int], alone: list[bool], body: Callable[[int], Any]) -> None:
    """Have shards wait for their turns, all at once; `body` is awaited in each once it has asked for something."""

    async def run() -> None:
        admission = Admission(backlog, 10)

        async def one(index: int) -> None:
            async with admission.turn(alone=alone[index]) as turn:
                await asyncio.sleep(0)  # it loads
                await admission.asked(turn)
                await body(index)
            await admission.look_again()

        await asyncio.gather(*(one(index) for index in range(len(alone))))

    asyncio.run(run())


def test_a_shard_begins_while_the_engine_has_less_than_enough_to_do() -> None:
    """What a shard asks for counts before the next one is looked at: else all would begin at once."""
    asked, in_flight, most, order = set[int](), set[int](), [0], list[int]()

    async def run() -> None:
        admission = Admission(lambda: 4 * len(asked), 10)

        async def one(index: int) -> None:
            async with admission.turn(alone=False) as turn:
                in_flight.add(index)
                order.append(index)
                most[0] = max(most[0], len(in_flight))
                await asyncio.sleep(0.01)  # it loads
                asked.add(index)
                await admission.asked(turn)
                await asyncio.sleep(0.05)
                in_flight.remove(index)
                asked.remove(index)
                await admission.look_again()

        await asyncio.gather(*(one(index) for index in range(7)))

    asyncio.run(run())
    assert most == [3]  # 4 + 4 are less than 10, 12 are not
    assert order == list(range(7))


def test_a_shard_that_loads_holds_up_the_next_one_whatever_earlier_ones_ask_and_end() -> None:
    order = list[str]()

    async def run() -> None:
        admission = Admission(lambda: 0, 10)

        async def earlier() -> None:
            async with admission.turn(alone=False) as turn:
                await admission.asked(turn)
                await asyncio.sleep(0.01)  # the next one begins
                await admission.asked(turn)  # it draws again
            order.append("the first ends")

        async def loading() -> None:
            async with admission.turn(alone=False) as turn:
                order.append("the second begins")
                await asyncio.sleep(0.05)
                order.append("the second has loaded")
                await admission.asked(turn)

        async def next_one() -> None:
            async with admission.turn(alone=False):
                order.append("the third begins")

        await asyncio.gather(earlier(), loading(), next_one())

    asyncio.run(run())
    assert order == ["the second begins", "the first ends", "the second has loaded", "the third begins"]


def test_one_shard_begins_however_much_there_is_to_do() -> None:
    done = list[int]()

    async def body(index: int) -> None:
        done.append(index)

    shards_in_turn(lambda: 1000, [False] * 3, body)
    assert done == [0, 1, 2]


def test_a_suspect_is_in_flight_alone_and_keeps_its_place() -> None:
    in_flight, order = set[int](), list[int]()
    beside: dict[int, set[int]] = {}

    async def body(index: int) -> None:
        in_flight.add(index)
        order.append(index)
        for _ in range(5):
            for other in in_flight:
                beside.setdefault(other, set()).update(in_flight - {other})
            await asyncio.sleep(0)
        in_flight.remove(index)

    shards_in_turn(lambda: 0, [False, False, True, False, False], body)
    assert order == [0, 1, 2, 3, 4]
    assert beside == {0: {1}, 1: {0}, 2: set(), 3: {4}, 4: {3}}


def test_a_shard_that_gives_up_waiting_holds_nobody_up() -> None:
    async def run() -> list[int]:
        admission, done, end = Admission(lambda: 0, 10), list[int](), asyncio.Event()

        async def one(index: int, alone: bool) -> None:
            async with admission.turn(alone=alone):
                done.append(index)
                await end.wait()

        first, second = asyncio.ensure_future(one(0, True)), asyncio.ensure_future(one(1, False))
        await asyncio.sleep(0)
        third = asyncio.ensure_future(one(2, False))
        await asyncio.sleep(0)
        second.cancel()
        end.set()
        await asyncio.gather(first, third)
        return done

    assert asyncio.run(run()) == [0, 2]


def test_shards_in_flight_keep_the_slots_filled_to_the_last_drain() -> None:
    """Six shards whose own requests fill the slots 1.5 times, of very different lengths, one of them drawn again."""
    engine = SlottedEngineStub()
    lengths = random.Random(0)

    async def run() -> list[float]:
        loop = with_loop(engine)
        admission = Admission(lambda: loop.backlog, FILLINGS * loop.slots)

        async def shard() -> float:
            async with admission.turn(alone=False) as turn:
                sampler = ShardSampler(loop, admission, turn)

                async def group() -> None:
                    for _ in range(2):  # the second is what must be drawn again
                        length = lengths.randint(4, 30)
                        drawn = await sampler.sample([1], n=3, top_k=0, temperature=1.0, max_tokens=length, seed=0)
                        assert len(drawn) == 3

                await asyncio.gather(*(group() for _ in range(4)))
                assert (sampler.asked, sampler.answered, sampler.tokens) == (8, 24, 24)
                assert sampler.occupancy is not None
                return sampler.occupancy

        shares = await asyncio.gather(*(shard() for _ in range(6)))
        loop.close()
        return list(shares)

    shares = asyncio.run(run())
    steps = len(engine.filled)
    assert sum(engine.filled) / (SLOTS * steps) > 0.9
    assert all(0 < share <= 1 for share in shares)
    # One shard after the other, each would drain twice.
    assert steps < 1.1 * sum(engine.filled) / SLOTS + 30


def test_occupancy_is_of_the_time_since_the_shard_began() -> None:
    loop = with_loop(SlottedEngineStub())
    loop.reading = Reading(slot_seconds=100.0, tokens=1000)
    sampler = ShardSampler(loop, None, 0)  # type: ignore[arg-type]  # asks for nothing
    sampler._started = time.perf_counter() - 2.0
    loop.reading = Reading(slot_seconds=100.0 + 2.0 * SLOTS * 0.75, tokens=1400)
    assert sampler.occupancy is None
    sampler.asked = 1
    assert sampler.occupancy == pytest.approx(0.75, rel=0.01)
    loop.reading = Reading(slot_seconds=200.0, tokens=1400)
    assert sampler.occupancy == 1.0
    loop.close()


def test_slot_seconds_of_all_shards_sum_up_to_what_the_engine_had(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr("negatives_gen.job.batching.time.perf_counter", lambda: now[0])
    loop = with_loop(SlottedEngineStub())
    now[0] = 10.0  # until then nobody asks for anything
    loop.submit(request(1), 0).result(timeout=10)
    loop.reading = Reading()
    taken = []
    for seconds, filled in ((4.0, 30.0), (1.0, 0.0), (2.0, 16.0)):  # shards that overlap end one after another
        now[0] += seconds
        loop.reading.slot_seconds += filled
        taken.append(loop.slot_seconds())
    assert taken == [{"filled": 30.0, "all": 32.0}, {"filled": 0.0, "all": 8.0}, {"filled": 16.0, "all": 16.0}]
    loop.close()


def test_seconds_of_a_strategy_are_its_part_by_the_tokens_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("negatives_gen.job.batching.time.perf_counter", lambda: now[0])
    loop = with_loop(SlottedEngineStub())
    sampler = ShardSampler(loop, None, 0)  # type: ignore[arg-type]  # asks for nothing
    first = sampler.clock()
    now[0], sampler.tokens, loop.reading.tokens = 10.0, 100, 1000
    assert first() == 1.0
    second = sampler.clock()
    now[0], sampler.tokens, loop.reading.tokens = 20.0, 600, 2000
    assert second() == 5.0
    loop.close()
