"""README.md and docs/: the Python programs run as they stand, in a folder with what `make quickstart` leaves there."""

import builtins
from pathlib import Path

import pytest

from tests.support.prose import page, pages
from tests.support.tiny import make_negative_set

pytestmark = pytest.mark.seconds

# Page -> the files that its programs write.
WRITTEN = {
    "README.md": ["runs/python/model.safetensors", "runs/python/README.md"],
    "docs/library.md": ["runs/mine/model.safetensors", "runs/mine/README.md", "runs/mine-evaluation/report.html"],
    "docs/negatives.md": [],
    "docs/publishing.md": [],
    "docs/training.md": ["runs/lora-merged/model.safetensors", "runs/lora-merged/tokenizer.json"],
    "docs/your-data.md": [],
}
# Page, number of the block -> why it does not run here.
NOT_RUN = {
    **{("docs/extending.md", number): "is run by test_extending.py" for number in range(1, 7)},
    **{
        ("docs/results/verdicts.md", number): "reads runs on ../shared, which a fresh machine lacks"
        for number in (1, 2)
    },
    ("docs/library.md", 4): "starts Ray and vLLM; `generate` is called by test_library.py and the notebook's test",
}


def test_every_block_runs_or_has_its_reason() -> None:
    blocks = {(one.name, number) for one in pages() for number, _ in enumerate(one.blocks("python"), 1)}
    assert NOT_RUN.keys() <= blocks
    assert {name for name, _ in blocks - NOT_RUN.keys()} == WRITTEN.keys()


@pytest.fixture(scope="module")
def quickstart(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/` with a reference, a negative set of both halves and an adapter of the reference's, all tiny."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    runs = tmp_path_factory.mktemp("programs") / "runs"
    (runs / "quickstart").mkdir(parents=True)
    (runs / "quickstart/reference").symlink_to(reference)
    make_negative_set(runs / "quickstart/negatives", reference, num_groups=48, num_negatives=3, split="all")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(reference), adapter).save_pretrained(str(runs / "lora"))
    AutoTokenizer.from_pretrained(reference).save_pretrained(runs / "lora")
    return runs.parent


@pytest.mark.parametrize("name", WRITTEN)
def test_the_programs_of_a_page_run(name: str, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", quickstart / "cache")
    for number, block in enumerate(page(name).blocks("python"), 1):
        if (name, number) not in NOT_RUN:
            builtins.exec(compile(block, f"{name}, block {number}", "exec"), {"__name__": "__main__"})
    assert [file for file in WRITTEN[name] if not (quickstart / file).is_file()] == []
