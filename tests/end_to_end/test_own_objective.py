"""An objective of one's own: a module outside of this repository, used by the real command."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import fork_command
from tests.support.training import metrics

pytestmark = pytest.mark.seconds

SOURCE = '''
"""Identity preference optimisation (arXiv 2310.12036) over all negatives."""

from dataclasses import dataclass

from data.command.errors import UserError
from data.command.options import option
from trainer.objectives.base import Expected, Objective, Term


@dataclass(frozen=True)
class Options:
    tau: float = option(0.1, "how far apart ground truth and negatives are to be")
    log_more: bool = option(False, "log what the loss does not need", decides=False)

    def check(self) -> None:
        if self.tau <= 0:
            raise UserError(f"--tau must be above 0, got {self.tau}.")


class IPO(Objective):
    name = "ipo"
    summary = "a squared margin"
    Options = Options

    def terms(self, policy_logps, groups, options):
        difference = policy_logps - groups.reference_logps
        margins = (difference[:, :1] - difference)[:, 1:]
        exists = groups.tokens.mask[:, 1:]
        squares = ((margins - 1 / (2 * options.tau)) ** 2 * exists).sum(-1) / exists.sum(-1)
        return {
            "margin": Term(squares.sum()),
            "length": Term(-policy_logps[:, 0].sum(), "truth tokens", weight=0.5),
        }

    def metrics(self, policy_logps, groups, options):
        metrics = dict(super().metrics(policy_logps, groups, options))
        metrics["ipo/squared_logp"] = policy_logps[:, 0] ** 2
        return metrics

    def expected_at_start(self, groups, options):
        values = groups.reference_logps[:, 0] * 0 + 1 / (2 * options.tau) ** 2
        return Expected("margin", "1 / (2 tau)^2", values)


MINE = IPO()
'''
TAU = 0.25
AT_START = 1 / (2 * TAU) ** 2


def command(folder: Path, *more: str) -> subprocess.CompletedProcess:
    """`python -m trainer.run` in the folder that holds the module."""
    return fork_command("trainer.run", *more, cwd=folder)


def words(reference: Path, negative_set: Path, output: Path) -> list[str]:
    return [
        "--objective", "my_objectives:MINE", "--tau", str(TAU), "--shards", str(negative_set),
        "--model", str(reference), "--output_dir", str(output), "--per_device_train_batch_size", "8",
        "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-3", "--use_cpu",
        "--report_to", "none", "--disable_tqdm", "true",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(reference: Path, negative_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module and a finished run, out/."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_objectives.py").write_text(SOURCE)
    done = command(folder, *words(reference, negative_set, folder / "out"))
    assert done.returncode == 0, done.stderr
    assert f"({'1 / (2 tau)^2'} is {AT_START:.4f})" in done.stderr
    assert "INFO trainer.setup: ipo, " in done.stderr
    return folder


def interrupted(trained: Path, out: Path) -> Path:
    """What a run leaves that is stopped after its second step."""
    shutil.copytree(trained / "out", out)
    shutil.rmtree(out / "checkpoint-4")
    for name in ("model.safetensors", "trainer_state.json"):
        (out / name).unlink()
    return out


def test_terms_and_metrics_of_an_objective_of_ones_own_are_logged_and_the_first_loss_is_the_expected_one(
    trained: Path,
) -> None:
    lines = [line for line in metrics(trained / "out") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss/margin"] + 0.5 * line["loss/length"], rel=1e-5)
        # A mean of squares is at least the square of the mean.
        assert line["ipo/squared_logp"] >= line["logps/ground_truth"] ** 2
    assert lines[0]["loss/margin"] == pytest.approx(AT_START, rel=1e-4)
    assert abs(lines[0]["rewards/margin"]) < 1e-3  # its h are differences, beta is 1
    assert lines[-1]["loss/margin"] < lines[0]["loss/margin"] - 0.1


def test_the_record_names_the_objectives_module_and_the_hash_of_its_source(trained: Path) -> None:
    record = json.loads((trained / "out" / "trainer_job.json").read_text())
    digest = hashlib.sha256((trained / "my_objectives.py").read_bytes()).hexdigest()
    assert record["objective"] == "ipo"
    assert record["origin"] == {"entry": "my_objectives:MINE", "source_sha256": digest}
    assert record["tau"] == TAU
    assert "beta" not in record
    assert "log_more" not in record  # it decides nothing


def test_options_of_an_objective_of_ones_own_are_in_the_help_when_it_is_named(trained: Path) -> None:
    named = command(trained, "--objective", "my_objectives:MINE", "--help").stdout
    assert "  --tau X\n        ipo: how far apart ground truth and negatives are to be (default: 0.1)" in named
    assert "--tau" not in command(trained, "--help").stdout


@pytest.mark.parametrize("module", ["my_objectives", "moved_objectives"])
def test_an_objective_of_ones_own_is_resumed_also_where_its_module_moved_as_if_never_stopped(
    module: str, trained: Path, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    out = interrupted(trained, tmp_path / "out")
    (trained / f"{module}.py").write_text(SOURCE)
    whole = (trained / "out" / "model.safetensors").read_bytes()
    more = [*words(reference, negative_set, out), "--objective", f"{module}:MINE", "--log_more"]
    more += ["--resume_from_checkpoint"]
    done = command(trained, *more)
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == whole
    assert [line["loss"] for line in metrics(out) if "loss" in line] == [
        line["loss"] for line in metrics(trained / "out") if "loss" in line
    ]


def test_a_resume_with_another_value_of_the_objectives_option_or_other_source_is_refused(
    trained: Path, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    out = interrupted(trained, tmp_path / "out")
    resume = [*words(reference, negative_set, out), "--resume_from_checkpoint", "true"]
    other_value = command(trained, *resume, "--tau", "0.5")
    assert other_value.returncode == 2
    assert "already holds another job: its tau is 0.25, this job's is 0.5." in other_value.stderr
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "my_objectives.py").write_text(SOURCE.replace("weight=0.5", "weight=0.25"))
    other_source = command(changed, *resume)
    assert other_source.returncode == 2
    assert "already holds another job: its origin.source_sha256 is" in other_source.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tau", "0"), "--tau must be above 0, got 0.0."),
        (("--tauu", "1"), "unknown key 'tauu' on the command line of python -m trainer.run. Did you mean 'tau'?"),
        (
            ("--sft_weight", "1"),
            "--sft_weight does not apply to objective 'ipo'; it goes with --objective cpo and cpo-",
        ),
        (("--objective", "my_objectives:YOURS"), "module 'my_objectives' defines no 'YOURS'"),
        (("--objective", "cpo"), "unknown key 'tau'"),
    ],
)
def test_wrong_options_of_an_objective_of_ones_own_are_refused_in_one_line(
    more: tuple[str, ...], said: str, trained: Path, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    done = command(trained, *words(reference, negative_set, tmp_path / "out"), *more)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
