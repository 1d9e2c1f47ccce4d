"""data/command/options.py: flags over YAML over defaults, in one syntax; every mistake in one precise line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError, did_you_mean
from data.command.options import (
    help_text,
    list_flags,
    load_config,
    make_config,
    option,
    read_yaml,
)

COMMAND = "python -m prog"


@dataclass(frozen=True)
class Cap:
    requests: int | None = option(None, "at most so many")


@dataclass(frozen=True)
class Judge:
    model: str | None = option(None, "the judge's name", metavar="NAME")
    temperature: float | None = option(0.0, "of its sampling")
    orders: list[str] = option(["AB", "BA"], "what is shown first")
    stream: bool = option(False, "take the answer in pieces")
    cap: Cap = option(Cap(), "of one run")


@dataclass
class Config:
    out: str
    beta: float = option(5.0, "inverse temperature")
    num_negatives: int = option(11, "negatives per group")
    limit: int | None = option(None, "keep only so many")
    ranking: bool = option(False, "rank the candidates")
    strategies: list[str] = option(["an"], "strategies to use")
    alphas: list[float] = option([], "weights of an ensemble")
    seeds: list[int] | None = option(None, "one for each run")
    engine: dict[str, Any] = option({}, "passed on to the engine")
    judge: Judge = option(Judge(temperature=0.5), "of win rates")


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


@pytest.mark.parametrize(
    "words",
    [
        ("--strategies", "mn", "tn", "bn"),
        ("--strategies", "mn,tn,bn"),
        ("--strategies", "mn, tn", ",bn,"),
        ("--strategies=mn", "tn,bn"),
        ("--strategies", "mn", "--beta", "1", "--strategies", "tn,bn"),
        ("--strategies", "mn", "--strategies", "tn", "--strategies=bn"),
    ],
)
def test_a_list_is_written_in_words_with_commas_or_by_repeating_it(words: tuple[str, ...]):
    assert parse("--out", "x", *words).strategies == ["mn", "tn", "bn"]


@pytest.mark.parametrize("line", ["strategies: [mn, tn]", "strategies: mn, tn", "strategies: [mn, 'tn']"])
def test_a_list_in_a_file_is_a_list_or_a_text_and_a_flag_replaces_it(tmp_path: Path, line: str):
    path = yaml_file(tmp_path, f"out: x\n{line}\n")
    assert parse("--config", path).strategies == ["mn", "tn"]
    assert parse("--config", path, "--strategies", "an", "bn").strategies == ["an", "bn"]


def test_an_item_of_a_files_list_may_hold_a_comma(tmp_path: Path):
    assert parse("--config", yaml_file(tmp_path, "out: x\nstrategies: ['a,b', c]\n")).strategies == ["a,b", "c"]


def test_lists_of_numbers_hold_numbers(tmp_path: Path):
    assert parse("--out", "x", "--alphas", "0", "-0.5,1e-3").alphas == [0.0, -0.5, 0.001]
    assert parse("--config", yaml_file(tmp_path, "out: x\nalphas: 0.5\nseeds: [1, 2]\n")) == Config(
        out="x", alphas=[0.5], seeds=[1, 2]
    )
    assert parse("--out", "x", "--seeds", "none").seeds is None
    assert parse("--out", "x", "--strategies=").strategies == []


@pytest.mark.parametrize(
    ("words", "spoken"),
    [
        (("--alphas", "0", "half"), "'alphas' {where} must be a list of numbers, got '0,half'."),
        (("--seeds", "1.5"), "'seeds' {where} must be a list of whole numbers, got '1.5'."),
    ],
)
def test_a_list_with_a_wrong_item_is_refused(words: tuple[str, ...], spoken: str):
    assert refusal(*words) == spoken.format(where=f"on the command line of {COMMAND}")


def test_a_list_in_a_file_that_holds_no_texts_is_refused(tmp_path: Path):
    path = yaml_file(tmp_path, "strategies: [{a: 1}]")
    assert refusal("--config", path) == f"'strategies' in {path} must be a list of texts, got [{{'a': 1}}]."


def test_only_a_list_takes_several_words():
    unexpected = f"unexpected argument '4' on the command line of {COMMAND}; options read --key value."
    assert refusal("--beta", "3", "4") == refusal("--engine.x", "3", "4") == unexpected
    assert refusal("--config", "3", "4") == unexpected


def test_a_flag_alone_means_true():
    config = parse("--ranking", "--out", "x", "--judge.stream", "--engine.enforce_eager")
    assert (config.ranking, config.judge.stream, config.engine) == (True, True, {"enforce_eager": True})
    assert parse("--out", "x", "--ranking", "false").ranking is False


def test_nested_options_are_typed_and_keep_the_defaults_of_their_place(tmp_path: Path):
    assert parse("--out", "x").judge == Judge(temperature=0.5)
    path = yaml_file(tmp_path, "out: x\njudge:\n  model: big\n  orders: AB\njudge.temperature: null\n")
    config = parse("--config", path, "--judge.cap.requests", "1e3", "--judge.model", "small")
    assert config.judge == Judge("small", None, ["AB"], cap=Cap(1000))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--judge.modle", "x"),
            "unknown key 'judge.modle' {where}. Did you mean 'judge.model'? See `{command}",
        ),
        (("--judge.temperature", "hot"), "'judge.temperature' {where} must be a number, got 'hot'."),
        (("--judge.cap.requests", "1.5"), "'judge.cap.requests' {where} must be a whole number, got '1.5'."),
        (("--judge.api_key", "sk-1"), "--judge.api_key is not an option: the key comes from $OPENAI_API_KEY only."),
        (("--judge", "x"), "'judge' {where} must be a mapping; on the command line write --judge.NAME VALUE."),
        (("--judge.model.x", "y"), "unknown key 'judge.model.x' {where}. Did you mean 'judge.model'?"),
    ],
)
def test_a_wrong_nested_option_is_refused_as_any_other(words: tuple[str, ...], said: str):
    assert refusal(*words).startswith(said.format(where=f"on the command line of {COMMAND}", command=COMMAND))


def test_a_wrong_nested_option_of_a_file_is_named_with_the_file(tmp_path: Path):
    path = yaml_file(tmp_path, "judge: {temperatur: 1}")
    assert f"unknown key 'judge.temperatur' in {path}. Did you mean 'judge.temperature'?" in refusal("--config", path)
    path = yaml_file(tmp_path, "judge: 3")
    assert f"'judge' in {path} must be a mapping" in refusal("--config", path)


def test_a_required_option_must_be_given_and_not_be_empty():
    @dataclass
    class Two:
        model: str = option(None, "what", required=True)
        names: list[str] = option([], "which", required=True)

    for words in ([], ["--model", "", "--names", ","]):
        with pytest.raises(UserError, match=r"^python -m prog needs --model, --names\. Give it as a flag or in"):
            load_config(Two, words, command=COMMAND)
    assert load_config(Two, ["--model", "m", "--names", "a"], command=COMMAND) == Two("m", ["a"])


def test_python_values_make_the_same_config_as_a_command_line(tmp_path: Path):
    made = make_config(Config, out=tmp_path, strategies="mn,tn", beta="2", judge={"model": "big"}, engine={"a": None})
    assert made == Config(
        out=str(tmp_path), strategies=["mn", "tn"], beta=2.0, judge=Judge("big", 0.5), engine={"a": None}
    )
    assert make_config(Config, out="x", **{"judge.cap.requests": 3, "judge": {"stream": True}}).judge == Judge(
        temperature=0.5, stream=True, cap=Cap(3)
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"betta": 1}, "unknown key 'betta' of Config. Did you mean 'beta'?"),
        ({"beta": "high"}, "'beta' of Config must be a number, got 'high'."),
        ({"judge.model": ["a"]}, "'judge.model' of Config must be text, got ['a']."),
    ],
)
def test_wrong_python_values_are_refused(keys: dict[str, Any], said: str):
    with pytest.raises(UserError) as caught:
        make_config(Config, out="x", **keys)
    assert str(caught.value) == said
    with pytest.raises(UserError, match=r"^Config needs out\.$"):
        make_config(Config)


@pytest.mark.parametrize(
    ("words", "normal"),
    [
        ("--shards a b --beta 1", "--shards a b --beta 1"),
        ("--shards a,b --beta 1", "--shards a b --beta 1"),
        ("--shards a --beta 1 --shards b", "--shards a b --beta 1"),
        ("--shards=a,b c --beta=1", "--shards a b c --beta=1"),
        ("--eval-shards=a --eval_shards b", "--eval-shards a b"),
        ("--use an=1,bn=2 --shards", "--use an=1,bn=2 --shards"),
    ],
)
def test_lists_are_normalised_for_a_parser_that_wants_words(words: str, normal: str):
    assert list_flags(words.split(), ["shards", "eval_shards"]) == normal.split()


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
        ("out: 007", "must be text, got 7"),
        ("out: true", "must be text, got True"),
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
        ("a: 2024-99-99", "is not valid YAML: month must be in 1..12"),
        ("a: " + "[" * 5000, "is not valid YAML: nested too deeply."),
        ("a: 1\nb: [", "is not valid YAML: expected the node content, but found '<stream end>' in line 2."),
        ("- a\n- b\n", "must hold a mapping of key: value, not a list"),
    ],
)
def test_a_config_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, phrase: str):
    assert phrase in refusal("--config", yaml_file(tmp_path, text))


def test_an_empty_config_file_is_an_empty_mapping(tmp_path: Path):
    assert read_yaml(yaml_file(tmp_path, "# nothing\n")) == {}


def test_help_has_the_required_options_first_with_metavars_and_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(Config, usage="prog --out DIR\nprog VERB", about="It works.\n\nverbs:\n  a  first")
    assert (
        text
        == """\
