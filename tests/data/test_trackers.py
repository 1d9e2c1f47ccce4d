"""--report_to: what is refused at the start, and what an offline run leaves in trackio and TensorBoard."""

import logging
from pathlib import Path
from typing import Any

import pytest

from data.command import trackers
from data.command.errors import UserError
from data.command.trackers import check_trackers, report, reporting_to, reports, valid_name
from tests.support.written import scalars, trackio_run


def test_names_are_checked_before_anything_is_imported() -> None:
    assert check_trackers(["none"]) == []
    assert check_trackers(["tensorboard", "trackio", "tensorboard"]) == ["tensorboard", "trackio"]
    with pytest.raises(UserError, match=r"'tensorbord'. Did you mean 'tensorboard'\? Use some of wandb,"):
        check_trackers(["tensorbord"])
    with pytest.raises(UserError, match="'none' stands alone"):
        check_trackers(["none", "trackio"])


def test_a_tracker_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "mlflow", "no_such_package")
    with pytest.raises(UserError) as caught:
        check_trackers(["mlflow"])
    assert str(caught.value) == (
        "--report_to mlflow needs a package that is not installed: pip install no_such_package."
    )


def test_tensorboard_of_an_object_store_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trackers.TENSORBOARD_VARIABLE, raising=False)
    with (
        pytest.raises(UserError, match=r"say in \$TENSORBOARD_LOGGING_DIR where"),
        reporting_to(["tensorboard"], "s3://bucket/set", {}),
    ):
        raise AssertionError("started")


@pytest.mark.seconds
def test_an_offline_run_is_in_trackio_and_in_tensorboard(tmp_path: Path, trackio_folder: Path) -> None:
    config = {"model": {"name": "m"}, "strategies": ["an=1"], "limit": None, "seed": 0}
    assert not reports()
    with reporting_to(["trackio", "tensorboard"], str(tmp_path / "set"), config):
        assert reports()
        report({"groups": 8, "shard/occupancy": None, "tokens_per_second": 1.5})
        report({"groups": 16, "shard/occupancy": 0.75, "tokens_per_second": 2.5})
    report({"groups": 99})  # nobody is told
    assert scalars(tmp_path / "set-tensorboard/set") == {
        "groups": [(1, 8.0), (2, 16.0)],
        "shard/occupancy": [(2, 0.75)],
        "tokens_per_second": [(1, 1.5), (2, 2.5)],
    }
    assert trackio_run(trackio_folder, "set") == [
        (1, {"groups": 8, "tokens_per_second": 1.5}),
        (2, {"groups": 16, "shard/occupancy": 0.75, "tokens_per_second": 2.5}),
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("shard/seconds/score", "shard/seconds/score"),
        ("rejected_by_reason/prompt and response too long", "rejected_by_reason/prompt and response too long"),
        ("O/alpha-0.1/top_k=50/win rate (judge)", "O/alpha-0.1/top_k_50/win rate _judge_"),
        ("rejected_by_reason/'name' cannot be kept", "rejected_by_reason/_name_ cannot be kept"),
        ("my.module:METRIC", "my.module_METRIC"),
        ("Größe/50%", "Größe/50_"),
        ("a\nb", "a_b"),
        ("/a//b/./../c/", "a/b/_/_/c"),
        ("x" * 249 + "/y", "x" * 249),
        ("x" * 300, "x" * 250),
        ("", "_"),
        ("/", "_"),
    ],
)
def test_names_are_made_what_every_tracker_takes(text: str, name: str) -> None:
    assert valid_name(text) == name
    assert valid_name(name) == name


def test_a_tracker_that_fails_is_told_no_more_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    class TrackerStub:
        name = "tensorboard"

        def start(self) -> None: ...

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append(values)

        def log(self, values: dict[str, Any], step: int) -> None:
            told.append((values, step))
            raise OSError("no space")

        def finish(self) -> None:
            raise AssertionError("it has failed")

    monkeypatch.setattr(trackers, "_make", lambda *_: TrackerStub())
    config = {"a": {"b": [1]}, "engine": {"odd:key": "x" * 7000}}
    with reporting_to(["tensorboard"], str(tmp_path / "set"), config), caplog.at_level(logging.WARNING):
        report({"x (y)": 1.0})
        report({"x": 2.0})
    assert told == [{"a.b": "[1]", "engine.odd_key": "x" * 6000}, ({"x _y_": 1.0}, 1)]
    assert [r.getMessage() for r in caplog.records] == ["tracker tensorboard has failed and is told no more: no space"]


def test_a_tracker_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TrackerStub:
        def start(self) -> None:
            raise RuntimeError("no key.\nMore of it.")

    monkeypatch.setattr(trackers, "_make", lambda *_: TrackerStub())
    with pytest.raises(UserError, match=r"^--report_to wandb: it does not start: RuntimeError: no key\. Correct its"):
        trackers.Trackers(["wandb"], str(tmp_path / "set"), {})
