"""Ranking signal `reward`: what the reward model's chat template cannot take is said before anything is made."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from data.command.errors import UserError
from data.command.options import make_config
from data.shards import NegativeSet
from negatives_gen.config import GenerateConfig
from negatives_gen.job.job import generate
from negatives_gen.models import reward_model as reward_models
from negatives_gen.verbs.extend import ExtendConfig, extend
from tests.support import odd_tokenizers as odd
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + PLAIN
REFUSED = r"^the chat template of --reward_model '.*' refuses messages of system, user, assistant \(no system\)"


@pytest.fixture(scope="module")
def chat_model(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    odd.save_model(folder, odd.chatml(reference))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten chats, of which the last has a system turn; in shards of four it is in the last one."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    systems = [[]] * 9 + [[{"role": "system", "content": "Be brief."}]]
    lines = []
    for number, system in enumerate(systems):
        asked = {"role": "user", "content": f"Question {number}?"}
        lines.append({"messages": [*system, asked, {"role": "assistant", "content": f"Answer {number * number}."}]})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def judge(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose chat template takes any roles."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = PLAIN
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(chat_model, num_labels=1, pad_token_id=tokenizer.eos_token_id)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_template(judge: Path, folder: Path, template: str) -> str:
    copied = shutil.copytree(judge, folder)
    (copied / "chat_template.jinja").write_text(template)
    return str(copied)


def made(model: Path, rows: Path, out: Path, **options: Any) -> None:
    words = {
        "dataset": str(rows),
        "task": "conversational",
        "split": "all",
        "strategies": "bn=1",
        "groups_per_shard": 4,
    }
    with without_ray():
        generate(make_config(GenerateConfig, **{"model": str(model), "out": str(out), **words, **options}))


def test_a_chat_of_the_last_shard_that_the_template_refuses_ends_the_job_before_it_begins(
    chat_model: Path, rows: Path, judge: Path, tmp_path: Path
) -> None:
    reward = with_template(judge, tmp_path / "reward", NO_SYSTEM)
    with pytest.raises(UserError, match=REFUSED):
        made(chat_model, rows, tmp_path / "set", signals="reward", reward_model=reward)
    assert not (tmp_path / "set").exists()


def test_what_the_reference_refuses_itself_is_no_matter_of_the_reward_model(
    chat_model: Path, rows: Path, judge: Path, tmp_path: Path
) -> None:
    """The chat with a system turn is rejected, so that no reward is asked of it."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    model = shutil.copytree(chat_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(refuses + odd.CHATML)
    reward = with_template(judge, tmp_path / "reward", NO_SYSTEM)
    made(model, rows, tmp_path / "set", signals="reward", reward_model=reward, test_share=0.0)
    negatives = NegativeSet(str(tmp_path / "set"))
    assert [reject.reason for reject in negatives.rejects()] == ["chat template failed"]
    assert len(list(negatives.groups())) == 9


def test_a_kind_of_chat_that_gives_a_warning_does_not_hide_one_that_is_refused(
    judge: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    reward = with_template(judge, tmp_path / "reward", refuses + template)
    asked = {"role": "user", "content": "Who?"}
    tool, system = ({"role": role, "content": "so"} for role in ("tool", "system"))
    with pytest.raises(UserError, match=REFUSED):
        reward_models.check_template(reward, "--reward_model", [[asked, tool], [asked, tool, asked], [system, asked]])
    assert caplog.text.count("so that rewards do not depend on it") == 1


def test_extend_tries_it_too_before_it_makes_anything(
    chat_model: Path, rows: Path, judge: Path, tmp_path: Path
) -> None:
    made(chat_model, rows, tmp_path / "set", signals="rouge")
    reward = with_template(judge, tmp_path / "reward", NO_SYSTEM)

    def extended(reward_model: str) -> None:
        options = {"out": str(tmp_path / "more"), "signals": "reward", "reward_model": reward_model}
        with without_ray():
            extend(str(tmp_path / "set"), make_config(ExtendConfig, **options))

    with pytest.raises(UserError, match=REFUSED):
        extended(reward)
    assert not (tmp_path / "more").exists()
    extended(str(judge))
    for group in NegativeSet(str(tmp_path / "more")).groups():
        assert all(candidate.similarity.keys() == {"rouge", "reward"} for candidate in group.negatives)


def test_a_template_that_never_ends_is_refused(
    chat_model: Path, rows: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_models, "LONGEST_RENDERING", 0.2)
    reward = with_template(judge, tmp_path / "reward", ENDLESS)
    with pytest.raises(UserError, match=r"^the chat template of --reward_model '.*' does not end within 0.2 s"):
        made(chat_model, rows, tmp_path / "set", signals="reward", reward_model=reward)
    assert not (tmp_path / "set").exists()
