"""Counts, durations and sizes in words."""

import math

import pytest

from data.command.wording import counted, duration, size, whole_duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (0.0003, "under 1 ms"), (0.0042, "4.2 ms"), (0.04, "40 ms"), (0.3, "0.3 s"), (1.0, "1 s"),
        (2.34, "2.3 s"), (9.94, "9.9 s"), (9.97, "10 s"), (60, "60 s"), (119.4, "119 s"),
        (120, "2 min"), (5400, "90 min"), (7200, "2 h"), (9000, "2.5 h"), (172_800, "2 days"), (270_000, "3.1 days"),
        (math.inf, "for ever"),
    ],
)  # fmt: skip
def test_a_duration_is_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_of_a_whole_job_parts_of_a_second_are_not_said() -> None:
    assert [whole_duration(seconds) for seconds in (0.0, 0.0003, 0.99, 1, 5400)] == [
        *["under a second"] * 3, "1 s", "90 min",
    ]  # fmt: skip


def test_a_count_has_its_noun_in_the_right_number() -> None:
    assert [counted(n, "shard") for n in (0, 1, 2, 12_400)] == ["0 shards", "1 shard", "2 shards", "12,400 shards"]
    assert counted(1, "process", "processes") == "1 process"
    assert counted(2, "process", "processes") == "2 processes"
    assert [counted(n, "GPU") for n in (0.7, 1.0, 2.0)] == ["0.7 GPUs", "1 GPU", "2 GPUs"]


def test_bytes_are_in_the_unit_that_fits() -> None:
    assert [size(n) for n in (1, 514, 2048, 29_415, 6 * 2**30)] == [
        "1 byte",
        "514 bytes",
        "2.0 KiB",
        "28.7 KiB",
        "6.0 GiB",
    ]
