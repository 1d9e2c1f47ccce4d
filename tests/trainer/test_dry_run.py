"""`--dry_run`: what is predicted, what is refused and with what advice, and what is left alone."""

import fnmatch
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GPT2Config, LlamaConfig, Qwen2Config
from trl import ModelConfig

from data.command.errors import UserError
from tests.support.training import cli
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import Collator, PackedGroups, TrainingGroup
from trainer.monitor.utilisation import ModelFlop
from trainer.objectives import OBJECTIVES
from trainer.policy import Policy, prepared_policy
from trainer.run import main
from trainer.scoring.continuations import Continuations
from trainer.scoring.head import CHUNK_ELEMENTS
from trainer.scoring.prepared_model import candidate_logps
from trainer.sizing.devices import CPU, GIB, USABLE, Device, device_of
from trainer.sizing.first_steps import LaidOut
from trainer.sizing.predicted import Case, Prediction, predict
from trainer.sizing.savings import advice
from trainer.sizing.stand_in import layout_of
from trainer.sizing.storages import Storages

A100 = "NVIDIA A100-SXM4-80GB"
VOCABULARY, WIDTH, LAYERS, DEEPER = 1000, 64, 2, 5
# Parameters of the small Llama: four projections of attention, three of the MLP and two norms a layer; embedding, head
# and last norm outside.
IN_LAYER, OUTSIDE = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64, 2 * 1000 * 64 + 64
LORA = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["q_proj", "v_proj"]}
ADAPTER = 2 * 8 * (64 + 64)  # of a layer
GATHERED = "FSDP's whole layers"


@pytest.fixture(scope="module")
def config_alone(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's directory without weights."""
    directory = tmp_path_factory.mktemp("models") / "config-alone"
    shutil.copytree(reference, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a small Llama with a head of its own."""
    return small_llama(tmp_path_factory, LAYERS)


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a small Llama of more layers than FSDP gathers at once."""
    return small_llama(tmp_path_factory, DEEPER)


def small_llama(tmp_path_factory: pytest.TempPathFactory, layers: int) -> Path:
    directory = tmp_path_factory.mktemp("models") / f"llama-{layers}"
    LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=2, tie_word_embeddings=False,
    ).save_pretrained(directory)  # fmt: skip
    return directory


def one_pass(layout: str = "packed", groups: int = 4) -> PackedGroups:
    of_them = [
        TrainingGroup(str(n), Continuations(range(20), [range(10)] * 4), [-1.0] * 4, [1.0] * 4, ["an"] * 3)
        for n in range(groups)
    ]
    (packed,) = Collator(layout, 100_000, ["an"])(of_them)
    return packed


def prediction(
    directory: Path, *, objective: str = "cpo", device: str = CPU, layout: str = "packed", accumulates: bool = True,
    world: int = 1, sharded: bool = False, load: dict[str, Any] | None = None, **training: Any,
) -> Prediction:  # fmt: skip
    case = case_of(directory, objective, device_of(device), world, sharded, load, **training)
    return predict(case, layout, one_pass(layout), accumulates=accumulates)


def case_of(
    directory: Path, objective: str = "cpo", device: Device | None = None, world: int = 1, sharded: bool = False,
    load: dict[str, Any] | None = None, **training: Any,
) -> Case:  # fmt: skip
    of_run = PaperTrainingArguments(output_dir=str(directory / "none"), use_cpu=True, report_to="none", **training)
    policy = Policy(directory, ModelConfig(**(load or {})), from_scratch=True, dropout=False)
    entry = OBJECTIVES.load(objective)
    options = entry.Options(**({"pss_passes": 2} if objective == "pss" else {}))
    return Case(policy, of_run, entry, options, device or device_of(CPU), world, sharded)


# --- memory by kind ---


def test_weights_gradients_and_adamw_in_float32(llama: Path) -> None:
    found = prediction(llama)
    # RoPE's frequencies, [16], are buffers twice; AdamW counts the steps of each parameter in float32.
    assert found.kinds["weights"] == 4 * found.parameters + 2 * 4 * 16
    assert found.kinds["gradients"] == 4 * found.parameters
    tensors = 3 + 9 * LAYERS
    assert found.kinds["optimiser"] == 8 * found.parameters + 4 * tensors


def test_bfloat16_halves_weights_gradients_and_state(llama: Path) -> None:
    found = prediction(llama, load={"dtype": "bfloat16"})
    assert found.kinds["gradients"] == 2 * found.parameters
    assert found.kinds["optimiser"] == pytest.approx(4 * found.parameters, rel=0.01)
    assert found.computed_in == torch.bfloat16


def test_mixed_precision_keeps_float32_and_a_copy_in_16_bits(llama: Path) -> None:
    found = prediction(llama, bf16=True)
    assert found.kinds["gradients"] == 4 * found.parameters
    in_layers = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * 128)
    assert found.kinds["cast weights"] == 2 * in_layers
    assert found.computed_in == torch.bfloat16


