"""Every YAML in recipes/ parses into the configuration of the command it is for."""

from pathlib import Path

import pytest

from data.config import load_config, read_yaml
from data.strategies import parse_counts
from evaluation.config import EvaluateConfig
from negatives_gen.config import GenerateConfig
from trainer.arguments import parse

# Those in recipes/accelerate are accelerate's, see test_fsdp.py.
RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
# The stage is the last word of the file's name; stage 1 carries the recipe's bare name.
TRAINER_SUFFIXES = ("-reference", "-train")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_parses(path: Path) -> None:
    if path.stem.endswith(TRAINER_SUFFIXES):
        needed = {"objective": ["--objective", "cpo"], "output_dir": ["--output_dir", "runs/o"]}
        missing = [word for key, flag in needed.items() if key not in read_yaml(str(path)) for word in flag]
        script, training, _ = parse(["--config", str(path), *missing])
        assert training.max_steps > 0
        assert script.model
    elif path.stem.endswith("-evaluate"):
        config = load_config(EvaluateConfig, ["--config", str(path)], command="evaluation.run")
        config.check()
        assert list(config.models()) == ["reference", "mle", "cpo", "cpo-rank"]
    else:
        config = load_config(GenerateConfig, ["--config", str(path)], command="negatives_gen")
        config.check()
        assert parse_counts(config.strategies, "strategies") == {"an": 11}
        assert config.top_k == 50


def test_recipes_hold_yaml_only() -> None:
    files = [p for p in (Path(__file__).parent.parent / "recipes").rglob("*") if p.is_file()]
    assert files
    assert {p.suffix for p in files} == {".yaml"}