usage: prog --out DIR
       prog VERB

It works.

verbs:
  a  first

required:
  --out OUT

options:
  --config FILE.yaml
        YAML file of these keys; flags override it
  --beta X
        inverse temperature (default: 5.0)
  --num_negatives N
        negatives per group (default: 11)
  --limit N
        keep only so many
  --ranking [true|false]
        rank the candidates (default: false)
  --strategies STRATEGIES ...
        strategies to use (default: an)
  --alphas X ...
        weights of an ensemble
  --seeds N ...
        one for each run
  --engine.KEY VALUE
        passed on to the engine
  --version
        say version and commit, and nothing else

--judge.*: of win rates:
  --judge.model NAME
        the judge's name
  --judge.temperature X
        of its sampling (default: 0.5)
  --judge.orders ORDERS ...
        what is shown first (default: AB BA)
  --judge.stream [true|false]
        take the answer in pieces (default: false)
  --judge.cap.*
        of one run
  --judge.cap.requests N
        at most so many"""
    )


@pytest.mark.parametrize("columns", [48, 60, 200])
def test_help_is_wrapped_at_the_terminals_width(monkeypatch: pytest.MonkeyPatch, columns: int):
    @dataclass
    class Wordy:
        out: str = field(default="x", metadata={"help": "many words " * 20})

    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text(Wordy, usage="prog", about="what it does " * 20)
    widths = [len(line) for line in text.splitlines()]
    assert columns - 12 < max(widths) <= columns


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "engine: &e {again: *e}\n",
        "judge: &j [*j]\n",
        "a0: &a0 !!pairs [x: 1, x: 1]\n"
        + "".join(f"a{n}: &a{n} !!pairs [x: *a{n - 1}, x: *a{n - 1}]\n" for n in range(1, 40)),
    ],
)
def test_aliases_that_expand_without_end_are_refused(text: str, tmp_path: Path):
    path = yaml_file(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"config file '{path}' holds more than 100,000 values (aliases count each time)."
    assert read_yaml(yaml_file(tmp_path, "a: &a [1, 2]\nb: *a\nc: [*a, *a]\n")) == {
        "a": [1, 2],
        "b": [1, 2],
        "c": [[1, 2], [1, 2]],
    }


@pytest.mark.parametrize(
    "text", ["beta: 1\nout: x\nbeta: 7\n", "judge: {model: a, model: b}\n", "engine:\n  a: 1\n  a: 2\n"]
)
def test_a_key_that_stands_twice_is_refused(text: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"is not valid YAML: the key '\w+' twice in line \d\.$"):
        read_yaml(yaml_file(tmp_path, text))
    assert read_yaml(yaml_file(tmp_path, "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: {<<: *a, x: 3}\n"))["c"] == {"x": 3}