def test_of_an_adapter_only_what_is_trained_has_gradients_and_state(llama: Path) -> None:
    found = prediction(llama, load=LORA)
    trained = LAYERS * ADAPTER
    assert found.kinds["gradients"] == 4 * trained
    assert found.kinds["optimiser"] == pytest.approx(8 * trained, rel=0.01)
    assert found.kinds["weights"] >= 4 * found.parameters
    assert found.flop.trained == pytest.approx(trained / found.parameters)


def test_checkpointing_keeps_less_for_the_backward_pass(llama: Path) -> None:
    plain, checkpointed = (prediction(llama, gradient_checkpointing=on) for on in (False, True))
    assert checkpointed.kinds["activations"] < plain.kinds["activations"]
    assert checkpointed.kinds["weights"] == plain.kinds["weights"]


def test_one_pass_per_step_meets_no_gradients(llama: Path) -> None:
    assert prediction(llama, accumulates=False).peak < prediction(llama, accumulates=True).peak


def test_ddp_adds_buckets_and_fsdp_divides(llama: Path) -> None:
    alone, ddp, fsdp = (
        prediction(llama, device=A100, world=world, sharded=sharded)
        for world, sharded in ((1, False), (16, False), (16, True))
    )
    assert ddp.peak == alone.peak + 4 * alone.parameters
    assert fsdp.kinds["gradients"] == round(4 * alone.parameters / 16)
    assert fsdp.kinds["optimiser"] == pytest.approx(8 * alone.parameters / 16, rel=0.01)
    # With two layers, all of them may be whole at once; gradients too, and those of one group once more as summed.
    assert fsdp.kinds[GATHERED] == 8 * alone.parameters + 4 * OUTSIDE
    assert fsdp.kinds["activations"] == pytest.approx(alone.kinds["activations"], rel=0.1)


def test_fsdp_gathers_two_layers_in_16_bits_and_sums_gradients_in_float32(deeper: Path) -> None:
    found = prediction(deeper, device=A100, world=16, sharded=True, bf16=True)
    assert found.parameters == OUTSIDE + DEEPER * IN_LAYER
    assert found.kinds["weights"] == found.kinds["gradients"] == round(4 * found.parameters / 16)
    assert found.kinds["optimiser"] == pytest.approx(8 * found.parameters / 16, rel=0.01)
    assert found.kinds[GATHERED] == 2 * 2 * (OUTSIDE + 2 * IN_LAYER) + 4 * OUTSIDE


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_of_an_adapter_fsdp_keeps_what_is_frozen_as_it_is(dtype: str, width: int, deeper: Path) -> None:
    found = prediction(deeper, device=A100, world=16, sharded=True, bf16=True, load={**LORA, "dtype": dtype})
    trained = DEEPER * ADAPTER
    assert found.kinds["weights"] == round((width * (OUTSIDE + DEEPER * IN_LAYER) + 4 * trained) / 16)
    assert found.kinds["gradients"] == round(4 * trained / 16)
    assert found.kinds["optimiser"] == pytest.approx(8 * trained / 16, rel=0.01)
    weights, gradients = OUTSIDE + 2 * (IN_LAYER + ADAPTER), 2 * ADAPTER
    assert found.kinds[GATHERED] == 2 * weights + 2 * gradients + 4 * ADAPTER


