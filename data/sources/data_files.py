"""The local files that a data source is: one, those of a glob or of a folder, packed or not, or a saved data set."""

import glob
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.command.errors import UserError, first_line
from data.sources.json_lines import starts_with_an_object
from data.storage import sha256

log = logging.getLogger(__name__)

# Ending -> what `datasets` calls the format.
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
SHOWN = 10  # names of files that are not read
LINES = "lines"  # JSON Lines, whatever their ending
# Ending -> what pyarrow calls it; Parquet packs its pages itself.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (*FORMATS, *(f"{ending}{packed}" for ending in FORMATS if ending != ".parquet" for packed in COMPRESSIONS))
SAVED = ("dataset_dict.json", "state.json")  # one of them is in each folder of `datasets.save_to_disk`
EXPECTED = f"{', '.join(FORMATS)}, or packed in {' or '.join(COMPRESSIONS)}"


@dataclass(frozen=True)
class DataFiles:
    """Local files, unpacked and not empty.

    Attributes:
        format: LINES or a value of FORMATS; of all of them.
        train, test: the files; those of test where their names tell both apart.
        saved: folder of a data set that `datasets.save_to_disk` saved, instead of files.
    """

    format: str = ""
    train: Sequence[Path] = ()
    test: Sequence[Path] = ()
    saved: str = ""


def looks_local(dataset: str) -> bool:
    """Whether a name is that of files here, which need not be there."""
    local = dataset.startswith((".", "~")) or os.path.isabs(dataset) or dataset.endswith(ENDINGS)
    return local or glob.has_magic(dataset)


def local_files(dataset: str, split: str | None = None) -> DataFiles | None:
    """The files of a data source; None of a name that can only be one of the hub's.

    Args:
        split: of a folder, those whose names say this word; of a saved data set it is not looked at here.

    Raises:
        UserError: files are missing, empty, of no format or of several, or cannot be unpacked.
    """
    path = Path(os.path.expanduser(dataset))
    if not looks_local(dataset) and not path.exists():
        return None
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return DataFiles(saved=str(path))
        return _of_folder(path, dataset, split)
    if split is not None:
        raise UserError(f"data set '{dataset}' is no folder, so it has no split '{split}'. Leave ':{split}' out.")
    if glob.has_magic(dataset) and not path.exists():
        names = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not names:
            raise UserError(f"no file matches the data set '{dataset}'. Correct the pattern.")
        return _as_one([Path(name) for name in names], dataset)
    return _files([path], [], dataset)


def _of_folder(folder: Path, dataset: str, split: str | None) -> DataFiles:
    """The files of a folder that have an ending of ours; where names say train and test, the two splits.

    Args:
        split: the one that is read, of files whose names say it as a whole: `train` is not in `train_sft.jsonl`.
    """
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    files = [path for path in names if path.name.endswith(ENDINGS)]
    if not files:
        raise UserError(
            f"data set '{dataset}' is a directory without a file of {EXPECTED}. Give files, a glob such as "
            f"'{dataset.rstrip('/')}/**/*.jsonl', or a hub id."
        )
    if split is not None:
        named = [path for path in files if re.search(rf"(?<!\w){re.escape(split)}(?!\w)", path.name)]
        if not named:
            raise UserError(
                f"data set '{dataset}:{split}': no file has '{split}' in its name; there are "
                f"{', '.join(path.name for path in files[:SHOWN])}{' ...' if len(files) > SHOWN else ''}."
            )
        return _files(named, [], dataset)
    train = [path for path in files if _says(path, "train")]
    test = [p for p in files if _says(p, "test")] or [p for p in files if _says(p, "validation")]
    chosen = [*train, *test] if train and test else files
    left = [*(path.name for path in names if path not in chosen), *_folders_with_data(folder)]
    if left:
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        log.info("data set '%s': files that are not read: %s%s", dataset, ", ".join(left[:SHOWN]), more)
    return _files(train, test, dataset) if train and test else _as_one(files, dataset)


def _folders_with_data(folder: Path) -> list[str]:
    """Subfolders with files of ours in them, each with their number."""
    found = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        number = sum(len([name for name in names if name.endswith(ENDINGS)]) for _, _, names in os.walk(inner))
        if number:
            found.append(f"{inner.name}/ ({number})")
    return found


def _as_one(files: Sequence[Path], dataset: str) -> DataFiles:
    """Files that are read together; the log says so where a name says train, and another's does not."""
    train = [path for path in files if _says(path, "train")]
    if train and (others := [path for path in files if path not in train]):
        names = train[0].name, others[0].name
        log.info("data set '%s': %s and %s are read as one", dataset, *names)
    return _files(files, [], dataset)


def _says(path: Path, word: str) -> bool:
    return word in re.split("[^a-z]+", path.name.lower())


def _files(train: Sequence[Path], test: Sequence[Path], dataset: str) -> DataFiles:
    """The files that hold anything, unpacked. Raises UserError if there is none, or for different formats."""
    alone = len(train) + len(test) == 1
    parts: list[list[Path]] = []
    formats: dict[str, str] = {}
    for files in (train, test):
        checked = [(path, _checked(path, dataset if alone else str(path))) for path in files]
        parts.append([unpacked for _, unpacked in checked if unpacked is not None])
        formats |= {_format(unpacked): path.name for path, unpacked in checked if unpacked is not None}
    if not parts[0] or (test and not parts[1]):
        raise UserError(f"data set '{dataset}' has no rows.")
    if len(formats) > 1:
        names = ", ".join(formats.values())
        raise UserError(f"data set '{dataset}' has files of different formats: {names}. Give those of one, by a glob.")
    return DataFiles(next(iter(formats)), parts[0], parts[1])


def _format(path: Path) -> str:
    lines = path.suffix == ".jsonl" or (path.suffix == ".json" and starts_with_an_object(path))
    return LINES if lines else FORMATS[path.suffix]


def _checked(path: Path, spoken: str) -> Path | None:
    """A file, unpacked; None if nothing is in it. Raises UserError if it is none that can be read."""
    if not path.is_file():
        raise UserError(f"data file '{spoken}' does not exist. Give an existing file or a hub id.")
    if not path.name.endswith(ENDINGS):
        raise UserError(f"cannot read '{spoken}': expected a file ending in {EXPECTED}.")
    if path.stat().st_size == 0:
        return None
    if path.suffix in COMPRESSIONS:
        path = _unpacked(path, spoken)
        return path if path.stat().st_size else None
    if path.suffix == ".parquet":
        from data import parquet  # takes what a command that only prints its help has no time for

        try:
            return path if parquet.require_readable(path.open("rb")) else None
        except parquet.Unreadable as error:
            raise UserError(f"cannot read '{spoken}' as parquet: {first_line(error)}") from error
    return path


def _unpacked(path: Path, spoken: str) -> Path:
    """A copy of a packed file as it was, in the cache of `datasets`; made once, and again when the file changes."""
    import pyarrow as pa
    from datasets import config

    found = path.resolve()
    stat = found.stat()
    key = sha256(f"{found}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())[:32]
    name = path.name.removesuffix(path.suffix)
    target = Path(config.HF_DATASETS_CACHE) / "unpacked" / key / name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out:
            temporary = out.name
            with pa.OSFile(str(found)) as packed, pa.CompressedInputStream(packed, COMPRESSIONS[path.suffix]) as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
        os.replace(temporary, target)
    except (OSError, pa.ArrowException) as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot unpack '{spoken}': {first_line(error)}") from error
    return target
