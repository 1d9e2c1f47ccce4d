"""Texts of different lengths in one batch: each must get what it gets alone.

Shorter texts are padded on the right, whatever side a tokenizer names: left of a text, padding moves the positions of a
model that counts them from the start of the row. Whether a model minds padding is found out by trying.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

# Two texts that are alike in nothing but their first word.
PROBES = ("a", "a b c d e f g h i j k l m n o p")
# Relative to the size of the values, what two shapes of the same computation may differ by.
ROUNDING = 1e-3


def give_pad_token(tokenizer: Any) -> None:
    """Let a tokenizer of transformers without a pad token pad: with which token does not matter where it is masked."""
    if getattr(tokenizer, "pad_token", "") is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)


def batches(lengths: Sequence[int], size: int, *, padded: bool = True) -> Iterator[list[int]]:
    """Numbers of rows, the shortest first, at most `size` at a time; if not padded, of one length each."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) == size or not (padded or lengths[number] == lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[Any, Any]:
    """Ids and attention mask, [rows, longest] each, int64 tensors."""
    import torch

    tensors = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def minds_padding(compute: Callable[[list[str]], Any]) -> bool:
    """Whether a model gives a text other values beside a longer one than alone.

    Args:
        compute: texts in one batch -> their values, [texts] or [texts, D].
    """
    together = np.asarray(compute(list(PROBES)), dtype=np.float64)
    alone = np.concatenate([np.asarray(compute([text]), dtype=np.float64) for text in PROBES])
    if not np.isfinite(alone).all():  # told where the values are used
        return False
    return not np.abs(together - alone).max() <= ROUNDING * max(np.abs(alone).max(), 1e-6)
