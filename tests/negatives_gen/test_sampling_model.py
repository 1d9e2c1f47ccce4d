"""What samples in place of the reference: which models and adapters are taken, and what a set says of them."""

import json
import re
import shutil
from multiprocessing.managers import RemoteError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data.command.errors import UserError
from data.command.options import make_config
from data.models import load_tokenizer, tokenizer_hash, weights_hash
from data.shards import NegativeSet
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.job.sampling_model import SamplingModel, sampling_model
from negatives_gen.models.engine import Request
from negatives_gen.verbs.checks import support_problems
from negatives_gen.verbs.extend import ExtendConfig, extend
from tests.support.answering import DrawingEngine, answer_logp, drawn_logp, facts_groups
from tests.support.stubs import EngineStub, ScorerStub, signals_stub
from tests.support.tiny import tiny_model
from tests.support.without_ray import without_ray


@pytest.fixture(scope="module")
def smaller(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the reference's tokenizer."""
    folder = shutil.copytree(reference, tmp_path_factory.mktemp("smaller") / "model")
    rows = json.loads((reference / "config.json").read_text())["vocab_size"]
    tiny_model("llama", vocab_size=rows, seed=5).save_pretrained(folder)
    return folder


def save_adapter(model: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted: Any = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]))
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


def save_quantised(model: Path, folder: Path, levels: int = 8) -> tuple[Path, Any]:
    """A model's linear layers as int8 codes in compressed-tensors' format (W8A8, per channel and per token).

    Of few levels, so that it says visibly other things. Returns the directory, and a model of transformers that
    computes the same in float32.
    """
    from transformers import AutoModelForCausalLM

    shutil.copytree(model, folder)
    same: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tensors = {name: tensor for name, tensor in same.state_dict().items() if name != "lm_head.weight"}

    def rounded(module: Any, inputs: tuple[Any]) -> tuple[Any]:
        scale = inputs[0].abs().amax(-1, keepdim=True) / 127
        return ((inputs[0] / scale).round().clamp(-128, 127) * scale,)

    with torch.no_grad():
        for name, layer in same.model.named_modules():
            if isinstance(layer, torch.nn.Linear):
                scale = layer.weight.abs().amax(1, keepdim=True) / levels
                codes = (layer.weight / scale).round()
                tensors[f"model.{name}.weight"] = codes.to(torch.int8)
                tensors[f"model.{name}.weight_scale"] = scale.clone()
                layer.weight.copy_(codes * scale)
                layer.register_forward_pre_hook(rounded)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    integers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**integers, "strategy": "channel", "dynamic": False},
        "input_activations": {**integers, "strategy": "token", "dynamic": True},
    }
    quantization = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    }  # fmt: skip
    settings = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": quantization}))
    return folder, same


class AskedEngineStub(EngineStub):
    """Keeps what it was made from."""

    made: list[tuple[str, str]] = []  # noqa: RUF012

    def __init__(self, model: str, *, adapter: str = "", **more: Any):
        self.made.append((model, adapter))
        super().__init__(model, **more)


def config(reference: Path, out: Path, **options: Any) -> GenerateConfig:
    return make_config(GenerateConfig,
        model=str(reference), dataset="facts", limit=8, out=str(out), groups_per_shard=8, embedder="reference",
        **{"strategies": "an=2", **options},
    )  # fmt: skip


def components() -> Components:
    AskedEngineStub.made = []
    return Components(engine=AskedEngineStub, scorer=ScorerStub, signals=signals_stub)


def test_another_model_samples_and_the_set_names_both(reference: Path, smaller: Path, tmp_path: Path) -> None:
    with without_ray():
        made = generate(config(reference, tmp_path / "set", sampler=str(smaller)), components())
    assert AskedEngineStub.made == [(str(smaller), "")]
    assert made.job["model"]["weights_sha256"] == weights_hash(str(reference))
    assert made.job["sampler"]["name"] == str(smaller)
    assert made.job["sampler"]["weights_sha256"] == weights_hash(str(smaller)) != weights_hash(str(reference))
    assert (
        f"| sampler | `{smaller}`, weights SHA-256 `{weights_hash(str(smaller))[:16]}` |"
        in (tmp_path / "set/README.md").read_text()
    )
    # The ranks that the scorer finds are the reference's: what this sampler could have said is not known.
    assert {group.in_support for group in NegativeSet(str(tmp_path / "set")).groups()} == {None}


