"""The order of an epoch: every group once, steps of one size, of like lengths, however they are divided."""

import numpy as np
import pytest

from data.command.errors import UserError
from trainer.groups.sampler import WINDOW_STEPS, StepSampler


class BlocksStub:
    """Groups in blocks of given sizes, with lengths as skewed as Dolly's."""

    def __init__(self, sizes: list[int]):
        ends = np.cumsum(sizes)
        self.blocks = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.lengths = np.random.default_rng(0).lognormal(6, 0.8, int(ends[-1]))
        self.kept = 0
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, block: np.ndarray) -> np.ndarray:
        self.read.append(int(block[0]))
        return self.lengths[block]

    def keep(self, groups: int) -> None:
        self.kept = groups


def counted(sampler: StepSampler) -> list[int]:
    """The numbers of an epoch but those that fill its last step."""
    return [number for number in sampler if number >= 0]


@pytest.mark.parametrize("sizes", [[7], [100, 100, 3], [512] * 9])
@pytest.mark.parametrize("step", [1, 8, 64])
def test_every_group_comes_once_an_epoch_and_numbers_tell_the_epoch(sizes: list[int], step: int) -> None:
    sampler = StepSampler(BlocksStub(sizes), step)
    first = counted(sampler)
    sampler.set_epoch(3)
    fourth = counted(sampler)
    assert sorted(first) == list(range(sum(sizes)))
    assert sorted(fourth) == list(range(3 * sum(sizes), 4 * sum(sizes)))
    assert sum(sizes) < 8 or [n % sum(sizes) for n in fourth] != first


def test_the_order_depends_on_the_seed_and_nothing_else() -> None:
    orders = [list(StepSampler(BlocksStub([50, 70]), 8, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("parts", [2, 4, 8, 16])
def test_a_step_holds_the_same_groups_however_it_is_divided(parts: int) -> None:
    whole = np.array(list(StepSampler(BlocksStub([300, 212]), 16)))
    divided = np.array(list(StepSampler(BlocksStub([300, 212]), 16, parts)))
    assert np.array_equal(np.sort(whole.reshape(-1, 16)), np.sort(divided.reshape(-1, 16)))


def test_steps_have_like_numbers_of_tokens_where_plain_shuffling_spreads_them() -> None:
    blocks = BlocksStub([512] * 16)
    order = np.array(list(StepSampler(blocks, 64, 4)))
    steps = blocks.lengths[order].reshape(-1, 64).sum(1)
    shuffled = np.random.default_rng(1).permuted(blocks.lengths).reshape(-1, 64).sum(1)
    assert np.percentile(steps, 95) / np.median(steps) < 1.1
    assert np.percentile(shuffled, 95) / np.median(shuffled) > 1.15
    micro = blocks.lengths[order].reshape(-1, 4, 16).sum(2)
    assert np.median(micro.max(1) / micro.min(1)) < 1.5


def test_each_step_has_one_group_of_every_stratum_of_its_window() -> None:
    blocks = BlocksStub([4 * WINDOW_STEPS])
    steps = np.array(list(StepSampler(blocks, 4))).reshape(-1, 4)
    strata = np.argsort(np.argsort(blocks.lengths))[steps] // WINDOW_STEPS
    assert (np.sort(strata) == np.arange(4)).all()


def test_blocks_are_read_as_they_are_needed_and_two_windows_kept() -> None:
    blocks = BlocksStub([256] * 20)
    order = iter(StepSampler(blocks, 8))
    assert blocks.kept == (2 * WINDOW_STEPS + 1) * 8
    next(order)
    assert len(blocks.read) == 1  # 256 groups are a window of 32 steps of 8
    assert sum(1 for _ in order) == 20 * 256 - 1
    assert sorted(blocks.read) == [256 * i for i in range(20)]


def test_a_window_needs_the_last_block_of_the_one_before_and_no_other() -> None:
    """Windows of three blocks of 101 groups; what makes no whole step of 8 waits."""
    blocks, seen, waited = BlocksStub([101] * 30), [], 0
    for number in StepSampler(blocks, 8):
        if number < 0:  # fills up the last step
            continue
        seen.append(number)
        place = blocks.read[::-1].index(number // 101 * 101)  # 0: the block read last
        assert place <= 3
        waited += place == 3
    assert sorted(seen) == list(range(30 * 101))
    assert waited == 7 + 6 + 5 + 4 + 3 + 2 + 1 + 0 + 7


def test_unequal_micro_batches_are_a_bug() -> None:
    with pytest.raises(ValueError, match="10 groups cannot be divided into 4 equal micro-batches"):
        StepSampler(BlocksStub([20]), 10, 4)


@pytest.mark.parametrize(("parts", "each"), [(1, [10]), (2, [5, 5]), (4, [3, 3, 2, 2]), (16, [1] * 10 + [0] * 6)])
def test_the_last_step_deals_what_is_left_evenly_and_fills_its_places_with_what_does_not_count(
    parts: int, each: list[int]
) -> None:
    sampler = StepSampler(BlocksStub([30, 12]), 16, parts)
    sampler.set_epoch(2)
    order = np.array(list(sampler))
    assert len(order) == len(sampler) == 48
    assert (order[:32] >= 0).all()
    last = order[32:].reshape(parts, -1)
    assert (last >= 0).sum(1).tolist() == each
    assert set(~last[last < 0]) <= set(last[last >= 0])
    whole = StepSampler(BlocksStub([30, 12]), 16)
    whole.set_epoch(2)
    assert sorted(last[last >= 0]) == sorted(list(whole)[32:42])


def test_drop_last_leaves_the_last_step_out_and_is_refused_where_nothing_is_left() -> None:
    whole, dropped = (list(StepSampler(BlocksStub([30, 12]), 16, 4, drop_last=drop)) for drop in (False, True))
    assert dropped == whole[:32]
    assert len(StepSampler(BlocksStub([30, 12]), 16, 4, drop_last=True)) == 32
    with pytest.raises(UserError, match="leaves none of the 42 groups: a step takes 64"):
        StepSampler(BlocksStub([30, 12]), 64, drop_last=True)
