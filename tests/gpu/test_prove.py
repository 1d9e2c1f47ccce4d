"""The program of `make gpu` without a GPU: real parts in small on the CPU, stubs for faults, the record."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from data.command.errors import UserError
from tests.gpu import prove
from tests.gpu.parts.attention import compared
from tests.gpu.parts.steps import memory_checks
from tests.gpu.plan import PARTS, Part
from tests.gpu.process import run_part
from tests.gpu.prove import ProveConfig, main, read_record
from tests.support.commands import ROOT, fork_command, run_command

HERE = {
    "kind": "cpu", "device": "CPU", "driver": "", "gibibytes": None, "python": "3.11", "versions": {"torch": "2"},
}  # fmt: skip
# Of each function one size, so that each kind of model is met.
IN_SMALL = ["parity", "parity-bfloat16", "start", "flex", "bfloat16", "cpo-124M", "mle-3B", "dpo-3B", "padded-1.5B"]
# What a machine need not have; a part that cannot do without it is left out.
HIDDEN = "trl datasets ray vllm openai sentence_transformers rouge_score sacrebleu matplotlib peft rich jinja2 pytest"
HIDING = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {HIDDEN.split()!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def stub(name: str, *arguments: str, **changes: Any) -> Part:
    return Part(name, f"tests.support.stub_parts:{name}", arguments, **changes)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The machine, as the program finds it; to be changed."""
    found = dict(HERE)
    monkeypatch.setattr(prove, "machine", lambda device: dict(found))
    monkeypatch.setattr(prove, "sources", lambda: "0123456789ab")
    monkeypatch.setattr(prove, "commit", lambda: "abc1234")
    return found


def run(out: Path, *parts: Part, **options: Any) -> int:
    return prove.prove(ProveConfig(**{"out": str(out), "device": "cpu", **options}), parts)


def test_parts_have_names_of_their_own_and_end_within_five_minutes() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert max(part.seconds for part in PARTS) <= 300
    assert ProveConfig().minutes <= 30