def test_of_another_sampler_lengths_and_settings_alone_say_what_it_could_have_said(
    reference: Path, smaller: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without top-k all that fits is in reach, of what is longer than the cap nothing; `verify` expects the same."""
    for options, said in (({"top_k": 0}, True), ({"max_new_tokens": 2}, False)):
        out = tmp_path / f"{said}"
        with without_ray():
            generate(config(reference, out, sampler=str(smaller), **options), components())
        assert {group.in_support for group in NegativeSet(str(out)).groups()} == {said}
        table = NegativeSet(str(out)).shard_table(0, ["id", "prompt_ids", "response_ids", "in_support"])
        assert support_problems(table, "f", NegativeSet(str(out)).manifest.job) == []


def test_without_another_sampler_the_manifest_is_what_it_was(reference: Path, tmp_path: Path) -> None:
    with without_ray():
        made = generate(config(reference, tmp_path / "set"), components())
    assert "sampler" not in made.job
    assert AskedEngineStub.made == [(str(reference), "")]


def test_a_job_goes_on_with_the_same_sampler_wherever_it_lies_and_with_no_other(
    reference: Path, smaller: Path, tmp_path: Path
) -> None:
    with without_ray():
        generate(config(reference, tmp_path / "set", sampler=str(smaller)), components())
        moved = shutil.copytree(smaller, tmp_path / "moved")
        generate(config(reference, tmp_path / "set", sampler=str(moved)), components())
        assert AskedEngineStub.made == []  # it is complete
        with pytest.raises(UserError, match="already holds another job: its sampler is "):
            generate(config(reference, tmp_path / "set"), components())


def test_extend_samples_from_the_sets_sampler_and_refuses_another(
    reference: Path, smaller: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "set")
    with without_ray():
        made = generate(config(reference, tmp_path / "set", sampler=str(smaller)), components())
        more = extend(out, make_config(ExtendConfig, out=str(tmp_path / "more"), strategies="an=3"), components())
        assert AskedEngineStub.made == [(str(smaller), "")]
        assert more.job["sampler"] == made.job["sampler"]
        wrong = make_config(ExtendConfig, out=str(tmp_path / "b"), strategies="an=3", sampler=str(reference))
        with pytest.raises(UserError, match="the set was sampled from a model with weights_sha256 "):
            extend(out, wrong, components())
        idle = make_config(ExtendConfig, out=str(tmp_path / "b"), strategies="tn=1", sampler=str(smaller))
        with pytest.raises(UserError, match=r"--sampler would change nothing: no 'an' or 'rn' is added"):
            extend(out, idle, components())


def test_extend_of_a_set_that_the_reference_sampled_takes_no_other_sampler(
    reference: Path, smaller: Path, tmp_path: Path
) -> None:
    with without_ray():
        generate(config(reference, tmp_path / "set"), components())
        other = make_config(ExtendConfig, out=str(tmp_path / "b"), strategies="an=3", sampler=str(smaller))
        with pytest.raises(UserError, match="what the set has was sampled from its reference"):
            extend(str(tmp_path / "set"), other, components())


def test_a_set_without_sampled_negatives_may_be_extended_by_another_sampler(
    reference: Path, smaller: Path, tmp_path: Path
) -> None:
    with without_ray():
        generate(config(reference, tmp_path / "set", strategies="tn=1"), components())
        new = make_config(ExtendConfig, out=str(tmp_path / "b"), strategies="an=1", sampler=str(smaller))
        made = extend(str(tmp_path / "set"), new, components())
    assert made.job["sampler"]["weights_sha256"] == weights_hash(str(smaller))


def test_extend_refuses_a_sampler_of_a_shorter_context(reference: Path, smaller: Path, tmp_path: Path) -> None:
    short = shutil.copytree(smaller, tmp_path / "short")
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 16}))
    with without_ray():
        generate(config(reference, tmp_path / "set", strategies="tn=1"), components())
        new = make_config(ExtendConfig, out=str(tmp_path / "b"), strategies="an=1", sampler=str(short))
        with pytest.raises(UserError, match=r"--sampler '.*' takes 16 tokens, the set was made for \d+"):
            extend(str(tmp_path / "set"), new, components())


def test_a_model_of_another_tokenizer_is_refused_with_both_hashes(
    reference: Path, smaller: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(smaller, tmp_path / "other")
    tokenizer = load_tokenizer(str(other))
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(other)
    rows = len(tokenizer)
    tiny_model("llama", vocab_size=rows, seed=5).save_pretrained(other)
    ours, theirs = (tokenizer_hash(load_tokenizer(str(model)))[:16] for model in (reference, other))
    said = f"the tokenizer of --sampler '{other}' has SHA-256 {theirs}, the reference's has {ours}"
    with pytest.raises(UserError, match=re.escape(said)):
        generate(config(reference, tmp_path / "set", sampler=str(other)))
    assert not (tmp_path / "set").exists()


def test_a_model_with_rows_that_the_reference_lacks_is_refused(reference: Path, smaller: Path, tmp_path: Path) -> None:
    larger = shutil.copytree(smaller, tmp_path / "larger")
    rows = json.loads((reference / "config.json").read_text())["vocab_size"]
    tiny_model("llama", vocab_size=rows + 64, seed=5).save_pretrained(larger)
    with pytest.raises(UserError, match=f"has {rows + 64} rows of an embedding, the reference {rows}"):
        generate(config(reference, tmp_path / "set", sampler=str(larger)))


def test_a_model_with_other_ends_is_refused(reference: Path, smaller: Path, tmp_path: Path) -> None:
    other = shutil.copytree(smaller, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    with pytest.raises(UserError, match=r"continuations of --sampler '.*' end with the ids "):
        generate(config(reference, tmp_path / "set", sampler=str(other)))


def test_an_option_that_nothing_samples_with_is_refused(reference: Path, smaller: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sampler would change nothing: no 'an' or 'rn' is chosen"):
        generate(config(reference, tmp_path / "set", sampler=str(smaller), strategies="tn=1"))


def test_an_adapter_is_laid_over_the_reference_and_known_by_its_weights(reference: Path, tmp_path: Path) -> None:
    adapter = save_adapter(reference, tmp_path / "adapter", 0)
    with without_ray():
        made = generate(config(reference, tmp_path / "set", sampler=str(adapter)), components())
    assert AskedEngineStub.made == [(str(reference), str(adapter))]
    known = made.job["sampler"]
    assert known["weights_sha256"] == weights_hash(str(adapter))
    tokenizer = load_tokenizer(str(reference))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for changed, same in (({"base_model_name_or_path": "elsewhere"}, True), ({"lora_alpha": 99}, False)):
        (adapter / "adapter_config.json").write_text(json.dumps({**settings, **changed}))
        again = sampling_model("a", str(adapter), str(reference), tokenizer).identity()
        assert (again["adapter_config_sha256"] == known["adapter_config_sha256"]) == same


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft_type": "IA3"}, "is an adapter of type IA3; vLLM serves LORA"),
        ({"r": 0}, "has the rank 0"),
        ({"use_dora": True}, "is an adapter with use_dora, which vLLM does not serve"),
        ({"modules_to_save": ["lm_head"]}, "is an adapter with modules_to_save, which vLLM does not serve"),
    ],
)
def test_an_adapter_that_vllm_does_not_serve_is_refused(
    reference: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    adapter = save_adapter(reference, tmp_path / "adapter", 0)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, **changed}))
    with pytest.raises(UserError, match=said):
        sampling_model("a", str(adapter), str(reference), load_tokenizer(str(reference)))


def test_an_adapter_with_another_tokenizer_is_refused(reference: Path, tmp_path: Path) -> None:
    adapter = save_adapter(reference, tmp_path / "adapter", 0)
    tokenizer = load_tokenizer(str(reference))
    tokenizer.save_pretrained(adapter)
    assert sampling_model("a", str(adapter), str(reference), load_tokenizer(str(reference))).adapter == str(adapter)
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(UserError, match="the tokenizer of --sampler 'a' has SHA-256 "):
        sampling_model("a", str(adapter), str(reference), load_tokenizer(str(reference)))


@pytest.mark.vllm
def test_an_engine_samples_from_the_adapted_model(engines: Any, answering_model: Path, tmp_path: Path) -> None:
    """`sampler_logp` is under the reference with its adapter, which is another number than the reference's own."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = save_adapter(answering_model, tmp_path / "adapter", 0)
    sampler = SamplingModel(str(answering_model), str(adapter))
    engine: DrawingEngine = engines.Engine(sampler.model, **sampler.engine_arguments)
    base: Any = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32)
    prompt = facts_groups(answering_model, 1)[0].prompt_ids
    [samples] = engine.draw([Request(prompt, 8, 50, 1.0, 8, 0)])
    own = [answer_logp(base.eval(), prompt, sample.ids) for sample in samples]
    adapted: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
    for sample in samples:
        expected = drawn_logp(adapted, prompt, sample.ids, top_k=50)
        assert sample.logp == pytest.approx(expected, abs=1e-4 * len(sample.ids))
    assert max(abs(a - s.logp) for a, s in zip(own, samples, strict=True)) > 0.5


