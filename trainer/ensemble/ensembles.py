"""`python -m trainer.ensemble`: weight-space ensembles of the MLE and the CPO model, one directory per alpha."""

import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.claim import claimed
from data.command.errors import UserError, exit_on_user_error, first_line
from data.command.log import start_logging
from data.command.options import enter_root, load_config, option, require_local, resolve_path
from data.command.terminal import say
from data.command.usage import answered
from data.models import (
    TOKENIZER_FILES,
    WEIGHTS,
    WEIGHTS_INDEX,
    model_directory,
    read_object,
    refuse_adapter,
    tokenizer_hash,
    weight_files,
    weights_hash,
)
from data.storage import TEMPORARY_PREFIX, sha256
from trainer.ensemble.adapters import CONFIG as ADAPTER_CONFIG
from trainer.ensemble.adapters import check_same_adapters, is_adapter, read_adapter, write_adapter
from trainer.ensemble.interpolate import SAME_ORIGIN, check_same_tensors, read_models, write_interpolations
from trainer.model_card import ensemble_card, write_card

log = logging.getLogger(__name__)

PAPER_ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
RECORD = "ensemble.json"
# What makes a directory a whole model beside its weights; what training left there stays behind.
COPIED_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
COPIED_FOLDER = "additional_chat_templates"
NOT_COPIED = (WEIGHTS_INDEX, ADAPTER_CONFIG, RECORD, "trainer_job.json", "trainer_state.json", "all_results.json")

# Writes the weights of an ensemble into a directory, for every alpha.
WriteWeights = Callable[[Mapping[float, Path]], None]

COMMAND = "python -m trainer.ensemble"
USAGE = f"{COMMAND} --mle A --cpo B --output_dir O [--alpha X ...]"
ABOUT = """
Weight-space ensembles (WiSE-FT) of a model trained with MLE and one trained with CPO from the same reference: alpha * A
+ (1 - alpha) * B, tensor by tensor. Each O/alpha-X is a model directory of its own. Two whole models, from safetensors
and without loading them, or two LoRA adapters of the same base (the ensemble is then again an adapter).
"""


@dataclass
class EnsembleConfig:
    """What to mix, in which shares, and where to."""

    mle: str = option(None, "model or adapter of weight alpha, a directory or hub id", metavar="A", required=True)
    cpo: str = option(
        None,
        "model or adapter of weight 1 - alpha; config, tokenizer, dtype and file layout are its",
        metavar="B",
        required=True,
    )
    output_dir: str = option(
        None, "directory for alpha-X, one for each X; those it already holds are skipped", metavar="O", required=True
    )
    alpha: list[float] = option(list(PAPER_ALPHAS), "numbers from 0 (B itself) to 1 (A itself)", metavar="X")

    def check(self) -> None:
        """Raise UserError for an output that is no local directory, or what `alphas` refuses."""
        require_local(self.output_dir, "--output_dir")
        self.alphas()

    def alphas(self) -> list[float]:
        """The weights of the MLE model. Raises UserError."""
        if not self.alpha:
            raise UserError("--alpha is empty. Give numbers from 0 to 1, or leave it out.")
        return parse_alphas(self.alpha)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, EnsembleConfig, usage=USAGE, about=ABOUT):
        return
    config = load_config(EnsembleConfig, argv, command=COMMAND)
    config.check()
    enter_root()
    start_logging()
    for path in write_ensembles(config.mle, config.cpo, config.alphas(), Path(resolve_path(config.output_dir))):
        say(f"ensemble: {path}")


def parse_alphas(texts: Sequence[str | float]) -> list[float]:
    """Numbers from 0 to 1, none twice. Raises UserError."""
    alphas: list[float] = []
    for text in texts:
        try:
            alpha = float(text)
        except ValueError:
            raise UserError(f"--alpha '{text}' is not a number. Give numbers from 0 to 1, e.g. 0 0.5.") from None
        if not 0 <= alpha <= 1:
            raise UserError(f"--alpha {text} is outside [0, 1]: it is the weight of the MLE model.")
        if alpha in alphas:
            raise UserError(f"--alpha {text} is given twice. Give each value once.")
        alphas.append(abs(alpha))  # -0.0
    return alphas


def directory_name(alpha: float) -> str:
    """The folder of one interpolation, named by its weight: alpha-0.1, alpha-0, alpha-1."""
    return f"alpha-{repr(alpha).removesuffix('.0')}"


