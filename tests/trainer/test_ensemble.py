"""Weight-space ensembles: the right numbers, whole model directories, little memory, and clear refusals."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import trainer.ensemble.ensembles
from data.command.errors import UserError
from data.models import tokenizer_hash, weights_hash
from tests.support.commands import ROOT
from tests.support.ensembles import TOKENIZER, arguments, edit_json, ensembles, make_model, refused
from trainer.ensemble.ensembles import main, parse_alphas
from trainer.ensemble.interpolate import check_same_tensors, read_file, write_interpolations

EMBEDDING = "model.embed_tokens.weight"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# --- whole models


def test_every_tensor_is_the_interpolation_and_the_directory_a_model(mle: Path, cpo: Path, tmp_path: Path) -> None:
    for name in ("trainer_job.json", "trainer_state.json", "training_args.bin", "README.md"):
        assert not (cpo / name).exists()
    trained = tmp_path / "cpo"
    shutil.copytree(cpo, trained)
    for name in ("trainer_job.json", "trainer_state.json", "training_args.bin", "README.md"):
        (trained / name).write_text("{}")
    (trained / "checkpoint-1").mkdir()

    (found,) = ensembles(mle, trained, tmp_path / "out", 0.3)

    assert {p.name for p in found.iterdir()} == {*(p.name for p in cpo.iterdir()), "ensemble.json", "README.md"}
    assert all((found / name).read_bytes() == (cpo / name).read_bytes() for name in (*TOKENIZER, "config.json"))
    ours, theirs = load_file(mle / "model.safetensors"), load_file(cpo / "model.safetensors")
    tensors = load_file(found / "model.safetensors")
    assert tensors.keys() == theirs.keys()
    assert "lm_head.weight" not in tensors  # tied to the embedding
    for name, tensor in tensors.items():
        expected = torch.where(ours[name] == theirs[name], theirs[name], 0.3 * ours[name] + 0.7 * theirs[name])
        assert torch.equal(tensor, expected), name
    model = AutoModelForCausalLM.from_pretrained(found)
    assert torch.equal(model.state_dict()["lm_head.weight"], tensors[EMBEDDING])
    assert tokenizer_hash(AutoTokenizer.from_pretrained(found)) == tokenizer_hash(AutoTokenizer.from_pretrained(cpo))
    record = json.loads((found / "ensemble.json").read_text())
    assert record["alpha"] == 0.3
    assert record["mle"]["weights_sha256"] == weights_hash(str(mle))
    assert record["cpo"]["weights_sha256"] == weights_hash(str(cpo))


def test_the_default_alphas_are_the_papers(mle: Path, cpo: Path, tmp_path: Path) -> None:
    assert main(arguments(mle, cpo, tmp_path / "out")) == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"alpha-0", "alpha-0.1", "alpha-0.3", "alpha-0.5", "alpha-0.7", "alpha-0.9"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_alpha_0_is_cpo_and_alpha_1_mle_bit_for_bit(dtype: torch.dtype, reference: Path, tmp_path: Path) -> None:
    mle = make_model(tmp_path / "mle", reference, 1, dtype)
    cpo = make_model(tmp_path / "cpo", reference, 2, dtype)
    at_0, at_1 = ensembles(mle, cpo, tmp_path / "out", 0, 1)
    assert (at_0 / "model.safetensors").read_bytes() == (cpo / "model.safetensors").read_bytes()
    assert weights_hash(str(at_1)) == weights_hash(str(mle)) != weights_hash(str(cpo))


def test_bfloat16_is_interpolated_in_float32_and_rounded_once(reference: Path, tmp_path: Path) -> None:
    mle = make_model(tmp_path / "mle", reference, 1, torch.bfloat16)
    cpo = make_model(tmp_path / "cpo", reference, 2, torch.bfloat16)
    (found,) = ensembles(mle, cpo, tmp_path / "out", 0.7)
    ours, theirs = (load_file(m / "model.safetensors")[EMBEDDING] for m in (mle, cpo))
    tensor = load_file(found / "model.safetensors")[EMBEDDING]
    assert torch.equal(tensor, (0.7 * ours.float() + (1 - 0.7) * theirs.float()).bfloat16())
    assert not torch.equal(tensor, 0.7 * ours + (1 - 0.7) * theirs)


def test_the_dtype_is_the_cpo_models(mle: Path, reference: Path, tmp_path: Path) -> None:
    cpo = make_model(tmp_path / "cpo", reference, 2, torch.bfloat16)
    half, whole = ensembles(mle, cpo, tmp_path / "out", 0.5, 1)
    ours, theirs = (load_file(m / "model.safetensors")[EMBEDDING] for m in (mle, cpo))
    assert torch.equal(load_file(half / "model.safetensors")[EMBEDDING], (0.5 * ours + 0.5 * theirs.float()).bfloat16())
    assert torch.equal(load_file(whole / "model.safetensors")[EMBEDDING], ours.bfloat16())


def test_shards_keep_their_layout_and_give_the_same_weights(
    mle: Path, cpo: Path, reference: Path, tmp_path: Path
) -> None:
    """A sharded model against one in a single file, in both orders."""
    sharded = make_model(tmp_path / "sharded", reference, seed=2, shard_size="100KB")
    shards = {p.name for p in sharded.glob("*.safetensors")}
    assert len(shards) > 2
    (single,) = ensembles(mle, cpo, tmp_path / "single", 0.3)
    (found,) = ensembles(mle, sharded, tmp_path / "out", 0.3)
    assert {p.name for p in found.glob("*.safetensors")} == shards
    index = "model.safetensors.index.json"
    assert (found / index).read_bytes() == (sharded / index).read_bytes()
    assert weights_hash(str(found)) == weights_hash(str(single))
    loaded, expected = (AutoModelForCausalLM.from_pretrained(d).state_dict() for d in (found, single))
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    (back,) = ensembles(sharded, mle, tmp_path / "back", 1)
    assert [p.name for p in back.glob("*.safetensors*")] == ["model.safetensors"]
    assert weights_hash(str(back)) == weights_hash(str(cpo))


def test_a_model_with_itself_is_itself(cpo: Path, tmp_path: Path) -> None:
    for directory in ensembles(cpo, cpo, tmp_path / "out", 0.1, 0.3, 0.7):
        assert weights_hash(str(directory)) == weights_hash(str(cpo))


def test_equal_infinities_whole_numbers_scalars_and_empty_tensors_come_through(tmp_path: Path) -> None:
    common = {
        "ids": torch.arange(5),
        "mask": torch.tensor([True, False, True]),
        "infinite": torch.tensor([float("-inf"), 0.0]),
        "empty": torch.zeros(0, 4),
    }
    save_file({**common, "scalar": torch.tensor(1.0)}, tmp_path / "mle", metadata={"format": "pt"})
    save_file({**common, "scalar": torch.tensor(2.0)}, tmp_path / "cpo", metadata={"format": "pt", "more": "x"})
    mle, cpo = read_file(tmp_path / "mle"), read_file(tmp_path / "cpo")
    check_same_tensors(mle, cpo, "A", "B")
    write_interpolations(mle, tmp_path / "cpo", {0.25: tmp_path / "out"})
    found = load_file(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in common.items())
    assert found["scalar"].item() == 1.75
    header = json.loads((tmp_path / "out").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"format": "pt", "more": "x"}


MEASURE = """
import json, re, struct, sys
from pathlib import Path
import torch
from trainer.ensemble.interpolate import check_same_tensors, interpolate, read_file, write_interpolations

