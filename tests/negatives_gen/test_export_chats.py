"""`export` of chats: messages, to which a trainer applies the template itself, with one BOS."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from data.command.errors import UserError
from data.command.options import make_config
from data.models import chat_template_hash, load_tokenizer, tokenizer_hash
from data.schema import Candidate, Group, example_id
from data.set_writer import NegativeSetWriter
from data.sources.encode import Encoded, encode_pairs
from negatives_gen.verbs.export import ExportConfig, export, main
from negatives_gen.verbs.export_tokens import count_inexact
from tests.support.tiny import save_tiny_model

# As Llama's: BOS is written by the template, and the tokenizer would add one more.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}Say {{ m.content }}{% endif %}{% endfor %}"
)
ASKED = ["red", "blue", "green"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model whose tokenizer puts a BOS before every text."""
    from tokenizers.processors import TemplateProcessing

    directory = save_tiny_model(tmp_path_factory.mktemp("chat") / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    bos = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.bos_token, tokenizer.chat_template = bos, TEMPLATE
    pair = [(bos, tokenizer.convert_tokens_to_ids(bos))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=pair)
    tokenizer.save_pretrained(directory)
    return directory


def group(tokenizer: Any, text: str, number: int) -> Group:
    prompt = [{"role": "user", "content": text}]
    encoded, other = encode_pairs(
        [(prompt, [{"role": "assistant", "content": said}]) for said in ("the sky", "the sea")], tokenizer, 128
    )
    assert isinstance(encoded, Encoded)
    assert isinstance(other, Encoded)
    negative = Candidate("bn", other.response_ids, other.response, similarity={"rouge": 0.5}, reference_logp=-1.0)
    return Group(
        *(example_id(str(number), text), encoded.prompt, encoded.response, encoded.prompt_ids, encoded.response_ids),
        reference_logp=-1.0,
        negatives=[negative],
        messages=prompt,
        query=text,
    )


def write(path: Path, model: Path, groups: list[Group]) -> Path:
    tokenizer = load_tokenizer(str(model))
    job = {
        "model": {"name": str(model), "weights_sha256": "a" * 64, "scorer_dtype": "float32"},
        "tokenizer": {
            "sha256": tokenizer_hash(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "chat_template_sha256": chat_template_hash(tokenizer),
        },
        "data": {"name": "chats", "task": "conversational", "split": "train"},
        "strategies": {"bn": {"count": 1}},
    }
    writer = NegativeSetWriter(str(path), job, ["rouge"])
    writer.begin()
    writer.write_shard(0, groups, [], seconds={}, layout="packed")
    writer.finish(1)
    return path


@pytest.fixture(scope="module")
def chats(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_tokenizer(str(model))
    groups = [group(tokenizer, text, number) for number, text in enumerate(ASKED)]
    assert all(g.prompt_ids.count(tokenizer.bos_token_id) == 1 for g in groups)
    return write(tmp_path_factory.mktemp("sets") / "chats", model, groups)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_each_format_has_messages_where_its_trainer_takes_them(chats: Path, tmp_path: Path) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ASKED]
    both = {"chosen": said("the sky"), "rejected": said("the sea")}
    expected = {
        "trl-preference": [{"prompt": prompt, **both} for prompt in prompts],
        "openrlhf": [{"prompt": prompt, **both} for prompt in prompts],
        "trl-sft": [{"prompt": prompt, "completion": said("the sky")} for prompt in prompts],
        "llama-factory": [
            {"messages": prompt, "chosen": both["chosen"][0], "rejected": both["rejected"][0]} for prompt in prompts
        ],
    }
    for format, rows in expected.items():
        for suffix in ("jsonl", "parquet"):
            out = tmp_path / suffix / f"{format}.{suffix}"
            export(str(chats), make_config(ExportConfig, format=format, out=str(out)))
            if suffix == "jsonl":
                assert [json.loads(line) for line in out.read_text().splitlines()] == rows
            else:
                assert pq.read_table(out).to_pylist() == rows
    entry = json.loads((tmp_path / "jsonl" / "dataset_info.json").read_text())["llama-factory"]
    assert (entry["formatting"], entry["ranking"]) == ("sharegpt", True)
    assert entry["columns"] == {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    assert entry["tags"]["user_tag"] == "user"


def test_trl_reads_the_very_ids_with_one_bos_and_the_command_counts_no_row(
    chats: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset, load_dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from data.shards import NegativeSet

    out = tmp_path / "pairs.jsonl"
    assert main([str(chats), "--format", "trl-preference", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 rows as trl-preference\n"
    loaded = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, Dataset)
    args = DPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to=[], max_length=None)
    policy, frozen = (AutoModelForCausalLM.from_pretrained(model, dtype="float32") for _ in range(2))
    trainer = DPOTrainer(policy, frozen, args=args, train_dataset=loaded, processing_class=load_tokenizer(str(model)))
    found = [[row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] for row in cast(Any, trainer.train_dataset)]
    groups = NegativeSet(str(chats)).groups()
    assert found == [[g.prompt_ids, g.response_ids, g.negatives[0].ids] for g in groups]


def test_a_set_of_texts_and_chats_is_refused(chats: Path, model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    chat, text = group(tokenizer, "red", 0), group(tokenizer, "blue", 1)
    text.messages = None
    both = write(tmp_path / "both", model, [chat, text])
    with pytest.raises(UserError, match="holds texts and chats, whose rows have different columns"):
        export(str(both), make_config(ExportConfig, format="trl-sft", out=str(tmp_path / "rows.jsonl")))
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}"])
def test_a_set_whose_model_lost_its_template_is_exported_all_the_same(
    chats: Path, model: Path, tmp_path: Path, template: str | None
) -> None:
    """Whether a trainer makes the very ids of it cannot be said then."""
    moved = shutil.copytree(model, tmp_path / "model")
    (moved / "chat_template.jinja").unlink()
    if template:
        (moved / "chat_template.jinja").write_text(template)
    manifest = json.loads((shutil.copytree(chats, tmp_path / "set") / "manifest.json").read_text())
    manifest["job"]["model"]["name"] = str(moved)
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "pairs.jsonl"
    assert main([str(tmp_path / "set"), "--format", "trl-preference", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 3


def test_a_row_that_the_template_refuses_is_no_exact_one(model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    pairs = [(group(tokenizer, text, number), None) for number, text in enumerate(ASKED)]
    assert count_inexact(pairs, tokenizer) == 0
    refusing = "{% if messages[0].content == 'blue' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    assert count_inexact(pairs, tokenizer) == 1