def test_fsdp_widens_what_is_trained_in_16_bits(deeper: Path) -> None:
    narrow, wide = (
        prediction(deeper, device=A100, world=16, sharded=True, bf16=True, load={"dtype": dtype})
        for dtype in ("bfloat16", "float32")
    )
    assert narrow.kinds["weights"] == wide.kinds["weights"]
    pure = prediction(deeper, device=A100, world=16, sharded=True, load={"dtype": "bfloat16"})
    assert pure.kinds["weights"] == round(2 * pure.parameters / 16)
    assert pure.kinds[GATHERED] == 2 * 2 * (OUTSIDE + 2 * IN_LAYER) + 2 * OUTSIDE


def test_flex_attention_keeps_no_mask(llama: Path) -> None:
    flex, cpu = prediction(llama, device=A100), prediction(llama)
    assert (flex.flex, cpu.flex) == (True, False)
    assert flex.kinds["activations"] < cpu.kinds["activations"]


@pytest.mark.parametrize("kind", [GPT2Config, Qwen2Config], ids=["gpt2", "qwen2"])
def test_flex_attention_is_predicted_of_models_of_every_kind(kind: Any, tmp_path: Path) -> None:
    kind(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        eos_token_id=1, bos_token_id=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert prediction(tmp_path, device=A100).flex


def test_a_gpu_holds_more_logits_at_a_time(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 64 * VOCABULARY)  # rows of 160 predicted tokens
    cpu, gpu = (
        prediction(llama, device=device, load={"attn_implementation": "eager"}, accumulates=False).kinds["head"]
        for device in (CPU, A100)
    )
    assert gpu - cpu == 4 * (160 - 64) * VOCABULARY


def test_the_padded_layout_has_logits_of_every_position(llama: Path) -> None:
    packed = one_pass("padded")
    found = prediction(llama, layout="padded", accumulates=False)
    assert found.kinds["head"] >= 4 * packed.tokens.input_ids.numel() * VOCABULARY


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES.names() if name != "dpo"])
def test_every_objective_on_groups_is_predicted(objective: str, llama: Path) -> None:
    found = prediction(llama, objective=objective)
    assert found.kinds["activations"] > 0
    assert found.forwards == (2 if objective == "pss" else 0)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_what_lives_is_what_a_real_pass_makes(layout: str, llama: Path) -> None:
    """Real tensors, counted in the same way, take as much."""
    policy = Policy(llama, ModelConfig(), from_scratch=True, dropout=False)
    packed = one_pass(layout)
    prepared = prepared_policy(policy.load(), layout=layout)
    with Storages(VOCABULARY) as storages:
        storages.name((*prepared.model.parameters(), *prepared.model.buffers()), "weights")
        storages.begin()
        candidate_logps(prepared, packed.tokens).sum().backward()
    found = prediction(llama, layout=layout, accumulates=False)
    real = sum(size for kind, size in storages.peak.items() if kind != "weights")
    fake = found.peak - found.kinds["weights"] - found.kinds["optimiser"]
    assert fake == pytest.approx(real, rel=0.02)


def test_the_layout_is_found_out_on_a_small_model_of_the_kind(llama: Path, tmp_path: Path) -> None:
    from transformers import MistralConfig

    MistralConfig(vocab_size=100, hidden_size=64, num_attention_heads=2, sliding_window=8).save_pretrained(tmp_path)
    found = [layout_of(Policy(path, ModelConfig(), True, False)) for path in (llama, tmp_path)]
    assert found == ["packed", "padded"]


# --- time ---


