"""Options of a home's entries, built in and from outside, as top-level keys of a command."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import entry_options, fields_of_entries, help_text, load_config, make_config, option
from data.command.registry import Registry
from data.command.usage import answered

COMMAND = "python -m prog"


class Entry:
    """What the home below is made of."""

    def __init__(self, name: str, options: Any = None):
        self.name, self.summary = name, "an entry"
        if options is not None:
            self.Options = options


@dataclass(frozen=True)
class API:
    model: str | None = option(None, "who writes")
    timeout: float = option(60.0, "in seconds", decides=False)


@dataclass(frozen=True)
class Sampled:
    top_k: int = option(50, "the most likely tokens")
    max_tokens: int = option(256, "of a continuation")


@dataclass(frozen=True)
class Asked:
    max_tokens: int = option(256, "of an answer")
    api: API = option(API(), "of a server")


class Home(Registry[Entry]):
    """A registry of three entries that are no modules."""

    def names(self) -> list[str]:
        self._built_in = {e.name: e for e in (Entry("an", Sampled), Entry("bn"), Entry("un", Asked))}
        return list(self._built_in)


HOME = Home("a.home", "ENTRY", "entry", Entry)


@dataclass
class Config:
    out: str = option(None, "where", required=True)
    chosen: list[str] = option(["an=11"], "which")
    options: dict[str, Any] = entry_options(HOME, chosen_by="chosen", help="options of entries")


@dataclass
class Growing:
    chosen: str = option("", "which")
    options: dict[str, Any] = entry_options(HOME, chosen_by="chosen", given_only=True)


def parse(*words: str) -> Config:
    return load_config(Config, ["--out", "x", *words], command=COMMAND)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which modules are imported; what was imported from it and registered is forgotten."""
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    HOME._paths.clear()
    HOME._outside.clear()


def write(folder: Path, module: str, fields: str, name: str = "mine") -> str:
    """A module with an entry; returns its import path."""
    (folder / f"{module}.py").write_text(f'''
from dataclasses import dataclass
from data.command.options import option
from tests.data.test_entry_options import Entry

@dataclass(frozen=True)
class Options:
    {fields}

class Mine(Entry):
    name = "{name}"
    summary = "an entry"
    Options = Options

ENTRY = Mine("{name}", Options)
''')
    return f"{module}:ENTRY"


def test_options_of_all_built_in_entries_are_keys_and_shared_ones_reach_each() -> None:
    options = parse("--top_k", "5", "--max_tokens", "8", "--api.model", "m").options
    assert options["an"] == Sampled(5, 8)
    assert options["un"] == Asked(8, API("m"))
    assert list(options) == ["an", "bn", "un"]
    options["bn"].check()  # one that has no options
    assert Config(out="x").options == parse().options


def test_options_of_an_entry_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("top_k: 5\napi: {timeout: 3}\n")
    options = parse("--config", str(tmp_path / "job.yaml"), "--top_k", "6").options
    assert (options["an"].top_k, options["un"].api) == (6, API(timeout=3.0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topk", "5"], "unknown key 'topk' on the command line of python -m prog. Did you mean 'top_k'?"),
        (["--top_k", "few"], "'top_k' on the command line of python -m prog must be a whole number, got 'few'."),
        (["--api.timeot", "1"], "unknown key 'api.timeot' {}. Did you mean 'api.timeout'?"),
        (["--options", "1"], "unknown key 'options' on the command line of python -m prog. See"),
    ],
)
def test_a_wrong_option_of_an_entry_is_refused_as_any_other(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert str(caught.value).startswith(said.format("on the command line of python -m prog"))


@pytest.mark.parametrize("chosen", ["{}=3", "an=1,{}=3:random", "{}"])
def test_an_entry_from_outside_brings_its_options(outside: Path, chosen: str, tmp_path: Path) -> None:
    path = write(outside, "home_of_mine", "strength: float = option(0.5, 'how hard', decides=False)")
    with pytest.raises(UserError, match="unknown key 'strength'"):
        parse("--strength", "2")
    options = parse("--strength", "2", "--chosen", chosen.format(path)).options
    assert options["mine"].strength == 2.0
    (tmp_path / "job.yaml").write_text(f"chosen: ['{chosen.format(path)}']\nstrength: 3\n")
    if "," not in chosen:
        assert parse("--config", str(tmp_path / "job.yaml")).options["mine"].strength == 3.0
    made = make_config(Config, out="x", chosen=chosen.format(path), strength=4)
    assert made.options["mine"].strength == 4.0
    assert fields_of_entries(HOME, chosen.format(path))["strength"].field.metadata["decides"] is False


def test_an_option_shared_with_an_entry_from_outside_reaches_both(outside: Path) -> None:
    path = write(outside, "sharing", "top_k: int = option(50, 'mine')")
    options = parse("--chosen", path, "--top_k", "7").options
    assert (options["an"].top_k, options["mine"].top_k) == (7, 7)
    assert fields_of_entries(HOME, [path])["top_k"].entries == ["an", "mine"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("top_k: int = option(10, 'x')", "its option 'top_k' differs in type or default from that of 'an'."),
        ("top_k: float = option(50, 'x')", "its option 'top_k' differs in type or default from that of 'an'."),
        ("out: str = option('x', 'x')", "has an option 'out', which is another option of this command already."),
        ("options: str = option('x', 'x')", "has an option 'options', which is another option of this command"),
        ("bare: int", "its option 'bare' has no default."),
        ("pair: tuple = option((), 'x')", "its option 'pair' is of a type that no command line has"),
        ("sub: 'Options | None' = option(None, 'x')", "its option 'sub' is of a type that no command line has"),
    ],
)
def test_an_entry_from_outside_with_unusable_options_is_refused(outside: Path, fields: str, said: str) -> None:
    path = write(outside, "unusable", fields)
    with pytest.raises(UserError) as caught:
        parse("--chosen", f"{path}=1")
    assert said in str(caught.value)


def test_given_only_holds_what_was_given_under_each_entry_that_has_it() -> None:
    def given(*words: str) -> dict[str, Any]:
        return load_config(Growing, list(words), command=COMMAND).options

    assert given() == Growing().options == {}
    assert given("--top_k", "50") == {"an": {"top_k": 50}}
    assert given("--max_tokens", "9", "--api.timeout", "2") == {
        "an": {"max_tokens": 9},
        "un": {"max_tokens": 9, "api": {"timeout": 2.0}},
    }


def test_help_names_the_entries_of_each_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(Config, usage="prog", about="It works.")
    assert text.endswith("""
options of entries:
  --top_k N
        an: the most likely tokens (default: 50)
  --max_tokens N
        an, un: of a continuation (default: 256)
  --api.*
        un: of a server
  --api.model MODEL
        un: who writes
  --api.timeout X
        un: in seconds (default: 60.0)""")
    assert "options of each entry:" in help_text(Growing, usage="prog", about="It works.")


def test_help_shows_the_options_of_an_entry_from_outside_that_the_command_line_names(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = write(outside, "shown_in_help", "strength: float = option(0.5, 'how hard')")
    for argv in (["--chosen", "an=1", f"{path}=3", "--help"], ["-h", "--chosen", f"{path}"]):
        assert answered(argv, Config, usage="prog", about="It works.")
        assert "  --strength X\n        mine: how hard (default: 0.5)\n" in capsys.readouterr().out
    assert answered(["--help"], Config, usage="prog", about="It works.")
    assert "--strength" not in capsys.readouterr().out
    assert not answered(["--chosen", "an=1"], Config, usage="prog", about="It works.")
