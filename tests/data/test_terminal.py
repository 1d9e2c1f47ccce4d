"""What reaches a terminal: nothing that moves its cursor, sets its colours or turns its text around."""

import io
import json
import logging
import os
import sys

import pytest

from data.command.cleaning import printable, storable
from data.command.errors import UserError, exit_on_user_error
from data.command.log import JSONFormatter, ScrubbingFormatter, start_logging
from data.command.terminal import say
from negatives_gen.job.actors import Stage
from tests.support.terminal_stream import Terminal

HOSTILE = "a\x1b[2J\x07\x9b31m\u202eb\u2066\u200f\ud800\r\x00"
SPELLED = "a\\x1b[2J\\x07\\x9b31m\\u202eb\\u2066\\u200f\\ud800\\r\\x00"


def test_every_control_and_bidirectional_character_is_spelled_out() -> None:
    assert printable(HOSTILE) == SPELLED
    assert printable("\tline\nnext é 漢字 👩\u200d👩 שלום") == "\tline\nnext é 漢字 👩\u200d👩 שלום"
    bidirectional = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
    assert printable(bidirectional).isascii()


def test_half_a_surrogate_pair_is_no_text_that_can_be_kept() -> None:
    assert storable("a\ud800b\udfff") == "a?b?"
    assert storable("👩") == "👩"


def test_the_output_of_a_command_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, error=True)
    assert capsys.readouterr() == (f"{SPELLED}\n", f"{SPELLED}\n")


def test_warnings_that_tell_nothing_are_not_shown_and_others_of_their_library_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [*logging.getLogger().handlers])
    library = logging.getLogger("transformers.trainer_utils")
    monkeypatch.setattr(library, "filters", [])
    library.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING, library.name)  # whatever another test has set for all of transformers
    try:
        start_logging()
        library.warning("The tokenizer has new PAD/BOS/EOS tokens that differ from the model config")
        library.warning("The checkpoint is incomplete")
    finally:
        library.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"The checkpoint is incomplete"}


def test_a_terminal_without_utf_8_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("é")
    assert raw.getvalue() == b"\\xe9\n"


def test_an_error_of_a_command_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise UserError(f"no {HOSTILE}")

    assert main([]) == 2
    assert capsys.readouterr().err == f"error: no {SPELLED}\n".replace("\\r", " ")


def test_a_line_of_the_log_cannot_steer_a_terminal() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "said %s", (HOSTILE,), None)
    assert ScrubbingFormatter("%(message)s").format(record) == f"said {SPELLED}"
    line = JSONFormatter().format(record)
    assert line.isascii()
    assert json.loads(line)["message"] == f"said {HOSTILE}"


def test_what_a_worker_logs_is_clean_and_no_more_than_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a worker of Ray, where no command has started logging."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setenv("SOME_API_KEY", "secret-of-mine")
    Stage(None)  # type: ignore[arg-type]  # it keeps what fails for the driver
    logging.getLogger("data.worker").info("never said")
    logging.getLogger("data.worker").warning("tensor %s of %s", HOSTILE, "secret-of-mine")
    assert capsys.readouterr().err == f"WARNING data.worker: tensor {SPELLED} of ***\n"


def test_bars_are_shown_on_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])  # start_logging adds none then
    monkeypatch.setenv("TQDM_DISABLE", "")
    for stream, disabled in ((Terminal(), ""), (io.StringIO(), "1")):
        monkeypatch.setattr(sys, "stderr", stream)
        start_logging()
        assert os.environ["TQDM_DISABLE"] == disabled


def test_a_line_goes_above_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm import tqdm

    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with tqdm(total=2, file=stream, disable=False, mininterval=0) as bar:
        bar.update()
        say("a line", error=True)
    before, after = stream.getvalue().split("a line\n")
    assert before.endswith("\r")  # the bar was wiped off
    assert after.startswith("\r 50%")