@pytest.mark.seconds
@pytest.mark.parametrize("name", IN_SMALL)
def test_a_real_part_in_small(name: str, tmp_path: Path) -> None:
    part = next(part for part in PARTS if part.name == name)
    result = tmp_path / "result.json"
    words = ["tests.gpu.process", part.function, str(result), "cpu", *part.arguments]
    done = fork_command(*words, env={"BENCH_SMALL": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert all(check["holds"] for check in found["checks"])
    if "-" not in name or name == "parity-bfloat16":
        assert len(found["checks"]) >= 3
        return
    (step,) = found["steps"]
    assert (step["method"], step["size"]) == tuple(name.split("-"))
    assert step["groups_per_second"] == pytest.approx(step["groups"] / step["seconds"])
    assert 0 < step["seconds"] < 60
    assert step["peak_bytes"] is None  # no figure of a CPU stands for a GPU's
    assert step["mfu"] is None
    assert step["prediction"] == ""  # nothing failed
    assert (step["predicted_bytes"] or 0) > 0 or name.split("-")[0] in ("dpo", "padded")


def test_a_peak_is_held_to_its_prediction_and_a_prediction_that_failed_is_no_pass() -> None:
    assert [c["holds"] for c in memory_checks(110, (100, ""))] == [True]
    assert [c["holds"] for c in memory_checks(120, (100, ""))] == [False]
    assert [c["holds"] for c in memory_checks(120, (None, "failed: no shape"))] == [False]
    assert memory_checks(None, (100, "")) == memory_checks(120, (None, "")) == []


def test_heads_whose_kernel_does_not_run_are_a_failed_check_and_no_end() -> None:
    def ours(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory\nmore")

    tensors = [torch.randn(1, 2, 8, 4) for _ in range(4)]
    right, wrong = (
        compared(attend, scaled_dot_product_attention, tensors, torch.float32, "2 heads")
        for attend in (scaled_dot_product_attention, lambda q, k, v: 1.1 * scaled_dot_product_attention(q, k, v))
    )
    assert (right[0]["what"], right[0]["value"]) == ("2 heads, float32: output, of its norm", 0.0)
    assert wrong[0]["value"] == pytest.approx(0.1, rel=1e-4)
    assert not wrong[0]["holds"]
    (check,) = compared(ours, scaled_dot_product_attention, tensors, torch.float32, "2 heads")
    assert check["what"] == "2 heads, float32: does not run (out of resource: shared memory)"
    assert not check["holds"]


@pytest.mark.slow
@pytest.mark.vllm
def test_the_an_stage_against_bare_vllm_in_small(tmp_path: Path) -> None:
    found = run_part(PARTS[-1], "cpu", tmp_path / "log", 300, small=True)
    assert found["outcome"] == "passed", found
    assert [row["name"] for row in found["result"]["sampling"]][:2] == [
        "AN stage", "bare vLLM, n = 11, the same settings",
    ]  # fmt: skip
    assert all(row["tokens_per_second"] > 0 for row in found["result"]["sampling"])


@pytest.mark.seconds
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = run_command("tests.gpu.prove", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: no GPU is at hand: torch ")
    assert done.stderr.endswith("`--device cpu` tries the program itself, in small.\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.seconds
def test_with_torch_and_little_else_real_parts_pass_and_others_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.prove", "--device", "cpu", "--out", str(tmp_path / "out"),
         "--parts", "cpo-124M,dpo-124M,an"],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    parts = read_record(tmp_path / "out/gpu.json")
    assert {name: part["outcome"] for name, part in parts.items()} == {
        "cpo-124M": "passed", "dpo-124M": "left out", "an": "left out",
    }  # fmt: skip
    assert parts["dpo-124M"]["why"] == "needs trl and datasets"
    assert parts["an"]["why"] == "needs vllm"
    on = parts["cpo-124M"]["on"]
    assert (on["kind"], on["extent"], on["driver"], on["gibibytes"]) == ("cpu", "small", "", None)
    page = (tmp_path / "out/gpu.md").read_text()
    assert page.startswith("## Not a GPU: the program tried on a CPU, in small\n")
    assert "| 124M | CPO, packed | " in page
    assert done.stdout.splitlines()[-1].startswith("1 passed, 2 left out: ")


def test_what_has_passed_is_kept_until_something_differs(
    here: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = tmp_path / "counted"
    part = stub("holds", str(counted))
    assert run(tmp_path, part) == 0
    assert run(tmp_path, part) == 0
    assert counted.read_text() == "cpu 1\n"
    assert "; kept\n" in capsys.readouterr().out
    here["device"] = "another CPU"
    here["versions"] = {"torch": "3"}
    assert run(tmp_path, part) == 0
    assert counted.read_text() == "cpu 1\n" * 2
    assert ", with other device and versions (CPU, commit abc1234)\n" in capsys.readouterr().out
    assert read_record(tmp_path / "gpu.json")["holds"]["on"]["device"] == "another CPU"


def test_a_commit_that_changes_no_source_makes_nothing_run_again(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = stub("holds", str(tmp_path / "counted"))
    run(tmp_path, part)
    monkeypatch.setattr(prove, "commit", lambda: "fff0000")
    run(tmp_path, part)
    assert (tmp_path / "counted").read_text() == "cpu 1\n"
    monkeypatch.setattr(prove, "sources", lambda: "ba9876543210")
    run(tmp_path, part)
    assert (tmp_path / "counted").read_text() == "cpu 1\n" * 2


def test_what_fails_is_recorded_with_its_last_lines_and_the_others_go_on(
    here: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = str(tmp_path / "counted")
    faults = [stub("raises"), stub("is_killed"), stub("is_beyond")]
    assert run(tmp_path, *faults, stub("holds", counted)) == 1
    record = read_record(tmp_path / "gpu.json")
    assert {name: part["outcome"] for name, part in record.items()} == {
        "raises": "failed", "is_killed": "failed", "is_beyond": "failed", "holds": "passed",
    }  # fmt: skip
    assert record["raises"]["why"] == "ended with status 1"
    assert "the last line but those of the trace" in record["raises"]["last_lines"]
    assert record["raises"]["last_lines"][-1] == "RuntimeError: no such kernel"
    assert record["is_killed"]["why"] == "ended by signal 9"
    assert record["is_beyond"]["why"] == "1 of 2 beyond bounds: c: b is 3, at most 2"
    assert record["is_beyond"]["result"]["checks"][1]["value"] == 3.0
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 failed, 1 passed: ")
    page = (tmp_path / "gpu.md").read_text()
    assert "    RuntimeError: no such kernel\n" in page
    assert "| `is_beyond` | b | 3 | c | at most 2: **beyond** |" in page
    # What has failed is tried again, after what was never tried.
    new = dataclasses.replace(stub("holds", counted), name="new")
    assert run(tmp_path, stub("raises"), new) == 1
    said = capsys.readouterr().out
    assert said.index("new: passed") < said.index("raises: once more; failed on ")


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(here: dict[str, Any], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    found = run_part(stub("hangs", str(pid)), "cpu", tmp_path / "log", 3, small=True)
    assert found["outcome"] == "out of time"
    assert found["why"] == "not done after 3 s"
    assert found["last_lines"] == ["started"]
    for _ in range(50):
        if not is_alive(int(pid.read_text())):
            return
        time.sleep(0.1)
    pytest.fail("what the part had started is still there")


def is_alive(pid: int) -> bool:
    """A process that has ended may wait for who asks for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_when_the_minutes_are_over_the_rest_is_left_for_the_next_time(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = stub("hangs", str(tmp_path / "pid")), stub("holds", str(tmp_path / "counted"))
    monkeypatch.setattr(prove, "LEAST_SECONDS", 1)
    assert run(tmp_path, *parts, minutes=2 / 60) == 1
    assert not (tmp_path / "gpu.json").exists()
    assert capsys.readouterr().out.count("minutes are over\n") == 2
    assert run(tmp_path, parts[1]) == 0


def test_left_out_is_what_needs_more_than_there_is(here: dict[str, Any], tmp_path: Path) -> None:
    here.update(kind="cuda", gibibytes=22.0, device="NVIDIA L4", driver="580")
    counted = str(tmp_path / "counted")
    parts = stub("holds", counted, gibibytes=40), dataclasses.replace(stub("holds", counted), name="small")
    # No GPU is asked for: the stub does nothing.
    assert run(tmp_path, *parts, device="cuda") == 0
    record = read_record(tmp_path / "gpu.json")
    assert record["holds"]["why"] == "needs about 40 GiB of GPU memory, of 22"
    assert record["small"]["outcome"] == "passed"
    assert Path(counted).read_text() == "cuda 0\n"


def test_leaving_out_does_not_forget_that_a_part_has_passed_elsewhere(here: dict[str, Any], tmp_path: Path) -> None:
    part = stub("holds", str(tmp_path / "counted"))
    run(tmp_path, part)
    here["device"] = "a machine without it"
    assert run(tmp_path, dataclasses.replace(part, needs=("no_such_package",))) == 0
    assert read_record(tmp_path / "gpu.json")["holds"]["outcome"] == "passed"


def test_a_part_that_is_not_there_and_a_record_that_is_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--parts", "cpo-1.5"]) == 2
    assert "there is no part 'cpo-1.5'. Did you mean 'cpo-1.5B'? There are parity, " in capsys.readouterr().err
    assert main(["--device", "tpu"]) == 2
    assert "--device must be cuda or cpu, not 'tpu'." in capsys.readouterr().err
    (tmp_path / "gpu.json").write_text('{"parts": ')
    with pytest.raises(UserError, match="is no record of python"):
        read_record(tmp_path / "gpu.json")


def test_help_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    assert all(part.name in said for part in PARTS)
