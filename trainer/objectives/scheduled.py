"""Parallel scheduled sampling (Duckworth et al., arXiv 1906.04331): inputs hold some of the model's own tokens.

From the gold continuation, a token is drawn at every position at once from the model's teacher-forced predictions; each
takes the gold token's place in the input with probability p. Repeated for some passes, each predicting from the mixture
of the one before. The targets stay gold.
"""

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from trainer.groups.dataset import PackedGroups
from trainer.scoring.packing import TokenBatch
from trainer.scoring.prepared_model import PreparedModel, draw_tokens


@dataclass(frozen=True)
class ScheduledSampling:
    """How mixtures of gold and sampled tokens are made by parallel scheduled sampling.

    Attributes:
        share: probability that a sampled token takes a gold token's place.
        passes: sampling passes.
    """

    share: float
    passes: int

    def mix(self, policy: PreparedModel, packed: PackedGroups, seed: tuple[int, ...]) -> PackedGroups:
        """The groups with mixed inputs; every continuation gets a mixture of its own.

        Args:
            packed: ground truths, each as many times as mixtures are wanted.
            seed: with a group's id it decides the group's draws, so that they do not depend on how groups are laid out
                or divided over processes.
        """
        tokens, mixed = packed.tokens, packed.tokens
        numbers = (tokens.slot // tokens.mask.shape[1]).bincount(minlength=packed.num_groups).tolist()
        draws = [
            np.random.default_rng((*seed, zlib.crc32(group.encode()))).random((self.passes, 2, number))
            for group, number in zip(packed.ids, numbers, strict=True)
        ]
        for uniforms, coins in torch.from_numpy(np.concatenate(draws, axis=-1)).to(tokens.target_ids.device):
            drawn = draw_tokens(policy, mixed, uniforms[:, None])[:, 0]
            mixed = with_inputs(tokens, torch.where(coins < self.share, drawn, tokens.target_ids))
        return dataclasses.replace(packed, tokens=mixed)


def with_inputs(tokens: TokenBatch, ids: torch.Tensor) -> TokenBatch:
    """The batch with `ids` [N] where the predicted tokens stand in the input; targets and prefixes stay.

    A predicted token is the input of the next position of its continuation; the last one is no input.
    """
    inner = tokens.slot[:-1] == tokens.slot[1:]
    inputs = tokens.input_ids.flatten().clone()
    inputs[tokens.target_index[:-1][inner] + 1] = ids[:-1][inner]
    return dataclasses.replace(tokens, input_ids=inputs.view_as(tokens.input_ids))