@pytest.mark.parametrize("checkpointing", [False, True])
def test_padded_logits_are_of_every_position_and_made_once(checkpointing: bool) -> None:
    packed, padded = one_pass("packed"), one_pass("padded")
    model = ModelFlop(body=7, head=3, trained=1.0)
    tokens, targets = packed.tokens.input_ids.numel() - packed.tokens.padding, len(packed.tokens.target_ids)
    body, head = 2 * 7 * tokens, 2 * 3 * targets
    found = LaidOut([[[packed]]], 1, "packed").computed(model, checkpointing=checkpointing, forwards=1)
    assert found == 4 * body + 5 * head + checkpointing * body
    cells = padded.tokens.input_ids.numel()
    body, head = 2 * 7 * cells, 2 * 3 * cells
    found = LaidOut([[[padded]]], 1, "padded").computed(model, checkpointing=checkpointing, forwards=1)
    assert found == 4 * (body + head) + checkpointing * body


# --- what would help ---


def of_peak(peak: int) -> Prediction:
    return Prediction({"activations": peak}, ModelFlop(1, 1, 1.0), 1, torch.float32, 0, False)


def test_more_devices_share_the_papers_batch_and_multiply_another(llama: Path) -> None:
    device = Device("a GPU", 1000, None)
    given: dict[str, Any]
    for given, batch, note in (
        ({}, 8, ""),
        ({"per_device_train_batch_size": 4}, 4, "the batch is then 8 times as large"),
    ):
        case = case_of(llama, device=device, **given)
        ((option, _),) = advice(case, 256, lambda other, _: of_peak(900 if other.sharded else 2000))
        assert (option.words, option.note) == ("--fsdp --dry_run_world 8", note)
        assert (option.case.world, option.case.training.per_device_train_batch_size) == (8, batch)
    sharded = case_of(llama, device=device, world=64, sharded=True, per_device_train_batch_size=0)
    sharded.training.per_device_train_batch_size = 1  # as the command sets it: 128 devices have no share of 64
    assert not list(advice(sharded, 256, lambda *_: of_peak(2000)))


def test_changes_are_put_together_and_rows_halved_until_it_fits_or_nothing_is_left(llama: Path) -> None:
    def predicted(other: Case, tokens: int) -> Prediction:
        return of_peak(2000 + tokens - 100 * bool(other.training.gradient_checkpointing))

    for memory, rows, fits in ((2500, 512, True), (2000, 256, False)):
        case = case_of(llama, device=Device(CPU, memory, None))
        *alone, (together, found) = advice(case, 2048, predicted)
        assert [option.words for option, _ in alone] == ["--gradient_checkpointing true", "--row_tokens 1024"]
        assert together.words == f"--gradient_checkpointing true --row_tokens {rows}"
        assert (found.peak, found.peak <= memory) == (1900 + rows, fits)


# --- devices ---


def test_a_device_is_named_in_part() -> None:
    assert device_of("a100-sxm4-80gb") == Device(A100, round(79.2 * GIB), 312e12)
    assert device_of(A100).usable == round(round(79.2 * GIB) * USABLE)
    assert not device_of("cpu").is_gpu
    for name, problem in (("A100", "may be NVIDIA A100-SXM4-40GB"), ("B300", "is none that is known")):
        with pytest.raises(UserError, match=problem):
            device_of(name)
    near = f"'NVIDIA A100-SXM4-81GB' is none that is known. Did you mean '{A100}'? Give one of: cpu, "
    with pytest.raises(UserError, match=re.escape(near)):
        device_of("NVIDIA A100-SXM4-81GB")


# --- the command ---