SIZE = 64 << 20
header = {f"t{i}": {"dtype": "F32", "shape": [SIZE // 4], "data_offsets": [i * SIZE, (i + 1) * SIZE]} for i in (0, 1)}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
folder = Path(sys.argv[1])
for name in ("mle", "cpo"):
    with (folder / name).open("wb") as file:  # zeros that take no room on the disk
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2 * SIZE)
interpolate(torch.ones(9), torch.zeros(9), 0.5)
def memory(key):  # ru_maxrss would count what the parent process held
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = memory("VmRSS")
mle, cpo = read_file(folder / "mle"), read_file(folder / "cpo")
check_same_tensors(mle, cpo, "A", "B")
write_interpolations(mle, folder / "cpo", {0.5: folder / "out-1", 0.9: folder / "out-2"})
print((memory("VmHWM") - before) / SIZE)
"""


@pytest.mark.seconds
def test_memory_stays_below_one_tensor(tmp_path: Path) -> None:
    """Two models of two tensors, 64 MiB each, to two alphas: two outputs, and never even one tensor in memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-2").stat().st_size == (tmp_path / "cpo").stat().st_size
    assert float(done.stdout) < 1.0


# --- refusals


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["0.5", "1.1"], "--alpha 1.1 is outside [0, 1]"),
        (["-0.1"], "--alpha -0.1 is outside [0, 1]"),
        (["nan"], "must be a list of numbers, got 'nan'"),
        (["0.1", "0.5", "0.10"], "--alpha 0.1 is given twice"),
        (["half"], "'alpha' on the command line of python -m trainer.ensemble must be a list of numbers, got 'half'."),
        (["0,half"], "must be a list of numbers, got '0,half'."),
        (["0,0.5", "0"], "--alpha 0.0 is given twice"),
        ([","], "--alpha is empty"),
    ],
)
def test_alphas_that_are_no_weights_are_refused(
    texts: list[str], said: str, mle: Path, cpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(arguments(mle, cpo, tmp_path / "out", *texts), capsys)
    assert not (tmp_path / "out").exists()


def test_the_directory_of_an_alpha_is_named_by_its_number() -> None:
    names = [trainer.ensemble.ensembles.directory_name(alpha) for alpha in parse_alphas(["0", "1.0", "0.30", "1e-3"])]
    assert names == ["alpha-0", "alpha-1", "alpha-0.3", "alpha-0.001"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mle", "a"], "needs --cpo, --output_dir"),
        (
            ["--mle", "a", "--cpo", "b", "--ouput_dir", "c"],
            "'ouput_dir' on the command line of python -m trainer.ensemble. Did you mean 'output_dir'?",
        ),
        (["--mle", "a", "--cpo"], "--cpo on the command line of python -m trainer.ensemble needs a value."),
        (["--mle", "./a", "--cpo", "b", "--output_dir", "s3://b/c"], "'s3://b/c' is a URL"),
        (["--mle", "./no/such", "--cpo", "b", "--output_dir", "/no/such"], "model './no/such' does not exist"),
    ],
)
def test_wrong_command_lines_of_the_ensemble_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(words, capsys)


