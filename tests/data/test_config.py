"""data/config.py and data/errors.py: flags over YAML, and errors of one line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import INTERRUPTED, UserError, did_you_mean, exit_on_user_error, first_line, user_error_in
from data.command.options import describe_options, load_config, option, output_root, read_yaml, resolve_path

COMMAND = "python -m prog"


@dataclass
class Config:
    out: str
    beta: float = option(5.0, "inverse temperature")
    num_negatives: int = option(11, "negatives per group")
    limit: int | None = option(None, "keep only so many")
    ranking: bool = option(False, "rank the candidates")
    strategies: list[str] = option(["an"], "strategy to use; repeat it", repeat=True)
    engine: dict[str, Any] = option({}, "passed on to the engine")


def parse(*argv: str) -> Config:
    return load_config(Config, list(argv), command=COMMAND)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse("--out", "x", *argv)
    return str(caught.value)


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_flags_the_defaults_hold():
    assert parse("--out", "x") == Config(out="x", beta=5.0, num_negatives=11, limit=None, strategies=["an"], engine={})


def test_two_configs_do_not_share_a_default_list_or_dict():
    first, second = parse("--out", "x"), parse("--out", "x")
    first.strategies.append("bn")
    first.engine["a"] = 1
    assert (second.strategies, second.engine) == (["an"], {})


def test_flags_win_over_the_file_wherever_the_config_flag_stands(tmp_path: Path):
    path = yaml_file(tmp_path, "out: from-file\nbeta: 1\nranking: true\n")
    expected = Config(out="from-file", beta=2.5, ranking=True)
    assert parse("--beta", "2.5", "--config", path) == expected
    assert parse(f"--config={path}", "--beta=2.5") == expected


def test_a_dash_in_a_flag_is_an_underscore():
    assert parse("--out", "x", "--num-negatives", "3").num_negatives == 3


def test_a_value_may_be_negative_or_empty():
    config = parse("--out=", "--beta", "-0.5")
    assert (config.out, config.beta) == ("", -0.5)


def test_engine_keys_pass_through_with_their_yaml_types(tmp_path: Path):
    path = yaml_file(tmp_path, "out: x\nengine:\n  dtype: float32\n  max_num_seqs: 8\n")
    config = parse("--config", path, "--engine.max_num_seqs", "16", "--engine.enforce_eager", "true")
    assert config.engine == {"dtype": "float32", "max_num_seqs": 16, "enforce_eager": True}


def test_an_engine_value_that_is_no_yaml_is_refused():
    assert (
        refusal("--engine.x", "{") == "'engine.x' on the command line of python -m prog must be a YAML value, got '{'."
    )


def test_a_mapping_under_an_engine_key_is_written_as_yaml_and_dots_in_it_are_refused():
    config = parse("--out", "x", "--engine.speculative_config", "{model: X, num_speculative_tokens: 4}")
    assert config.engine == {"speculative_config": {"model": "X", "num_speculative_tokens": 4}}
    assert "is written --engine.speculative_config '{model: VALUE}'." in refusal(
        "--engine.speculative_config.model", "X"
    )


def test_a_repeated_flag_collects_and_replaces_the_files_list(tmp_path: Path):
    path = yaml_file(tmp_path, "out: x\nstrategies: [mn, tn]\n")
    assert parse("--config", path).strategies == ["mn", "tn"]
    assert parse("--config", path, "--strategies", "an", "--strategies", "bn").strategies == ["an", "bn"]


def test_a_plain_flag_given_twice_takes_the_last_value():
    assert parse("--out", "x", "--out", "y").out == "y"


@pytest.mark.parametrize(("text", "value"), [("none", None), ("null", None), ("None", None), ("7", 7)])
def test_an_optional_int_takes_none_or_a_number(text: str, value: int | None):
    assert parse("--out", "x", "--limit", text).limit == value


def test_an_optional_int_takes_null_from_yaml(tmp_path: Path):
    path = yaml_file(tmp_path, "out: x\nlimit:\n")
    assert parse("--limit", "3", "--config", path).limit == 3
    assert parse("--config", path).limit is None


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000), ("4.0", 4), ("12345678901234567891", 12345678901234567891)])
def test_whole_numbers_are_exact_in_every_spelling(text: str, value: int):
    assert parse("--out", "x", "--num_negatives", text).num_negatives == value


@pytest.mark.parametrize(
    ("key", "text", "spoken"),
    [
        ("num_negatives", "many", "a whole number"),
        ("num_negatives", "1.5", "a whole number"),
        ("num_negatives", "inf", "a whole number"),
        ("num_negatives", "nan", "a whole number"),
        ("limit", "few", "a whole number"),
        ("beta", "high", "a number"),
        ("ranking", "yes", "true or false"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_key_type_and_value(key: str, text: str, spoken: str):
    assert refusal(f"--{key}", text) == f"'{key}' on the command line of {COMMAND} must be {spoken}, got '{text}'."


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("num_negatives: true", "must be a whole number, got True"),
        ("beta: [1, 2]", "must be a number, got [1, 2]"),
        ("out: {a: 1}", "must be text, got {'a': 1}"),
        ("out:", "must be text, got None"),
        ("engine: 3", "'engine' in"),
        ("betta: 1", "unknown key 'betta' in"),
    ],
)
def test_a_wrong_line_of_the_file_is_refused_naming_the_file(tmp_path: Path, line: str, phrase: str):
    path = yaml_file(tmp_path, line + "\n")
    message = refusal("--config", path)
    assert phrase in message
    assert f"in {path}" in message


def test_a_group_given_without_a_name_says_how_to_write_it():
    assert "write --engine.NAME VALUE" in refusal("--engine", "3")


@pytest.mark.parametrize(("flag", "near"), [("--num_negative", "num_negatives"), ("--rank", "ranking")])
def test_an_unknown_key_names_the_nearest_known_one(flag: str, near: str):
    message = refusal(flag, "1")
    assert f"unknown key '{flag[2:]}' on the command line of {COMMAND}. Did you mean '{near}'?" in message
    assert f"`{COMMAND} --help`" in message


def test_an_unknown_key_near_nothing_suggests_nothing():
    assert "Did you mean" not in refusal("--zzz", "1")
    assert did_you_mean("zzz", ["out"]) == ""


def test_an_unknown_group_is_refused():
    assert "unknown key 'motor.x'" in refusal("--motor.x", "1")


@pytest.mark.parametrize("argv", [("--beta",), ("--beta", "--limit", "3")])
def test_a_flag_without_a_value_is_refused(argv: tuple[str, ...]):
    assert refusal(*argv) == f"--beta on the command line of {COMMAND} needs a value."


def test_a_word_that_is_no_flag_is_refused():
    assert "unexpected argument 'beta'" in refusal("beta", "3")


def test_a_missing_required_key_is_named():
    with pytest.raises(UserError, match=r"^python -m prog needs --out\."):
        parse()


def test_a_config_file_that_is_missing_is_named(tmp_path: Path):
    message = refusal("--config", str(tmp_path / "absent.yaml"))
    assert message.startswith(f"cannot read config file '{tmp_path / 'absent.yaml'}': No such file or directory.")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a: 1\nb: [", "is not valid YAML: expected the node content, but found '<stream end>' in line 2."),
        ("- a\n- b\n", "must hold a mapping of key: value, not a list"),
    ],
)
def test_a_config_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, phrase: str):
    assert phrase in refusal("--config", yaml_file(tmp_path, text))


def test_an_empty_config_file_is_an_empty_mapping(tmp_path: Path):
    assert read_yaml(yaml_file(tmp_path, "# nothing\n")) == {}


def test_help_shows_every_key_with_its_default():
    text = describe_options(Config)
    assert "  --out\n         (required)" in text
    assert "  --beta\n        inverse temperature (default: 5.0)" in text
    assert "  --engine.KEY VALUE\n        passed on to the engine" in text


def test_relative_paths_count_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", "/elsewhere")
    assert output_root() == tmp_path
    assert resolve_path("runs/a") == str(tmp_path / "runs/a")


@pytest.mark.parametrize("path", ["/abs/dir", "s3://bucket/key", "memory://x"])
def test_absolute_paths_and_urls_stay_as_they_are_even_inside_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
):
    inside_a_ray_job(tmp_path, monkeypatch)
    assert resolve_path(path) == path


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_path("~/runs/a") == "/home/someone/runs/a"


def test_inside_a_ray_job_relative_paths_count_from_the_given_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside_a_ray_job(tmp_path, monkeypatch)
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", "/shared/dir")
    assert output_root() == Path("/shared/dir")
    assert resolve_path("runs/a") == "/shared/dir/runs/a"


def test_inside_a_ray_job_without_a_root_relative_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside_a_ray_job(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="NEGATIVES_GEN_ROOT=/shared/dir"):
        resolve_path("runs/a")


def inside_a_ray_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "runtime_resources" / "working_dir_files" / "copy"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("NEGATIVES_GEN_ROOT", raising=False)


def test_a_user_error_ends_a_command_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise UserError("bad\n  input")

    assert main([]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: bad input\n")


def test_ctrl_c_ends_a_command_with_one_line_and_code_130(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise KeyboardInterrupt

    assert main([]) == exit_on_user_error(main)([]) == 130  # a verb's main() is called by another one
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()) == ("", [INTERRUPTED] * 2)


def test_a_command_that_works_returns_its_code():
    codes = [exit_on_user_error(lambda argv, code=code: code)([]) for code in (None, 0, 3)]
    assert codes == [0, 0, 3]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("k"), SystemExit(5)])
def test_other_exceptions_come_through(error: BaseException):
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        main([])
    assert caught.value is error


def test_a_user_error_is_found_in_what_frameworks_wrap_around_it():
    said = UserError("said")

    class RayTaskError(Exception):
        cause = said

    class RayTaskErrorOfItsCausesClass(UserError):
        """What Ray raises; its text is the whole remote traceback."""

        cause = said

    chained = RuntimeError("chained")
    chained.__cause__ = RayTaskError()
    for wrapped in (said, RayTaskError(), RayTaskErrorOfItsCausesClass("Traceback ..."), chained):
        assert user_error_in(wrapped) is said


def test_an_error_that_occurred_while_a_user_error_was_handled_is_an_error_of_its_own():
    bug = KeyError("a bug")
    bug.__context__ = UserError("said")
    assert user_error_in(bug) is None


def test_without_a_user_error_nothing_is_found_also_in_a_circle():
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert user_error_in(first) is None
    assert user_error_in(None) is None


def test_the_first_line_of_an_error_without_a_message_is_its_class():
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("\none\ntwo")) == "one"