def test_the_command_needs_no_weights_and_writes_nothing(
    config_alone: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--dry_run", "--dry_run_device", "A100-SXM4-80", "--bf16", "true", "--row_tokens", "256"]
    assert main(cli(config_alone, negative_set, tmp_path / "out", *more, "--max_steps", "50")) == 0
    said = capsys.readouterr().out
    assert "Predicted, not measured: cpo" in said
    for line in ("\n weights ", "\n optimiser ", "\n the run ", "FlexAttention", "Not counted"):
        assert line in said
    assert re.search(r"\n groups +8\n", said)
    assert max(map(len, said.partition(" peak memory")[2].partition("Attention:")[0].splitlines())) <= 100
    assert "|" not in said
    assert "50 steps" in said
    assert (
        "FlexAttention, the fused optimiser's state (by the one without kernels), a GPU's autocast (by the CPU's)."
        in said
    )
    assert not (tmp_path / "out").exists()
    assert not list(config_alone.glob("*.safetensors"))


def test_of_a_hub_model_no_weights_are_downloaded(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"

    def download_stub(_: str, *, allow_patterns: list[str]) -> str:
        here.mkdir(exist_ok=True)
        for path in reference.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, here)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_stub)
    assert main(cli(Path("someone/model"), negative_set, tmp_path / "out", "--dry_run")) == 0
    assert (here / "config.json").is_file()
    assert not list(here.glob("*.safetensors"))


def test_sixteen_devices_share_the_batch(
    config_alone: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--dry_run", "--dry_run_world", "16", "--dry_run_device", A100, "--fsdp", "--bf16", "true"]
    assert main(cli(config_alone, negative_set, tmp_path / "out", *more)) == 0
    said = capsys.readouterr().out
    assert f"on 16 x {A100}, FSDP, computed in bfloat16" in said
    assert "\n FSDP's whole layers " in said
    assert "By formula or likeness, not by its own passes: FSDP's shards and whole layers, FlexAttention" in said
    peak = r"of the largest pass of the first \d+ steps?, [\d,]+ positions; a later one may have up to 8,192"
    assert re.search(peak, " ".join(said.split()))  # folded
    assert re.search(r"\n forward passes of a device +1 +at most\n", said)


def test_what_does_not_fit_is_refused_with_what_would_help(
    config_alone: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small = Device("a small GPU", 6 << 20, 1e12)
    monkeypatch.setattr("trainer.sizing.dry_run.device_of", lambda _: small)
    more = ["--dry_run", "--row_tokens", "600"]
    assert main(cli(config_alone, negative_set, tmp_path / "out", *more)) == 2
    said = capsys.readouterr()
    assert "\n what would help " in said.out
    for words in ("--gradient_checkpointing true", "--row_tokens 300", "--fsdp --dry_run_world 8"):
        assert re.search(rf"\n {words} +[\d.]+ [KMG]iB ", said.out)
    error = said.err.splitlines()[-1]
    of_pass = r"are predicted for the largest pass of the first \d+ steps?, "
    assert re.match(rf"error: this run does not fit: .* {of_pass}", error)
    assert "It would with --gradient_checkpointing true" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--dry_run_world", "2"], "--dry_run_world does not apply to a run without --dry_run"),
        (["--dry_run", "--objective", "dpo"], "objective 'dpo' brings one of its own"),
        (["--dry_run", "--load_in_4bit", "true"], "--dry_run knows no quantised weights"),
        (["--dry_run", "--dry_run_utilisation", "1.5"], "must be above 0 and at most 1"),
        (["--dry_run", "--dry_run_world", "0"], "--dry_run_world must be"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    more: list[str], problem: str, config_alone: Path, negative_set: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(cli(config_alone, negative_set, tmp_path / "out", *more)) == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_tokenizers_are_compared(
    config_alone: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run refuses of its data, a dry run refuses too, weights apart."""
    other = tmp_path / "other"
    shutil.copytree(config_alone, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<odd>"])
    tokenizer.save_pretrained(other)
    config = AutoConfig.from_pretrained(other)
    config.vocab_size = len(tokenizer)  # else it is refused without a comparison
    config.save_pretrained(other)
    assert main(cli(other, negative_set, tmp_path / "out", "--dry_run")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"was made with tokenizer \w{16}, but '.*other' has tokenizer \w{16}\.", error)
