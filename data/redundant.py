"""Tensors that a model's files hold and the model does not compute with: two models that differ there are the same one.

Reads bytes itself, so that nothing here needs torch.
"""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data.architectures import FREQUENCIES, HEAD, MASKS

CHUNK = 1 << 24

# Of a tensor: its file, its entry in the header (dtype, shape, data_offsets), and where in the file the data starts.
Place = tuple[Path, dict[str, Any], int]


def redundant_tensors(places: Mapping[str, Place], config: Mapping[str, Any]) -> dict[str, str | None]:
    """Name -> the tensor that it repeats, or None for one that the model makes itself.

    A head repeats the embedding if their bytes are the same, unless the config says that they are not tied:
    transformers ties them only then.

    Args:
        places: of all tensors of a model, by name.
        config: the model's config.json; empty if it has none.
    """
    found: dict[str, str | None] = {}
    for name, (_, entry, _) in places.items():
        if FREQUENCIES.search(name) or (MASKS.search(name) and len(entry["shape"]) in (0, 4)):
            found[name] = None
    if config.get("tie_word_embeddings") is not False:
        for head in filter(HEAD.search, places):
            same = (name for name in places if not HEAD.search(name) and _are_equal(places[head], places[name]))
            if (embedding := next(same, None)) is not None:
                found[head] = embedding
    return found


def read_chunks(place: Place) -> Iterator[bytes]:
    """The bytes of a tensor in order, at most CHUNK at a time; fewer than its entry says if the file is cut short."""
    path, entry, start = place
    begin, end = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + begin)
        left = end - begin
        while left and (chunk := file.read(min(left, CHUNK))):
            yield chunk
            left -= len(chunk)


def _are_equal(one: Place, other: Place) -> bool:
    of_one, of_other = (tuple(map(str, (entry["dtype"], entry["shape"]))) for _, entry, _ in (one, other))
    return of_one == of_other and all(a == b for a, b in zip_longest(read_chunks(one), read_chunks(other)))
