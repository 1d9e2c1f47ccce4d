"""`python -m data.blank`: a blank model directory, for training from scratch where no hub is at hand."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError, exit_on_user_error
from data.command.log import start_logging
from data.command.options import enter_root, load_config, option, require_local, resolve_path
from data.command.terminal import say
from data.command.usage import answered
from data.command.values import require_positive
from data.sources.source_options import DATASET_HELP, SourceOptions
from data.storage import TEMPORARY_PREFIX, Folder

log = logging.getLogger(__name__)

COMMAND = "python -m data.blank"
ABOUT = """
A blank model directory: a tokenizer trained on a data source and a config.json, without weights. `python -m trainer.run
--objective mle --from_scratch true --model DIR` trains it. This is how the quickstart gets a model without a hub.
"""

EOS = "<|endoftext|>"
SMALLEST, LARGEST = 256, 1 << 24  # of byte-level BPE: one entry a byte


@dataclass
class BlankConfig(SourceOptions):
    """Options of `python -m data.blank`; the defaults are the quickstart's model, about 0.6 million parameters."""

    dataset: str = option("facts", f"its training half trains the tokenizer: {DATASET_HELP}", metavar="PATH")
    out: str = option("runs/quickstart/blank", "directory to write", metavar="DIR")
    vocab_size: int = option(768, "entries of the byte-level BPE tokenizer, at most")
    hidden_size: int = option(128, "width of the Llama")
    num_layers: int = option(2, "layers of the Llama")
    num_heads: int = option(4, "attention heads (a head size of at least 32 for vLLM on a CPU)")
    max_length: int = option(128, "context in tokens")


def write_blank_model(config: BlankConfig) -> None:
    """Train the tokenizer and write it with its settings and the model's config.json into `config.out`, all or none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    config.check_source("train")
    require_positive(config, "hidden_size", "num_layers", "num_heads", "max_length")
    if config.hidden_size % config.num_heads:
        raise UserError(f"hidden_size {config.hidden_size} is not divisible by num_heads {config.num_heads}.")
    if not SMALLEST < config.vocab_size <= LARGEST:
        raise UserError(
            f"vocab_size must be above {SMALLEST}, one entry a byte and the end, and at most {LARGEST}; got "
            f"{config.vocab_size}."
        )
    require_local(config.out, "--out")
    out = Path(resolve_path(config.out))
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(TEMPORARY_PREFIX) for p in out.iterdir())):
        raise UserError(f"output directory '{config.out}' already holds files. Choose an empty or new --out.")
    problems: Counter[str] = Counter()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _texts(config, problems),
        trainers.BpeTrainer(
            vocab_size=config.vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if problems:
        why = ", ".join(f"{number} {reason}" for reason, number in problems.most_common())
        log.warning("rows of '%s' that are not used: %d (%s)", config.dataset, problems.total(), why)
    config_file = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": config.hidden_size,
        "intermediate_size": 4 * config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": config.max_length,
    }
    is_new, folder = not out.exists(), Folder(str(out))
    folder.remove_temporary()
    try:
        folder.write_together(
            {
                "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
                "tokenizer_config.json": _json(tokenizer_config),
                "config.json": _json(config_file),
            }
        )
    except UserError:
        if is_new:
            folder.remove_if_empty()
        raise


def _texts(config: BlankConfig, problems: Counter[str]) -> Iterator[str]:
    """What the tokenizer is trained on; counts the rows that are not usable by their reason."""
    for example in config.open_source(config.dataset, "train"):
        if example.problem is None:
            yield f"{_text(example.prompt)}{_text(example.response)}"
        else:
            problems[example.problem[0]] += 1


def _text(part: Any) -> str:
    """A prompt or a response as text: itself, or what its messages say."""
    return part if isinstance(part, str) else "\n".join(message["content"] for message in part)


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, BlankConfig, usage=f"{COMMAND} [--out DIR] [--key value ...]", about=ABOUT):
        return
    config = load_config(BlankConfig, argv, command=COMMAND)
    start_logging()
    enter_root()
    write_blank_model(config)
    say(f"blank model (tokenizer and config.json): {config.out}")


if __name__ == "__main__":
    sys.exit(main())