def test_a_yaml_file_holds_the_same_options_and_flags_override_it(mle: Path, cpo: Path, tmp_path: Path) -> None:
    config = tmp_path / "ensemble.yaml"
    config.write_text(f"mle: {mle}\ncpo: {cpo}\nalpha: [0.3, 1]\noutput_dir: {tmp_path / 'out'}\n")
    assert main(["--config", str(config)]) == 0
    assert main(["--config", str(config), "--alpha", "0.5", "--output_dir", str(tmp_path / "other")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"alpha-0.3", "alpha-1"}
    assert {p.name for p in (tmp_path / "other").iterdir()} == {"alpha-0.5"}
    (expected,) = ensembles(mle, cpo, tmp_path / "flags", 0.3)
    assert weights_hash(str(tmp_path / "out" / "alpha-0.3")) == weights_hash(str(expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "alphas: [0.5]",
            "unknown key 'alphas' in {config}. Did you mean 'alpha'? See `python -m trainer.ensemble --help` for all",
        ),
        ("mle: 3\ncpo: b\noutput_dir: o", "'mle' in {config} must be text, got 3."),
        ("cpo:", "'cpo' in {config} must be text, got None."),
        ("alpha: []", "--alpha is empty. Give numbers from 0 to 1, or leave it out."),
        ("mle: ''\ncpo: b\noutput_dir: o", "needs --mle."),
        ("alpha: 1.5", "--alpha 1.5 is outside [0, 1]"),
        ("alpha: [true]", "'alpha' in {config} must be a list of numbers, got [True]."),
        ("mle: [", "config file '{config}' is not valid YAML"),
        ("mle: a\ncpo: b", "needs --output_dir"),
    ],
)
def test_yaml_files_that_say_something_else_are_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "ensemble.yaml"
    config.write_text(text)
    others = ["--mle", "./a", "--cpo", "./b", "--output_dir", "o"] if "alpha" in text else []
    assert said.format(config=config) in refused(["--config", str(config), *others], capsys)


