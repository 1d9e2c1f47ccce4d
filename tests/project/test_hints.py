"""Names that other tools have for our options lead to ours, in every command that has them."""

import dataclasses
from typing import Any

import pytest

from data.blank import BlankConfig
from data.command.errors import UserError
from data.command.fields import keys_of
from data.command.options import load_config
from data.command.synonyms import NEAREST, OURS, hint
from evaluation.config import EvaluateConfig
from negatives_gen.config import GenerateConfig
from negatives_gen.verbs.extend import ExtendConfig
from negatives_gen.verbs.plan import PlanConfig
from trainer.arguments import INHERITED, parse
from trainer.config import ScriptArguments
from trainer.ensemble.ensembles import EnsembleConfig


def options_of(cls: type) -> set[str]:
    return set(keys_of(cls, lambda name: next((f.default for f in dataclasses.fields(cls) if f.name == name), None)))


TRAINING = options_of(ScriptArguments) | {f.name for cls in INHERITED for f in dataclasses.fields(cls)}
OTHERS = (BlankConfig, EvaluateConfig, GenerateConfig, ExtendConfig, PlanConfig, EnsembleConfig)
COMMANDS = [TRAINING, *map(options_of, OTHERS)]


@pytest.mark.parametrize(
    ("cls", "word", "said"),
    [
        (GenerateConfig, "n", "--strategies an=N"), (GenerateConfig, "num_samples", "--strategies an=N"),
        (GenerateConfig, "max_tokens", "--max_new_tokens"),
        (GenerateConfig, "model_name_or_path", "--model"), (GenerateConfig, "output", "--out"),
        (GenerateConfig, "train_file", "--dataset"),
        (GenerateConfig, "tensor-parallel-size", "--engine.tensor_parallel_size"),
        (PlanConfig, "n", "--strategies an=N"), (ExtendConfig, "num_return_sequences", "--strategies an=N"),
        (EvaluateConfig, "top_p", "--decode topkK-pP"), (EvaluateConfig, "max_gen_toks", "--max_new_tokens"),
        (EvaluateConfig, "base_url", "--judge.base_url"), (EvaluateConfig, "pretrained", "--model"),
        (EnsembleConfig, "output", "--output_dir"), (BlankConfig, "output_dir", "--out"),
    ],
)  # fmt: skip
def test_a_command_names_its_own_option(cls: type[Any], word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(cls, [f"--{word}", "1"], command="python -m command")
    assert f"unknown key '{word.replace('-', '_')}' on the command line of python -m command. Use {said} here." in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr", "--learning_rate"), ("batch_size", "--per_device_train_batch_size"), ("epochs", "--num_train_epochs"),
        ("micro-batch-size", "--per_device_train_batch_size"), ("train_file", "--dataset or --shards"),
        ("lora_rank", "--lora_r"), ("out", "--output_dir"), ("loss_type", "--objective"),
    ],
)  # fmt: skip
def test_training_names_transformers_options_too(word: str, said: str) -> None:
    with pytest.raises(UserError, match=f"Use {said} here"):
        parse([f"--{word}", "1"])


@pytest.mark.parametrize(
    ("cls", "word", "said"),
    [
        (GenerateConfig, "top_p", "--top_k and --temperature are"),
        (GenerateConfig, "min-p", "--top_k and --temperature are"),
        (ExtendConfig, "best_of", "--strategies an=N is"), (EvaluateConfig, "min_p", "--decode is"),
        (EvaluateConfig, "temperature", "--decode is"),
        (GenerateConfig, "num_gpus", "--num_engines and --engine.tensor_parallel_size are"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_is_not_passed_off_as_it(cls: type[Any], word: str, said: str) -> None:
    name = word.replace("-", "_")
    assert hint(word, options_of(cls)) == f" There is no {name} here; {said} what there is."


def test_a_misspelled_option_is_still_guessed() -> None:
    assert hint("learning_rat", TRAINING) == " Did you mean 'learning_rate'?"
    assert hint("xyzzy", TRAINING) == ""


@pytest.mark.parametrize("name", sorted({*OURS, *(name for near in NEAREST.values() for name in near)}))
def test_what_a_hint_names_is_an_option(name: str) -> None:
    word = name.partition(" ")[0]
    group = word.partition(".")[0]
    assert any({word, group} & options for options in COMMANDS)
    theirs = OURS.get(name, ())
    assert word not in theirs
    assert len(set(theirs)) == len(theirs)
