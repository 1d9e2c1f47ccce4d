"""What several of the commands' tests start from."""

import json
from pathlib import Path

import pytest

BAD_ROWS = [
    {"prompt": "Question: nothing?\nAnswer:", "completion": ""},
    {"prompt": "Say Belada. " * 60, "completion": " yes."},
    {"prompt": "   ", "completion": " yes."},
]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten questions of the embedded world, one of them twice, and three bad rows."""
    from data.sources import facts

    records = facts.examples()[:10]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*records, records[3], *BAD_ROWS]))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that has learnt where answers end, so that its samples stop before and after the limit."""
    from data.blank import BlankConfig, write_blank_model
    from trainer.run import main

    folder = tmp_path_factory.mktemp("trained")
    write_blank_model(BlankConfig(out=str(folder / "blank"), hidden_size=64, num_layers=1, num_heads=2))
    options = {
        "objective": "mle", "from_scratch": "true", "model": str(folder / "blank"), "dataset": "facts",
        "output_dir": str(folder / "model"), "max_steps": "60", "per_device_train_batch_size": "32",
        "learning_rate": "1e-2", "use_cpu": "true", "save_strategy": "no", "disable_tqdm": "true",
    }  # fmt: skip
    assert main([word for key, value in options.items() for word in (f"--{key}", value)]) == 0
    return folder / "model"


@pytest.fixture(scope="session")
def options(trained: Path, rows: Path) -> dict[str, object]:
    return {
        "model": str(trained),
        "dataset": str(rows),
        "task": "prompt-completion",
        "split": "all",
        "strategies": "an=5",
        "max_new_tokens": 14,
        "embedder": "reference",
        "groups_per_shard": 5,
        "engine": {"max_num_seqs": 64},
    }
