"""Layouts of groups as tensors: exact values for the documented example, invariants for random groups."""

import random

import numpy as np
import pytest
import torch

from trainer.scoring.packing import (
    Continuations,
    TokenBatch,
    pack,
    packed_attention,
    pad,
    split_by_budget,
    split_padded,
)

# The example of the module's docstring: prefix p1 p2 p3, continuations a1 a2 | b1 b2 b3.
EXAMPLE = Continuations([1, 2, 3], [[11, 12], [21, 22, 23]])
# A second group: the shortest prefix, and continuations of one and two tokens.
SHORT = Continuations([5], [[31], [41, 42], [51]])


def random_groups(seed: int) -> list[Continuations]:
    rng = random.Random(seed)

    def draw(length: int) -> list[int]:
        return [rng.randrange(1000) for _ in range(length)]

    return [
        Continuations(draw(rng.randint(1, 6)), [draw(rng.randint(1, 5)) for _ in range(rng.randint(1, 4))])
        for _ in range(rng.randint(1, 5))
    ]


def contexts(batch: TokenBatch, allowed: torch.Tensor) -> list[tuple[int, list[int], list[int]]]:
    """Per target: (target, the tokens that its predictor attends to, their positions)."""
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    length = batch.input_ids.shape[1]
    found = []
    for target, index in zip(batch.target_ids.tolist(), batch.target_index.tolist(), strict=True):
        row, column = divmod(index, length)
        seen = row * length + allowed[row, 0, column].nonzero()[:, 0]
        found.append((target, ids[seen].tolist(), positions[seen].tolist()))
    return found


def true_contexts(groups: list[Continuations]) -> list[tuple[int, list[int], list[int]]]:
    return [
        (c[t], [*g.prefix, *c[:t]], list(range(len(g.prefix) + t)))
        for g in groups
        for c in g.continuations
        for t in range(len(c))
    ]


def test_packed_layout_of_the_documented_example():
    batch = pack([EXAMPLE])
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 3, 21, 22]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch.target_ids.tolist() == [11, 12, 21, 22, 23]
    assert batch.target_index.tolist() == [2, 3, 4, 5, 6]
    assert batch.slot.tolist() == [0, 0, 1, 1, 1]
    assert batch.mask.tolist() == [[True, True]]
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    assert batch.group_ids.tolist() == [[0] * 7]
    assert batch.segment_ids.tolist() == [[0, 0, 1, 1, 2, 2, 2]]
    assert batch.pieces == [(2, [2, 3])]
    assert batch.attention_mask is None


def test_groups_share_a_row_and_positions_start_again():
    batch = pack([EXAMPLE, SHORT])
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 3, 21, 22, 5, 5, 41, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 0, 1, 0]]
    assert batch.target_index.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.slot.tolist() == [0, 0, 1, 1, 1, 3, 4, 4, 5]  # K = 3, so the second group's slots start at 3
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    assert batch.group_ids.tolist() == [[0] * 7 + [1] * 4]
    assert batch.segment_ids.tolist() == [[0, 0, 1, 1, 2, 2, 2, 1, 2, 2, 3]]


def test_padded_layout_of_the_documented_example():
    batch = pad([EXAMPLE])
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 12, 0], [1, 2, 3, 21, 22, 23]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert batch.target_ids.tolist() == [11, 12, 21, 22, 23]
    assert batch.target_index.tolist() == [2, 3, 8, 9, 10]
    assert batch.slot.tolist() == [0, 0, 1, 1, 1]
    assert batch.group_ids is None


def test_who_attends_to_whom_in_a_packed_row():
    batch = pack([EXAMPLE, SHORT])
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    allowed = packed_attention(batch.group_ids, batch.segment_ids)
    rows = ["".join("x" if attends else "." for attends in row) for row in allowed[0, 0].tolist()]
    assert allowed.shape == (1, 1, 11, 11)
    assert allowed.dtype == torch.bool
    assert rows == [
        "x..........",  # p1
        "xx.........",  # p2
        "xxx........",  # p3, a's copy
        "xxxx.......",  # a1
        "xx..x......",  # p3, b's copy: the prefix and itself, nothing of a
        "xx..xx.....",  # b1
        "xx..xxx....",  # b2
        ".......x...",  # the second group has no shared prefix: each segment stands alone
        "........x..",
        "........xx.",
        "..........x",
    ]


@pytest.mark.parametrize("seed", range(8))
def test_every_packed_target_is_predicted_from_its_own_true_context(seed: int):
    groups = random_groups(seed)
    batch = pack(groups)
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    allowed = packed_attention(batch.group_ids, batch.segment_ids)
    assert contexts(batch, allowed) == true_contexts(groups)


@pytest.mark.parametrize("seed", range(8))
def test_every_padded_target_is_predicted_from_its_own_true_context(seed: int):
    groups = random_groups(seed)
    batch = pad(groups)
    assert batch.attention_mask is not None
    length = batch.input_ids.shape[1]
    causal = torch.ones(length, length).tril().bool()
    allowed = (causal & batch.attention_mask[:, None, :].bool())[:, None]
    assert contexts(batch, allowed) == true_contexts(groups)