def test_a_yaml_file_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read config file" in refused(["--config", str(tmp_path / "no.yaml")], capsys)


def test_another_shape_is_refused_with_the_first_tensor_and_both_shapes(
    mle: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = make_model(tmp_path / "wider", reference, seed=2, vocab_size=1000)
    rows = load_file(mle / "model.safetensors")[EMBEDDING].shape[0]
    line = refused(arguments(mle, wider, tmp_path / "out"), capsys)
    assert f"tensor '{EMBEDDING}' has shape [{rows}, 64] in --mle '{mle}' and [1000, 64] in --cpo '{wider}'." in line
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_named(mle: Path, cpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(cpo, tmp_path / "cpo")
    tensors = load_file(cpo / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "cpo" / "model.safetensors", metadata={"format": "pt"})
    missing = f"tensor 'model.layers.1.mlp.up_proj.weight' of --mle '{mle}' is missing in --cpo '{tmp_path / 'cpo'}'."
    assert missing in refused(arguments(mle, tmp_path / "cpo", tmp_path / "out"), capsys)
    said = refused(arguments(tmp_path / "cpo", mle, tmp_path / "out"), capsys)
    assert f"of --cpo '{mle}' is missing in --mle '{tmp_path / 'cpo'}'." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mle", "cpo", "said"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "tensor 'x' (I64) cannot be interpolated and differs between A"),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), "tensor 'x' is I64 in A and F32 in B"),
        (torch.tensor([True]), torch.tensor([False]), "tensor 'x' (BOOL) cannot be interpolated"),
    ],
)
def test_whole_numbers_that_differ_are_refused(mle: torch.Tensor, cpo: torch.Tensor, said: str, tmp_path: Path) -> None:
    for name, tensor in (("mle", mle), ("cpo", cpo)):
        save_file({"x": tensor}, tmp_path / name)
    with pytest.raises(UserError) as error:
        check_same_tensors(read_file(tmp_path / "mle"), read_file(tmp_path / "cpo"), "A", "B")
    assert said in str(error.value)


