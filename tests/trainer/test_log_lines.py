"""A training log in one line: its values, and who says it where."""

import math
from pathlib import Path

import pytest
from transformers import PrinterCallback, ProgressCallback

from data.command.terminal import show_people
from tests.support.terminal_stream import Terminal
from tests.support.training import Run, make_trainer
from trainer.leftovers import describe_checkpoints
from trainer.monitor.log_lines import LogLines, log_line, short

CPO = {
    "loss": 2.2112, "start/contrast": math.log(12), "grad_norm": 9.1, "rewards/margin": 1.708, "rewards/top1": 0.25,
    "rewards/kendall_tau": 0.418, "tokens_per_second": 1240.4, "epoch": 1.0,
}  # fmt: skip


def test_a_contrast_has_its_start_its_margin_and_the_time_left() -> None:
    assert log_line(CPO, step=25, steps=75, seconds_left=121) == (
        "step 25/75  loss 2.21 (start 2.48)  margin 1.7  top-1 25%  1,240 tok/s  2 min left"
    )


def test_the_order_of_negatives_is_shown_where_it_is_learned() -> None:
    line = log_line({**CPO, "start/contrast": math.log(math.factorial(4))}, step=25, steps=75, ranking=True)
    assert line == "step 25/75  loss 2.21 (start 3.18)  margin 1.7  top-1 25%  tau 0.42  1,240 tok/s"


def test_mle_has_no_margin() -> None:
    logs = {"loss": 6.5, "logps/ground_truth": -81.0, "tokens_per_second": 333.0}
    assert log_line(logs, step=1, steps=1200, seconds_left=9000) == "step 1/1,200  loss 6.50  333 tok/s  2.5 h left"


def test_several_terms_have_the_start_beside_the_one_it_is_of() -> None:
    logs = {**CPO, "loss/contrast": 2.2112, "loss/sft": 3.0, "loss": 3.7112}
    assert log_line(logs, step=1, steps=2).startswith("step 1/2  loss 3.71  contrast 2.21 (start 2.48)  margin 1.7  ")


def test_held_out_groups_say_so_and_no_time() -> None:
    logs = {f"eval_{name}": value for name, value in CPO.items() if name != "tokens_per_second"}
    assert log_line({**logs, "eval_runtime": 0.1, "epoch": 1.0}, step=25, steps=75, seconds_left=9) == (
        "step 25/75  held-out loss 2.21 (start 2.48)  margin 1.7  top-1 25%"
    )


def test_the_end_says_how_long_it_took_and_a_log_without_a_loss_nothing() -> None:
    end = {"train_runtime": 190.2, "train_samples_per_second": 31.45, "train_loss": 1.578, "epoch": 2.0}
    assert log_line(end, step=75, steps=75) == "step 75/75  done in 3 min"
    assert log_line({"epoch": 1.0, "own/number": 3.0}, step=3, steps=75) == ""
    with_time = {"loss": 2.0, "train_runtime": 9.1, "num_input_tokens_seen": 512}  # --include_num_input_tokens_seen
    assert log_line(with_time, step=3, steps=75) == "step 3/75  loss 2.00"
    assert log_line({"loss": None}, step=3, steps=75) == ""


def test_a_number_too_small_for_its_digits_keeps_its_first_one() -> None:
    found = [short(value, 2) for value in (0.0, 0.0001061, -0.0042, 0.0815, 12.347)]
    assert found == ["0.00", "0.0001", "-0.004", "0.08", "12.35"]
    assert short(math.nan, 2) == "nan"


def test_without_a_terminal_each_log_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, LogLines())
    run.state.max_steps = 3
    run.state.global_step = 1
    run.event("on_step_end")
    run.log(1, loss=2.0)
    run.event("on_train_end")
    assert capsys.readouterr() == ("", "step 1/3  loss 2.00\n")


def test_of_several_processes_the_first_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, LogLines(), main=False)
    run.event("on_step_end")
    run.log(1, loss=2.0)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    people = Terminal(), Terminal()
    show_people(people)
    try:
        assert LogLines().bar
        assert not LogLines(bar=False).bar
    finally:
        show_people(None)
    assert not LogLines().bar  # pytest's is none


def test_time_left_counts_from_the_first_step_of_this_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("trainer.monitor.log_lines.time.monotonic", lambda: clock["now"])
    run = Run(tmp_path, LogLines())
    run.state.max_steps = 110
    for step, now in ((10, 500.0), (20, 530.0)):  # resumed at 9; the first step took 500 s
        clock["now"], run.state.global_step = now, step
        run.event("on_step_end")
        run.log(step, loss=1.0)
    assert capsys.readouterr().err.splitlines() == ["step 10/110  loss 1.00", "step 20/110  loss 1.00  4 min left"]


def test_a_run_says_lines_and_no_dictionaries(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, objective="cpo-rank", max_steps=2, logging_steps=1, report_to="none",
        per_device_train_batch_size=4,
    )  # fmt: skip
    LogLines.replace_in(trainer, ranking=True)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert LogLines in kinds
    assert not {PrinterCallback, ProgressCallback} & set(kinds)
    trainer.train()
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 1/2", "step 2/2", "step 2/2"]
    assert lines[0].startswith("step 1/2  loss 3.18 (start 3.18)  margin 0.0  top-1 0%  tau 0.00  ")
    assert "{" not in said.out
    assert "\r" not in said.err


def checkpoint(folder: Path, **files: int) -> None:
    folder.mkdir()
    for name, length in files.items():
        (folder / name.replace("__", ".")).write_bytes(bytes(length))


def test_what_checkpoints_hold_and_how_to_drop_what_resumes(tmp_path: Path) -> None:
    assert describe_checkpoints(tmp_path) == ""
    checkpoint(tmp_path / "checkpoint-6", model__safetensors=1024, optimizer__pt=2048, scheduler__pt=512)
    assert describe_checkpoints(tmp_path) == (
        f"checkpoint-6 in {tmp_path}, 3.5 KiB: the model as it was then, and 2.5 KiB of optimiser and the like that "
        "only --resume_from_checkpoint needs. To drop that: rm -r "
        f"{tmp_path}/checkpoint-*/{{optimizer.pt,scheduler.pt}}"
    )
    checkpoint(tmp_path / "checkpoint-12", model__safetensors=1024)
    assert describe_checkpoints(tmp_path).startswith(
        f"2 checkpoints in {tmp_path}, 4.5 KiB: each a model as it was then"
    )


def test_checkpoints_of_models_alone_have_nothing_to_drop(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint-6", model__safetensors=10)
    assert describe_checkpoints(tmp_path) == f"checkpoint-6 in {tmp_path}, 10 bytes: the model as it was then"
