"""A plain computation of log-probabilities, one continuation at a time, to compare ours with, on the same groups."""

from typing import Any

import torch

from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import pack
from trainer.scoring.prepared_model import candidate_logps, prepare_model

GENERATOR = torch.Generator().manual_seed(3)


def draw(length: int) -> list[int]:
    return torch.randint(97, (length,), generator=GENERATOR).tolist()


# Differing K, a prefix of one token, continuations of one token.
GROUPS = [Continuations(draw(p), [draw(n) for n in ns]) for p, ns in ((6, (4, 1, 7)), (1, (3, 5)), (9, (2,)))]


def plain_logps(model: Any, groups: list[Continuations] = GROUPS) -> torch.Tensor:
    """[G, K], 0 where there is no continuation: the model's own forward on one unpadded sequence at a time."""
    rows = []
    for group in groups:
        row = []
        for continuation in group.continuations:
            logits = model(input_ids=torch.tensor([[*group.prefix, *continuation]])).logits
            logps = logits[0, len(group.prefix) - 1 : -1].float().log_softmax(-1)
            row.append(logps.gather(-1, torch.tensor(continuation)[:, None]).sum())
        rows.append(torch.stack([*row, *[torch.zeros(())] * (3 - len(row))]))
    return torch.stack(rows)


def packed_logps(model: Any) -> torch.Tensor:
    """[G, K]: what our packed layout gives for GROUPS; the model gets prepared if it is not yet."""
    return candidate_logps(prepare_model(model), pack(GROUPS))
