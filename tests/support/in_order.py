"""Groups in memory, as a data set for the trainer's sampler."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from trainer.groups.dataset import TrainingGroup


class InOrder(Dataset):
    """Groups as one block, which every epoch takes again."""

    strategies = ("an",)

    def __init__(self, groups: Sequence[TrainingGroup]):
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> TrainingGroup:
        return self.groups[number % len(self)]

    @property
    def blocks(self) -> list[np.ndarray]:
        return [np.arange(len(self))]

    def tokens(self, block: np.ndarray) -> np.ndarray:
        return np.array([float(self.groups[i].tokens.packed_length) for i in block])

    def keep(self, groups: int) -> None:
        """Nothing to do: the groups are in memory."""