def test_a_quantised_sampler_is_known_by_its_codes_and_its_configuration(reference: Path, tmp_path: Path) -> None:
    quantised, _ = save_quantised(reference, tmp_path / "quantised")
    coarser, _ = save_quantised(reference, tmp_path / "coarser", levels=4)
    with without_ray():
        made = generate(config(reference, tmp_path / "set", sampler=str(quantised)), components())
        assert AskedEngineStub.made == [(str(quantised), "")]
        with pytest.raises(
            UserError, match=r"its sampler\.name is '.*quantised', .*coarser'; also sampler\.weights_sha"
        ):
            generate(config(reference, tmp_path / "set", sampler=str(coarser)), components())
    assert made.job["sampler"]["weights_sha256"] == weights_hash(str(quantised)) != weights_hash(str(reference))
    tokenizer = load_tokenizer(str(reference))
    whole = sampling_model("w", str(reference), str(reference), tokenizer).identity()
    assert made.job["sampler"]["config_sha256"] != whole["config_sha256"]
    pipeline = json.loads((quantised / "tokenizer.json").read_text())
    (quantised / "tokenizer.json").write_text(json.dumps({**pipeline, "normalizer": {"type": "Lowercase"}}))
    with pytest.raises(UserError, match="the tokenizer of --sampler 'q' has SHA-256 "):
        sampling_model("q", str(quantised), str(reference), tokenizer)


