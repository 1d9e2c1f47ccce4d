"""A reward model as judge, against rewards computed here."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from data.command.errors import UserError
from data.model_settings import text_model_identity
from data.schema import Group
from evaluation.judging import make_judge
from evaluation.judging.base import Comparison, JudgeOptions
from negatives_gen.models.reward_model import RewardModel

ANSWERS = [
    "the cat",
    "mat the on sat cat the",
    "founder of Belada lies on Aska",
    "no",
    "a much longer answer than these",
]


@pytest.fixture(scope="module")
def reward_model(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(reference, num_labels=1, pad_token_id=tokenizer.eos_token_id)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_answer_with_the_greater_reward_wins(reward_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32).eval()

    def reward(answer: str) -> float:
        ids = tokenizer(f"user: Where?\nassistant: {answer}\n", return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            return model(input_ids=ids["input_ids"]).logits[0, 0].item()

    judge = make_judge(JudgeOptions(reward_model=str(reward_model)), str(tmp_path / "store"))
    comparisons = [Comparison(f"{a}{b}", "Where?", a, b) for a in ANSWERS for b in ANSWERS]
    outcomes = judge.judge(comparisons)
    expected = [0.5 if c.answer == c.other else float(reward(c.answer) > reward(c.other)) for c in comparisons]
    assert [outcome.score for outcome in outcomes] == expected
    assert set(expected) == {0.0, 0.5, 1.0}
    assert {(outcome.flipped, outcome.verdicts) for outcome in outcomes} == {(False, ())}
    assert judge.judge(comparisons) == outcomes
    assert judge.spent() == {}
    assert judge.identity() == {"reward_model": str(reward_model), **text_model_identity(str(reward_model))}


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
WRAPPED = "### Instruction:\nWho?\n\n### Response:\n"
ASKED = [
    Comparison("dolly", "Who?", "Ada", "Bob", WRAPPED),
    Comparison("chat", "system: Be brief.\nuser: Who?", "Ada", "Bob", "<s>Be brief.</s><u>Who?</u>", CHAT),
]


@pytest.mark.parametrize(
    ("template", "openings"),
    [
        (True, ["user: Who?\nassistant: ", "system: Be brief.\nuser: Who?\nassistant: "]),
        (False, [WRAPPED, "<s>Be brief.</s><u>Who?</u>"]),
    ],
)
def test_a_chat_template_is_applied_once_and_to_what_a_person_asked(
    reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: bool, openings: list[str]
) -> None:
    shutil.copytree(reward_model, tmp_path / "model")
    if not template:
        (tmp_path / "model" / "chat_template.jinja").unlink()
    seen: list[str] = []

    def rewards(_: RewardModel, texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [float("Ada" in text) for text in texts]

    monkeypatch.setattr(RewardModel, "rewards", rewards)
    outcomes = make_judge(JudgeOptions(reward_model=str(tmp_path / "model")), str(tmp_path / "store")).judge(ASKED)
    end = "\n" if template else ""
    assert seen == [f"{opening}{answer}{end}" for opening in openings for answer in ("Ada", "Bob")]
    assert [outcome.score for outcome in outcomes] == [1.0, 1.0]


def test_another_chat_template_or_length_is_scored_anew_and_another_name_is_not(
    reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(reward_model, tmp_path / "first")
    make_judge(JudgeOptions(reward_model=str(tmp_path / "first")), str(tmp_path / "store")).judge(ASKED)
    monkeypatch.setattr("evaluation.judging.reward_judge.RewardModel", None)
    (tmp_path / "first").rename(tmp_path / "second")
    judge = make_judge(JudgeOptions(reward_model=str(tmp_path / "second")), str(tmp_path / "store"))
    assert len(judge.judge(ASKED)) == 2
    for name, old, new in (("chat_template.jinja", ": ", " - "), ("config.json", "128", "64")):
        path = tmp_path / "second" / name
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))
        with pytest.raises(TypeError, match="NoneType"):  # would load the model
            judge.judge(ASKED)
        path.write_text(content)


def test_rewards_are_kept_in_the_store(reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Comparison("1", "Where?", "the cat", "no"), Comparison("2", "Where?", "no", "no")]
    outcomes = make_judge(JudgeOptions(reward_model=str(reward_model)), str(tmp_path)).judge(pairs)
    monkeypatch.setattr("evaluation.judging.reward_judge.RewardModel", None)
    again = make_judge(JudgeOptions(reward_model=str(reward_model)), str(tmp_path))
    assert again.judge(pairs) == outcomes
    with pytest.raises(TypeError, match="NoneType"):  # other answers need the model
        again.judge([Comparison("1", "Where?", "the cat", "mat")])


def test_answers_that_differ_by_white_space_or_rewards_by_rounding_are_a_tie(
    reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make_judge(JudgeOptions(reward_model=str(reward_model)), str(tmp_path))
    (same,) = judge.judge([Comparison("1", "Where?", " the cat\n", "the cat")])
    assert (same.score, same.reason) == (0.5, "the answers are the same")
    monkeypatch.setattr("evaluation.judging.reward_judge.ROUNDING", 1e6)
    (near,) = judge.judge([Comparison("1", "Where?", "the cat", "no")])
    assert (near.score, near.reason) == (0.5, "the rewards are the same")


def test_a_reward_that_is_no_number_ends_the_evaluation_and_is_not_kept(reward_model: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(reward_model).save_pretrained(tmp_path)
    judge = make_judge(JudgeOptions(reward_model=str(tmp_path)), str(tmp_path))
    with pytest.raises(UserError, match=f"--judge.reward_model '{tmp_path}' gives the answer 'a' the reward nan"):
        judge.judge([Comparison("1", "p", "a", "b")])
    assert not (tmp_path / "rewards").exists()


def test_a_model_that_cannot_judge_is_refused_in_one_line(reward_model: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(reward_model, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(reward_model).save_pretrained(tmp_path)
    judge = make_judge(JudgeOptions(reward_model=str(tmp_path)), str(tmp_path))
    with pytest.raises(UserError, match=f"--judge.reward_model '{tmp_path}' has 2 labels; a reward model has one"):
        judge.judge([Comparison("1", "p", "a", "b")])
    written = json.loads((tmp_path / "config.json").read_text())
    classes = {"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"}
    written |= {"model_type": "custom", "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(written))
    judge = make_judge(JudgeOptions(reward_model=str(tmp_path)), str(tmp_path))
    with pytest.raises(UserError, match=r"^transformers cannot load --judge.reward_model [^\n]*$"):
        judge.judge([Comparison("1", "p", "a", "b")])


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def test_what_a_judge_cannot_take_is_said_before_anything_is_answered(
    reward_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = shutil.copytree(reward_model, tmp_path / "model")
    plain, chat = (
        Group(str(i), "Who?", "Ada", [1], [2], query="Who?", messages=messages)
        for i, messages in enumerate([None, CHAT])
    )
    judge = make_judge(JudgeOptions(reward_model=str(model)), str(tmp_path / "store"))
    judge.look_at([plain, chat])
    tokenizer = AutoTokenizer.from_pretrained(model)
    template, tokenizer.chat_template = tokenizer.chat_template, NO_SYSTEM + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    judge.look_at([plain])
    refused = (
        f"the chat template of --judge.reward_model '{model}' refuses messages of system, user, assistant (System role "
        "not supported). Use another reward model, or leave these rows out."
    )
    with pytest.raises(UserError) as error:
        judge.look_at([plain, chat])
    assert str(error.value) == refused
    with pytest.raises(UserError, match=r"^the chat template of .* refuses messages of system, user, assistant"):
        judge.judge(ASKED)
    assert "rewards do not depend on it" not in caplog.text
    tokenizer.chat_template = template.replace(
        "{{ m['role'] }}", "{% if m.role == 'system' %}{% continue %}{% endif %}"
    )
    tokenizer.save_pretrained(model)
    judge.look_at([plain, chat])
    assert "(message 1, of role 'system'), so that rewards do not depend on it" in caplog.text
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(UserError, match="has 2 labels; a reward model has one"):
        judge.look_at([plain])


@pytest.mark.parametrize("damage", ["{", None])
def test_a_model_without_a_tokenizer_is_refused_when_it_is_named(
    reward_model: Path, tmp_path: Path, damage: str | None
) -> None:
    model = shutil.copytree(reward_model, tmp_path / "model")
    for file in model.glob("*token*"):
        if damage is None:
            file.unlink()
    if damage is not None:
        (model / "tokenizer.json").write_text(damage)
    with pytest.raises(UserError, match=r"cannot be used: its tokenizer cannot be loaded \([^\n]+save_pretrained\("):
        make_judge(JudgeOptions(reward_model=str(model)), str(tmp_path / "store"))
