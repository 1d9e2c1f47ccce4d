"""A report on a hub that a stub stands for."""

import re
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard

from data.command.errors import UserError
from data.command.options import make_config
from data.storage import Folder
from evaluation.config import EvaluateConfig
from evaluation.publish_report import publish_report
from evaluation.report import write_report
from evaluation.run import evaluate
from tests.support.hub import HubStub
from tests.support.reports import make_results, make_sweep


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


def test_the_card_names_models_prompts_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubStub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    write_report(Folder(str(tmp_path)), make_results(sweep=make_sweep()))
    publish_report(Folder(str(tmp_path)), "me/report")
    card = hub.files["README.md"].decode()
    for line in (
        "1,000 of 1,010 prompts of databricks-dolly-15k.jsonl, split test",
        f"- mle: `runs/mle`, weights {'a' * 16}, tokenizer {'f' * 16}",
        f"- anr: `runs/anr`, weights {'b' * 16}, tokenizer {'f' * 16}",
        f"- data.measured_sha256: {'9' * 16}",
        "- win rate: ",
        "- decodings: greedy",
    ):
        assert line in card
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card)
    assert images
    assert set(images) <= hub.files.keys()


def test_who_may_not_push_is_told_before_anything_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", HubStub)
    options = {"model": ["no/such/model"], "dataset": "facts", "push_to_hub": "theirs/report"}
    config = make_config(EvaluateConfig, out=str(tmp_path / "out"), **options)
    with pytest.raises(UserError, match=r"^nothing can be pushed to 'theirs/report': 'me' does not belong"):
        evaluate(config)
    assert not (tmp_path / "out").exists()