def write_ensembles(
    mle: str, cpo: str, alphas: Sequence[float], output: Path, hash_weights: Callable[[str], str] = weights_hash
) -> list[Path]:
    """Write `output`/alpha-X for every alpha, each whole or not at all; those that are there are left as they are.

    Args:
        mle, cpo: model or adapter, a directory or hub id.
        hash_weights: SHA-256 of a model's weights.

    Returns:
        The directories, in the order of `alphas`.

    Raises:
        UserError: models that cannot be interpolated, or an output directory that holds something else or in which
            another run is at work. Nothing is written then.
    """
    finals = {alpha: output / directory_name(alpha) for alpha in alphas}
    try:
        _check_output(output, finals.values())
        directories = model_directory(mle), model_directory(cpo)
        written = all((final / RECORD).is_file() for final in finals.values())
        # Opening the models takes seconds, and nothing needs them where all is written.
        write_weights = None if written else _open_pair(mle, cpo, directories)
        records = _records(mle, cpo, directories, alphas, hash_weights)
        with claimed(str(output)) if write_weights else nullcontext():
            todo = [alpha for alpha in alphas if not _is_there(finals[alpha], records[alpha])]
            if write_weights is None:
                return list(finals.values())
            adapter = is_adapter(directories[1])
            with _whole_or_not(output, [finals[alpha] for alpha in todo]) as temporary:
                outputs = dict(zip(todo, temporary, strict=True))
                write_weights(outputs)
                for alpha, directory in outputs.items():
                    _copy_rest(directories[1], directory)
                    hashes = tuple(records[alpha][side]["weights_sha256"] for side in ("mle", "cpo"))
                    name = finals[alpha].name
                    card = ensemble_card(name, (mle, cpo), directories, hashes, alpha=alpha, adapter=adapter)
                    write_card(directory, card)
                    (directory / RECORD).write_text(json.dumps(records[alpha], indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write ensembles to '{output}': {first_line(error)}. Check paths, permissions and free space."
        ) from error
    return list(finals.values())


def _check_output(output: Path, finals: Iterable[Path]) -> None:
    """Refuse, before reading any weights, a directory with something in it that is no ensemble."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output directory '{output}' is a file. Choose another --output_dir.")
    others = [p.name for p in output.iterdir() if not p.name.startswith((".", "alpha-"))] if output.is_dir() else []
    if others:
        raise UserError(
            f"output directory '{output}' already holds other files ({min(others)} ...). Choose an empty or new "
            "--output_dir."
        )
    for final in finals:
        if final.exists() and not (final.is_dir() and ((final / RECORD).is_file() or not any(final.iterdir()))):
            raise UserError(f"'{final}' already exists and is no ensemble. Choose another --output_dir.")


def _open_pair(mle: str, cpo: str, directories: tuple[Path, Path]) -> WriteWeights:
    """Check that two models or two adapters can be combined; returns what writes the weights of their ensembles."""
    names = f"--mle '{mle}'", f"--cpo '{cpo}'"
    kinds = [is_adapter(directory) for directory in directories]
    if kinds[0] != kinds[1]:
        adapter, model = names if kinds[0] else names[::-1]
        raise UserError(
            f"{adapter} is a LoRA adapter and {model} a whole model. Merge the adapter into its base first "
            "(merge_and_unload) and give the merged model."
        )
    write_weights = (_open_adapters if kinds[0] else _open_models)(names, directories)
    hashes = [_tokenizer_hash(name, directory) for name, directory in zip(names, directories, strict=True)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise UserError(f"the tokenizers of {names[0]} and {names[1]} differ. {SAME_ORIGIN}")
    return write_weights


def _open_adapters(names: tuple[str, str], directories: tuple[Path, Path]) -> WriteWeights:
    for name, directory in zip(names, directories, strict=True):
        if (directory / WEIGHTS).is_file() or (directory / WEIGHTS_INDEX).is_file():
            refuse_adapter(name, directory)
    mle, cpo = (read_adapter(directory, name) for directory, name in zip(directories, names, strict=True))
    check_same_adapters(mle, cpo)

    def write_weights(outputs: Mapping[float, Path]) -> None:
        for alpha, directory in outputs.items():
            write_adapter(mle, cpo, alpha, directory)

    return write_weights


def _open_models(names: tuple[str, str], directories: tuple[Path, Path]) -> WriteWeights:
    kinds = [_check_model(name, directory) for name, directory in zip(names, directories, strict=True)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{names[0]} is a {kinds[0]} model and {names[1]} a {kinds[1]} model. {SAME_ORIGIN}")
    mle, cpo = read_models(*directories)
    check_same_tensors(mle, cpo, *names)

    def write_weights(outputs: Mapping[float, Path]) -> None:
        for source in weight_files(directories[1]) if outputs else ():
            log.info("%s for alpha %s", source.name, ", ".join(f"{alpha:g}" for alpha in outputs))
            write_interpolations(mle, source, {alpha: path / source.name for alpha, path in outputs.items()})

    return write_weights


def _check_model(name: str, directory: Path) -> str | None:
    """Check what a model directory must hold beside tensors that fit; returns its model_type."""
    if not (directory / "config.json").is_file():
        raise UserError(f"{name} has no config.json. Give the directory of a transformers model or of an adapter.")
    config = read_object(directory / "config.json")
    if config.get("quantization_config"):
        raise UserError(f"{name} is quantised; its numbers cannot be interpolated. Give the model before that.")
    files = weight_files(directory)
    if not files:
        raise UserError(f"{name} has no *.safetensors weights (*.bin is not read). Save it with save_pretrained().")
    if any(path.parent != directory for path in files):
        raise UserError(f"the {WEIGHTS_INDEX} of {name} names files outside its directory. Copy the model again.")
    if not _has_tokenizer(directory):
        raise UserError(f"{name} has no tokenizer. Save one beside it: tokenizer.save_pretrained().")
    return config.get("model_type")


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def _tokenizer_hash(name: str, directory: Path) -> str | None:
    """Hash of the tokenizer; None for an adapter without a tokenizer of its own, which has the base's."""
    from transformers import AutoTokenizer

    if not _has_tokenizer(directory):
        return None
    try:
        return tokenizer_hash(AutoTokenizer.from_pretrained(directory))
    except Exception as error:  # whatever tokenizers, sentencepiece or json raise on damaged files
        raise UserError(f"the tokenizer of {name} cannot be read: {first_line(error)}") from error


def _records(
    mle: str,
    cpo: str,
    directories: tuple[Path, Path],
    alphas: Sequence[float],
    hash_weights: Callable[[str], str],
) -> dict[float, dict[str, Any]]:
    """The ensemble.json of every alpha: by hashes, so that a moved model is the same one."""
    sides = {}
    for side, model, directory in zip(("mle", "cpo"), (mle, cpo), directories, strict=True):
        config = directory / (ADAPTER_CONFIG if is_adapter(directory) else "config.json")
        sides[side] = {"weights_sha256": hash_weights(model), "config_sha256": sha256(config.read_bytes())}
    return {alpha: {"alpha": alpha, **sides} for alpha in alphas}


def _is_there(final: Path, record: dict[str, Any]) -> bool:
    """Whether a directory holds this very ensemble. Raises UserError if it holds another."""
    if not (final / RECORD).is_file():
        return False
    if read_object(final / RECORD) != record:
        raise UserError(f"'{final}' already holds an ensemble of other models. Choose another --output_dir.")
    log.info("%s is already there", final)
    return True


def _copy_rest(source: Path, directory: Path) -> None:
    """Copy config, generation config and tokenizer; the index of sharded weights holds for the copy too."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in COPIED_SUFFIXES and path.name not in NOT_COPIED:
            shutil.copyfile(path, directory / path.name)
    if not (source / WEIGHTS).exists() and (source / WEIGHTS_INDEX).exists():
        shutil.copyfile(source / WEIGHTS_INDEX, directory / WEIGHTS_INDEX)
    if (source / COPIED_FOLDER).is_dir():
        shutil.copytree(source / COPIED_FOLDER, directory / COPIED_FOLDER)


@contextmanager
def _whole_or_not(output: Path, finals: Sequence[Path]) -> Iterator[list[Path]]:
    """New directories under temporary names, which get their own when the block ends and vanish if it fails."""
    temporary = [output / f"{TEMPORARY_PREFIX}{final.name}-{uuid.uuid4().hex[:8]}" for final in finals]
    try:
        for path, final in zip(temporary, finals, strict=True):
            for left_behind in output.glob(f"{TEMPORARY_PREFIX}{final.name}-*"):  # by a run that was killed
                shutil.rmtree(left_behind)
            path.mkdir(parents=True)
        yield temporary
        for path, final in zip(temporary, finals, strict=True):
            _flush(path)
            path.rename(final)
    finally:
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Have the disk hold every file, so that a rename never outlives its content."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
