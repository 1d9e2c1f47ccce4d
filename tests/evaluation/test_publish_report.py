"""A report on a hub that a stub stands for."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard

from data.command.errors import UserError
from data.command.options import make_config
from data.storage import Folder
from evaluation.config import EvaluateConfig
from evaluation.publish_report import publish_report
from evaluation.run import evaluate
from tests.support.hub import HubStub


def test_a_report_is_pushed_without_its_store_and_its_page_is_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubStub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    for name in (
        "report.md",
        "report.html",
        "report.json",
        "alpha.svg",
        "evaluation_job.json",
        "store/verdicts.sqlite",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    publish_report(Folder(str(tmp_path)), "me/report")
    assert [call[:2] for call in hub.calls] == [("create_repo", "me/report"), ("upload_folder", "me/report")]
    assert hub.calls[0][2]["repo_type"] == "dataset"
    assert set(hub.files) == {"README.md", "report.md", "report.html", "report.json", "alpha.svg"}
    card = DatasetCard(hub.files["README.md"].decode())
    assert card.data.to_dict()["tags"] == ["evaluation", "contrastive-preference-optimization"]
    assert card.text.strip() == "# report.md"


def test_who_may_not_push_is_told_before_anything_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", HubStub)
    options = {"model": ["no/such/model"], "dataset": "facts", "push_to_hub": "theirs/report"}
    config = make_config(EvaluateConfig, out=str(tmp_path / "out"), **options)
    with pytest.raises(UserError, match=r"^nothing can be pushed to 'theirs/report': 'me' does not belong"):
        evaluate(config)
    assert not (tmp_path / "out").exists()