def test_an_ensemble_of_models_with_other_tokenizers_is_refused(
    mle: Path, cpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cpo, tmp_path / "cpo")
    path = tmp_path / "cpo" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    line = refused(arguments(mle, tmp_path / "cpo", tmp_path / "out"), capsys)
    assert f"the tokenizers of --mle '{mle}' and --cpo '{tmp_path / 'cpo'}' differ." in line
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_read_this_way_are_refused(
    mle: Path, cpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"

    def said() -> str:
        line = refused(arguments(mle, broken, tmp_path / "out"), capsys)
        shutil.rmtree(broken)
        return line

    shutil.copytree(cpo, broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "has no *.safetensors weights (*.bin is not read)" in said()
    shutil.copytree(cpo, broken)
    size = (cpo / "model.safetensors").stat().st_size
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(size - 4)
    assert f"holds {size - 4} bytes, its header says {size}" in said()
    shutil.copytree(cpo, broken)
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs")
    assert "is no safetensors file" in said()
    shutil.copytree(cpo, broken)
    edit_json(broken / "config.json", quantization_config={"quant_method": "fp8"})
    assert "is quantised" in said()
    shutil.copytree(cpo, broken)
    edit_json(broken / "config.json", model_type="mistral")
    assert f"--mle '{mle}' is a llama model and --cpo '{broken}' a mistral model." in said()
    shutil.copytree(cpo, broken, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "has no tokenizer" in said()
    shutil.copytree(cpo, broken)
    (broken / "config.json").unlink()
    assert "has no config.json" in said()
    shutil.copytree(cpo, broken)
    (broken / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../elsewhere.safetensors"}}')
    assert "names files outside its directory" in said()
    assert not (tmp_path / "out").exists()


# --- the output directory


def test_another_run_makes_the_ensembles_that_are_missing_and_leaves_the_others(
    mle: Path, cpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (first,) = ensembles(mle, cpo, out, 0.1)
    (out / ".tmp-alpha-0.5-0123abcd").mkdir()  # as a killed run leaves it
    (out / ".tmp-alpha-0.5-0123abcd" / "model.safetensors").write_bytes(b"half")
    before = first.stat().st_mtime_ns, (first / "model.safetensors").stat().st_mtime_ns
    moved = tmp_path / "moved"
    shutil.copytree(mle, moved)
    ensembles(moved, cpo, out, 0.5, 0.1)
    assert {p.name for p in out.iterdir()} == {"alpha-0.1", "alpha-0.5"}
    assert before == (first.stat().st_mtime_ns, (first / "model.safetensors").stat().st_mtime_ns)
    line = refused(arguments(cpo, mle, out, 0.3, 0.1), capsys)
    assert f"'{first}' already holds an ensemble of other models." in line
    assert {p.name for p in out.iterdir()} == {"alpha-0.1", "alpha-0.5"}


def test_two_runs_do_not_write_to_one_directory(
    mle: Path, cpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def start_another_stub(*written: Any) -> None:
        monkeypatch.setattr(trainer.ensemble.ensembles, "write_interpolations", write_interpolations)
        said.append(refused(arguments(mle, cpo, tmp_path / "out", 0.5), capsys))
        write_interpolations(*written)

    monkeypatch.setattr(trainer.ensemble.ensembles, "write_interpolations", start_another_stub)
    ensembles(mle, cpo, tmp_path / "out", 0.5)
    assert "is in use by another run" in said[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"alpha-0.5"}


def test_an_output_directory_with_anything_else_is_refused_and_left_alone(
    mle: Path, cpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cpo, tmp_path / "copy")
    before = contents(tmp_path / "copy")
    assert "already holds other files (config.json ...)" in refused(arguments(mle, cpo, tmp_path / "copy"), capsys)
    assert contents(tmp_path / "copy") == before
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(arguments(mle, cpo, tmp_path / "file"), capsys)
    (tmp_path / "out" / "alpha-0.5").mkdir(parents=True)
    (tmp_path / "out" / "alpha-0.5" / "notes.txt").write_text("mine")
    line = refused(arguments(mle, cpo, tmp_path / "out", 0.1, 0.5), capsys)
    assert f"'{tmp_path / 'out' / 'alpha-0.5'}' already exists and is no ensemble." in line
    assert contents(tmp_path / "out") == {"alpha-0.5/notes.txt": b"mine"}


def test_a_full_disk_leaves_nothing_half_written(
    mle: Path, cpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_to_a_full_disk_stub(tensors: Any, source: Path, outputs: Mapping[float, Path]) -> None:
        for path in outputs.values():
            path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.ensemble.ensembles, "write_interpolations", write_to_a_full_disk_stub)
    assert "No space left on device" in refused(arguments(mle, cpo, tmp_path / "out", 0.1, 0.5), capsys)
    assert not (tmp_path / "out").exists()


# --- numbers


@pytest.mark.parametrize("alphas", [(0.0,), (1.0,), (0.3,)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoilt", ["mle", "cpo"])
def test_an_ensemble_whose_numbers_are_not_finite_is_refused_and_not_written(
    spoilt: str,
    value: float,
    alphas: tuple[float, ...],
    mle: Path,
    cpo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(mle if spoilt == "mle" else cpo, tmp_path / "spoilt"))
    tensors = load_file(copy / "model.safetensors")
    tensors[EMBEDDING][0, 0] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    models = (copy, cpo) if spoilt == "mle" else (mle, copy)
    if alphas == ((0.0,) if spoilt == "mle" else (1.0,)):  # the model that is not spoilt, as it is
        ensembles(*models, tmp_path / "out", *alphas)
        return
    said = refused(arguments(*models, tmp_path / "out", *alphas), capsys)
    assert f"tensor '{EMBEDDING}' of the ensemble at alpha {alphas[0]:g} would not be finite" in said
    assert not (tmp_path / "out").exists()
