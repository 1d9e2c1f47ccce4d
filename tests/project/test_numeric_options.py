"""Every numeric option of every command: a value that is no finite number of 64 bits is refused in a line."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.fields import keys_of
from data.command.options import load_config
from data.command.values import inner_type, is_dict, is_list, plain_type

CONFIGS = {
    "blank": "data.blank:BlankConfig",
    "generate": "negatives_gen.config:GenerateConfig",
    "extend": "negatives_gen.verbs.extend:ExtendConfig",
    "verify": "negatives_gen.verbs.verify:VerifyConfig",
    "stats": "negatives_gen.verbs.stats:StatsConfig",
    "export": "negatives_gen.verbs.export:ExportConfig",
    "inspect": "negatives_gen.verbs.inspect:InspectConfig",
    "plan": "negatives_gen.verbs.plan:PlanConfig",
    "train": "trainer.config:ScriptArguments",
    "ensemble": "trainer.ensemble.ensembles:EnsembleConfig",
    "evaluate": "evaluation.config:EvaluateConfig",
    "compare": "evaluation.compare:CompareConfig",
    "judge-check": "evaluation.judge_check:JudgeCheckConfig",
}
WORDS = ["nan", "inf", "-inf", "NaN", "1e400", "-" + "9" * 400]
YAML = [".nan", ".inf", "-.inf", "9" * 400]


def config_of(command: str) -> type:
    module, _, name = CONFIGS[command].partition(":")
    return getattr(importlib.import_module(module), name)


def numbers(command: str) -> list[str]:
    """Keys of a command whose value is a number or a list of numbers."""
    keys = keys_of(config_of(command), lambda _: None)
    return [
        name
        for name, key in keys.items()
        if (inner_type(key.type) if is_list(key.type) else plain_type(key.type)) in (int, float)
    ]


def refusal(command: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(config_of(command), list(words), command=command)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_the_numeric_options_of_each_command_are_found() -> None:
    assert {"learning_rate", "beta"} & set(numbers("train")) == {"beta"}
    assert {"api.timeout", "temperature", "seed", "limit"} <= set(numbers("generate"))
    assert {"judge.temperature", "max_new_tokens", "seed"} <= set(numbers("evaluate"))
    assert numbers("ensemble") == ["alpha"]


@pytest.mark.parametrize("command", CONFIGS)
def test_words_that_are_no_finite_numbers_are_refused(command: str) -> None:
    for name in numbers(command):
        for word in WORDS:
            assert name in refusal(command, f"--{name}={word}"), word


@pytest.mark.parametrize("command", CONFIGS)
def test_yaml_values_that_are_no_finite_numbers_are_refused(command: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for name in numbers(command):
        for value in YAML:
            path.write_text(f"{name}: {value}\n")
            assert name in refusal(command, "--config", str(path)), value


@pytest.mark.parametrize("command", CONFIGS)
def test_numbers_within_free_options_are_finite_too(command: str, tmp_path: Path) -> None:
    keys: dict[str, Any] = keys_of(config_of(command), lambda _: None)
    for name in (name for name, key in keys.items() if is_dict(plain_type(key.type))):
        assert f"'{name}.x'" in refusal(command, f"--{name}.x", ".nan")
        assert f"'{name}.x.y'" in refusal(command, f"--{name}.x", "{y: [1, .inf]}")
        (tmp_path / "c.yaml").write_text(f"{name}: {{x: {'9' * 30}}}\n")
        assert f"'{name}.x'" in refusal(command, "--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("count", ["0", "-1", "1e3", "²", "9" * 5000])
def test_counts_of_strategies_are_whole_numbers_of_nine_digits(count: str) -> None:
    from data.counts import parse_counts

    with pytest.raises(UserError, match="needs a whole number of at least 1"):
        parse_counts(f"an={count}", "--use")
    assert parse_counts("an=007", "--use") == {"an": 7}
