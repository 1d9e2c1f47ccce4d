"""Every TrainingArguments field is honoured, refused or without meaning here; numbers are finite."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import ModelConfig

from data.command.errors import UserError
from tests.support.training import cli, make_trainer, metrics
from trainer.arguments import make_parser, parse
from trainer.inherited import HONOURED, IDLE, OF_4_BITS, OF_ADAPTERS, REFUSED
from trainer.run import main

NAMES = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
NUMBERS = [
    field.name
    for cls in (TrainingArguments, ModelConfig)
    for field in dataclasses.fields(cls)
    if field.init and any(kind in str(field.type) for kind in ("int", "float")) and "str" not in str(field.type)
]

# What is refused, as one would ask for it.
ASKED = {
    "label_smoothing_factor": "0.1",
    "auto_find_batch_size": "true",
    "bf16_full_eval": "true",
    "fp16_full_eval": "true",
    "enable_jit_checkpoint": "true",
    "restore_callback_states_from_checkpoint": "true",
    "dataloader_in_order": "false",
    "length_column_name": "tokens",
    "ddp_static_graph": "true",
    "train_sampling_strategy": "group_by_length",
    "use_liger_kernel": "true",
    "accelerator_config": '{"split_batches": true}',
    "average_tokens_across_devices": "false",
    "neftune_noise_alpha": "5",
    "torch_empty_cache_steps": "1",
    "skip_memory_metrics": "false",
}
# transformers refuses DeepSpeed first, where it is not installed; the others are no options of a command line.
NOT_TRIED = {"deepspeed", "parallelism_config", "liger_kernel_config"}


def words(*more: str, objective: str = "cpo") -> list[str]:
    return ["--shards", "s", "--model", "m", "--output_dir", "o", "--use_cpu", "--objective", objective, *more]


def refusal(*more: str, objective: str = "cpo") -> str:
    with pytest.raises(UserError) as caught:
        parse(words(*more, objective=objective))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_field_of_transformers_is_in_one_of_the_three_lists() -> None:
    """A new one must be looked at: does this trainer, which overrides a step and an evaluation, heed it?"""
    lists = [set(HONOURED), set(REFUSED), set(IDLE)]
    assert set.union(*lists) == NAMES
    assert sum(map(len, lists)) == len(NAMES)
    assert set(ASKED) | NOT_TRIED == set(REFUSED)


@pytest.mark.parametrize("name", ASKED)
def test_an_option_that_this_trainer_would_get_wrong_is_refused_with_the_reason(name: str) -> None:
    said = refusal(f"--{name}", ASKED[name])
    assert said.startswith(f"--{name} is not supported: ") or f"--{name} goes with --objective dpo only; " in said
    assert REFUSED[name].why in said


@pytest.mark.parametrize("name", ASKED)
def test_pairs_are_refused_what_trls_trainer_does_not_heed_either(name: str) -> None:
    if REFUSED[name].pairs_too:
        assert refusal(f"--{name}", ASKED[name], objective="dpo").startswith(f"--{name} is not supported: ")
    else:
        parse(words(f"--{name}", ASKED[name], objective="dpo"))


def test_a_refused_option_may_be_given_its_default() -> None:
    parse(words("--label_smoothing_factor", "0", "--dataloader_in_order", "true", "--bf16_full_eval", "false"))


def test_an_option_without_meaning_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "more.yaml").write_text("eval_accumulation_steps: 4\n")
    with caplog.at_level(logging.WARNING):
        parse(words("--do_train", "--logging_nan_inf_filter", "false", "--config", str(tmp_path / "more.yaml")))
    said = [record.getMessage() for record in caplog.records if "does nothing here" in record.getMessage()]
    assert [line.split()[0] for line in said] == ["--do_train", "--logging_nan_inf_filter", "--eval_accumulation_steps"]
    caplog.clear()
    parse(words())
    assert "does nothing here" not in caplog.text


def test_each_field_of_trls_model_options_is_heeded_or_said_to_need_another(caplog: pytest.LogCaptureFixture) -> None:
    heeded = {"model_name_or_path", "model_revision", "dtype", "attn_implementation", "use_peft"}
    heeded |= {"load_in_8bit", "load_in_4bit"}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert heeded | {*OF_ADAPTERS} | {*OF_4_BITS} == fields
    with caplog.at_level(logging.WARNING):
        parse(words("--lora_r", "8", "--use_bnb_nested_quant", "true"))
    assert "--lora_r does nothing without --use_peft true." in caplog.text
    assert "--use_bnb_nested_quant does nothing without --load_in_4bit true." in caplog.text
    caplog.clear()
    parse(words("--lora_r", "8", "--use_peft", "true"))
    assert "does nothing" not in caplog.text


@pytest.mark.parametrize(
    "more", [["--load_best_model_at_end", "true"], ["--save_strategy", "best", "--metric_for_best_model", "loss"]]
)
def test_a_best_model_is_refused_where_no_held_out_groups_are_watched(more: list[str]) -> None:
    assert refusal("--save_strategy", "no", *more).endswith(
        "does nothing without --eval_strategy. Add --eval_strategy steps."
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_every_inherited_number_is_finite_or_refused_in_a_line(value: str) -> None:
    parser = make_parser()
    assert {"learning_rate", "seed", "lora_alpha", "max_steps", "eval_steps"} <= set(NUMBERS)
    for name in NUMBERS:
        with pytest.raises(UserError, match=f"--{name}") as caught:
            parser.parse_args([f"--{name}={value}"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["learning_rate", "seed", "logging_steps", "lora_dropout"])
@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_number_of_a_yaml_file_is_finite_or_refused_in_a_line(name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"{name}: {value}\n")
    assert f"'{name}' in the --config file must be a finite number, got " in refusal(
        "--config", str(tmp_path / "c.yaml")
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", str(10**30)], "seed"),
        (["--lr_scheduler_kwargs", '{"num_cycles": NaN}'], "lr_scheduler_kwargs.num_cycles"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps must be at least 1, got 0"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size must be at least 1, got 0"),
        (["--per_device_train_batch_size", "-1"], "--per_device_train_batch_size must be at least 1, got -1"),
        (["--max_steps", "0"], "--max_steps must be at least 1, got 0"),
        (["--num_train_epochs", "0"], "--num_train_epochs must be above 0, got 0.0"),
        (["--weight_decay", "-1"], "--weight_decay must be 0 or more, got -1.0"),
        (["--max_grad_norm", "-1"], "--max_grad_norm must be 0 or more, got -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused_in_a_line(more: list[str], said: str) -> None:
    assert said in refusal(*more)


@pytest.mark.seconds
@pytest.mark.parametrize("what", ["all", "non_padding"])
def test_tokens_seen_are_counted(what: str, reference: Path, negative_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, max_steps=2, include_num_input_tokens_seen=what, logging_steps=1,
        per_device_train_batch_size=4,
    )  # fmt: skip
    seen: list[Any] = []
    batches = trainer.get_batch_samples
    trainer.get_batch_samples = lambda *a: seen.append(batches(*a)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    trainer.train()
    tokens = [packed.tokens for step, _ in seen for batch in step for packed in batch]
    expected = sum(t.input_ids.numel() - (t.padding if what == "non_padding" else 0) for t in tokens)
    assert trainer.state.num_input_tokens_seen == expected > 0
    (last,) = [log for log in trainer.state.log_history if log["step"] == 2 and "loss" in log]
    assert last["num_input_tokens_seen"] == expected


@pytest.mark.slow
def test_torch_compile_trains_to_the_same_loss(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    common = ["--max_steps", "2", "--save_strategy", "no", "--logging_steps", "1", "--report_to", "none"]
    losses = []
    for name, more in (("plain", []), ("compiled", ["--torch_compile_backend", "eager"])):
        assert main(cli(reference, negative_set, tmp_path / name, *common, *more)) == 0
        losses.append([line["loss"] for line in metrics(tmp_path / name) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