@pytest.mark.vllm
def test_an_engine_samples_from_a_quantised_model(engines: Any, answering_model: Path, tmp_path: Path) -> None:
    """vLLM's CPU build on int8 codes; its log-probabilities are those of the same numbers in float32."""
    from transformers import AutoModelForCausalLM

    quantised, same = save_quantised(answering_model, tmp_path / "quantised", levels=2)
    engine: DrawingEngine = engines.Engine(str(quantised))
    own: Any = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32).eval()
    prompt = facts_groups(answering_model, 1)[0].prompt_ids
    [samples] = engine.draw([Request(prompt, 8, 50, 1.0, 8, 0)])
    as_it_is = [abs(drawn_logp(same, prompt, s.ids, top_k=50) - s.logp) / len(s.ids) for s in samples]
    before = [abs(drawn_logp(own, prompt, s.ids, top_k=50) - s.logp) / len(s.ids) for s in samples]
    assert max(as_it_is) < 1e-3 < 0.1 < max(before)


@pytest.mark.vllm
def test_speculative_decoding_is_refused_on_a_cpu(engines: Any, answering_model: Path) -> None:
    """docs/benchmarks.md, "Speculative decoding": vLLM's CPU build draws from another distribution then."""
    options = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}}
    with pytest.raises(RemoteError, match="UserError: vLLM's CPU build does not keep the distribution"):
        engines.Engine(str(answering_model), options=options)
