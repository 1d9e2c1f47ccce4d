"""Tables that fit the width they are shown in."""

import os

import pytest

from data.command.fitting import Column, as_text, tables
from data.command.terminal import PLAIN_WIDTH, show_people, width


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (31, [["a", "bb", "cccc"]]),
        (30, [["a", "bb"], ["cccc"]]),
        (22, [["a"], ["bb"], ["cccc"]]),
        (3, [["a"], ["bb"], ["cccc"]]),
    ],
)
def test_columns_that_do_not_fit_stand_below_beside_the_first_again(width: int, parts: list[list[str]]) -> None:
    # 2 + 8 (name), and 3 before each of 4, 3 and 5.
    columns = [Column("a", ["1234"]), Column("bb", ["123"]), Column("cccc", ["12345"])]
    made = tables("title", [Column("strategy", ["truth"])], columns, width)
    assert [[column.header for column in table.columns[1:]] for table in made] == parts
    assert [table.title for table in made] == ["title", *[None] * (len(parts) - 1)]


def shown(columns: int, model: str = "cpo", heading: str = "win rate minus reference, 95% interval") -> list[str]:
    """Lines of a table of one model and two numbers."""
    others = [Column(heading, ["+1.0 to +2.0%"]), Column("n", ["990"])]
    return as_text([Column("model", [model], right=False)], others, columns).splitlines()


def test_headings_are_folded_and_columns_stand_below_each_other_without_anything_lost() -> None:
    assert shown(40) == [
        "         win rate minus",
        "         reference, 95%",
        " model         interval     n",
        " ────────────────────────────",
        " cpo      +1.0 to +2.0%   990",
    ]
    assert shown(28)[-4:] == ["", " model     n", " ───────────", " cpo     990"]


def test_names_that_are_too_long_are_folded_not_cut() -> None:
    for columns in (40, 60, 80):
        lines = shown(columns, "m" * 60, "x" * 50)
        assert max(map(len, lines)) <= columns
        text = "".join(lines)
        assert text.count("x") == 50
        assert text.count("m") % 60 == text.count("model")  # each part has the whole name, beside its heading "model"


def test_what_could_steer_a_terminal_is_spelled_out() -> None:
    assert "\\x1b[2J" in "".join(shown(80, "a\x1b[2J"))
    assert "[red]" in "".join(shown(80, "[red]"))


def test_width_is_the_terminals_or_fixed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width() == PLAIN_WIDTH == 100  # pytest reads stdout: a pipe or a file
    monkeypatch.setenv("COLUMNS", "57")
    assert width() == 57
    monkeypatch.setenv("COLUMNS", "0")
    assert width() == PLAIN_WIDTH
    ours, theirs = os.openpty()
    try:
        with open(theirs, "w", closefd=False) as terminal:
            import fcntl
            import struct
            import termios

            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 63, 0, 0))
            show_people((terminal, terminal))
            assert width() == 63  # of the stream that people read, wherever the process's own leads
    finally:
        show_people(None)
        os.close(ours)
        os.close(theirs)