@pytest.mark.parametrize("arrange", [pack, pad])
@pytest.mark.parametrize("seed", range(4))
def test_slots_name_the_group_and_the_continuation(arrange, seed: int):
    groups = random_groups(seed)
    batch = arrange(groups)
    width = max(len(g.continuations) for g in groups)
    expected = [g * width + k for g, group in enumerate(groups) for k, c in enumerate(group.continuations) for _ in c]
    assert batch.slot.tolist() == expected
    assert batch.mask.flatten().nonzero()[:, 0].tolist() == sorted(set(expected))


@pytest.mark.parametrize("arrange", [pack, pad])
def test_mask_marks_the_continuations_that_exist(arrange):
    groups = [EXAMPLE, SHORT, Continuations([7, 8], [[9]])]
    assert arrange(groups).mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]


@pytest.mark.parametrize("seed", range(4))
def test_packed_rows_waste_no_position(seed: int):
    groups = random_groups(seed)
    batch = pack(groups)
    assert batch.padding == 0
    assert batch.input_ids.numel() == sum(g.packed_length for g in groups)
    # Positions that predict nothing are the shared prefixes and nothing else.
    assert batch.input_ids.numel() - len(batch.target_ids) == sum(len(g.prefix) - 1 for g in groups)


def test_padding_counts_the_positions_without_a_token():
    assert pad([EXAMPLE]).padding == 1
    assert pad([EXAMPLE, SHORT]).padding == 1 + 4 + 3 + 4  # five rows of 6: 5, 6, 2, 3 and 2 tokens


@pytest.mark.parametrize("arrange", [pack, pad])
def test_lengths_are_the_tokens_of_each_continuation(arrange):
    batch = arrange([Continuations([1, 2], [[3, 4, 5], [6]]), Continuations([7], [[8, 9]])])
    assert batch.lengths.tolist() == [[3, 1], [2, 0]]


def test_the_lengths_of_a_groups_layouts():
    assert EXAMPLE.packed_length == 2 + 2 + 3
    assert EXAMPLE.longest == 3 + 3
    assert SHORT.packed_length == 0 + 1 + 2 + 1
    assert pad([EXAMPLE, SHORT]).input_ids.shape == (5, EXAMPLE.longest)


@pytest.mark.parametrize("kind", [tuple, np.array])
def test_token_ids_may_be_tuples_or_arrays(kind):
    group = Continuations(kind(EXAMPLE.prefix), [kind(c) for c in EXAMPLE.continuations])
    for arrange in (pack, pad):
        assert arrange([group]).input_ids.tolist() == arrange([EXAMPLE]).input_ids.tolist()
        assert arrange([group]).target_ids.tolist() == [11, 12, 21, 22, 23]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([], []),
        ([10], [[0]]),
        ([4, 6], [[0, 1]]),  # exactly the budget
        ([4, 6, 1], [[0, 1], [2]]),
        ([4, 7, 3], [[0], [1, 2]]),
        ([3, 25, 3, 3], [[0], [1], [2, 3]]),  # over the budget: a row of its own
        ([25, 1], [[0], [1]]),
    ],
)
def test_rows_fill_up_to_the_budget_in_order(lengths: list[int], rows: list[list[int]]):
    assert split_by_budget(lengths, 10) == rows


@pytest.mark.parametrize(
    ("shapes", "passes"),
    [
        ([], []),
        ([(2, 5), (2, 5)], [[0, 1]]),  # 4 rows of 5: exactly the budget
        ([(2, 5), (2, 6)], [[0], [1]]),  # 10 and 12 positions alone, but 4 rows of 6 together
        ([(1, 12), (1, 2), (1, 2)], [[0], [1, 2]]),  # a short group would become as long as the long one
        ([(1, 2), (1, 2), (1, 12)], [[0, 1], [2]]),
        ([(3, 30), (1, 2)], [[0], [1]]),  # over the budget: a pass of its own
    ],
)
def test_padded_passes_count_every_row_at_the_longest_length(shapes: list[tuple[int, int]], passes: list[list[int]]):
    groups = [Continuations([1], [[2] * (longest - 1)] * rows) for rows, longest in shapes]
    assert split_padded(groups, 20) == passes
    for indices in passes:
        positions = pad([groups[i] for i in indices]).input_ids.numel()
        assert positions <= 20 or len(indices) == 1


@pytest.mark.parametrize("arrange", [pack, pad])
@pytest.mark.parametrize(
    ("group", "message"),
    [
        (Continuations([], [[1]]), "empty prefix"),
        (Continuations([1], []), "no continuation"),
        (Continuations([1], [[2], []]), "empty one"),
    ],
)
def test_empty_prefixes_and_continuations_are_refused(arrange, group: Continuations, message: str):
    with pytest.raises(ValueError, match=message):
        arrange([EXAMPLE, group])


@pytest.mark.parametrize("arrange", [pack, pad])
def test_moving_a_batch_keeps_every_field(arrange):
    batch = arrange([EXAMPLE, SHORT])
    moved = batch.to("meta")
    for name, value in vars(batch).items():
        other = getattr(moved, name)
        assert (other is None) == (value is None), name
        if isinstance(value, torch.Tensor):
            assert (other.device.type, other.shape) == ("meta", value.shape), name
        else:
            assert other == value, name
