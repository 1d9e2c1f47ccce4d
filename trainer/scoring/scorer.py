"""The scorer: summed log-probabilities of continuations under a frozen model, for stage 1 and the evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.whole_weights import load_whole
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import lay_out
from trainer.scoring.prepared_model import (
    PreparedModel,
    candidate_logps_and_ranks,
    draw_tokens,
    prepare_model,
)


@dataclass
class Scorer:
    """Scores groups with a frozen model: the stage 1 scorer and the evaluation.

    Attributes:
        prepared: the model, in eval mode, on its device.
        row_tokens: token budget of a forward pass.
    """

    prepared: PreparedModel
    row_tokens: int = 1024

    @property
    def model(self) -> Any:
        """The transformers model that scores, unwrapped."""
        return self.prepared.model

    @property
    def layout(self) -> str:
        """How groups are laid out: "packed" or "padded"."""
        return self.prepared.layout

    @classmethod
    def load(
        cls, model: str, *, dtype: str = "float32", device: str | None = None, trust_remote_code: bool = False
    ) -> "Scorer":
        """Load a model directory for scoring, on the GPU if there is one."""
        from transformers import AutoModelForCausalLM

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Any: the stubs of `to` take no device name.
        options = {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
        loaded: Any = load_whole(AutoModelForCausalLM, model, model, **options)
        loaded.to(device).eval()
        # On a CPU attention over a longer row's dense mask costs more than a larger matrix product gains.
        return cls(prepare_model(loaded), row_tokens=8192 if device.startswith("cuda") else 1024)

    def score(self, groups: Sequence[Continuations]) -> list[list[float]]:
        """Summed log-probabilities in nats, one list per group with one number per continuation."""
        return self.score_and_rank(groups, [False] * len(groups))[0]

    @torch.no_grad()
    def score_and_rank(
        self, groups: Sequence[Continuations], ranked: Sequence[bool]
    ) -> tuple[list[list[float]], list[int | None]]:
        """`score`, and in the same passes how far down the first continuation of some groups reaches.

        Args:
            ranked: per group, whether it is asked for.

        Returns:
            What `score` returns, and per group the largest rank among the tokens of its first continuation: how many
            tokens the model finds strictly likelier there, 0 where each is the likeliest; None where not asked for.
        """
        scores: list[list[float]] = [[] for _ in groups]
        ranks: list[int | None] = [None] * len(groups)
        # Passes of similar length waste little in the padded layout and cost nothing in the packed one.
        order = sorted(range(len(groups)), key=lambda i: groups[i].longest)
        for indices, batch in lay_out([groups[i] for i in order], self.layout, self.row_tokens):
            chosen = [order[index] for index in indices]
            asked = torch.zeros_like(batch.mask)
            asked[:, 0] = torch.tensor([bool(ranked[i]) for i in chosen])
            logps, worst = candidate_logps_and_ranks(self.prepared, batch, asked)
            for i, row, rank in zip(chosen, logps.tolist(), worst[:, 0].tolist(), strict=True):
                scores[i] = row[: len(groups[i].continuations)]
                ranks[i] = rank if ranked[i] else None
        return scores, ranks

    @torch.no_grad()
    def draw(
        self,
        groups: Sequence[Continuations],
        uniforms: Sequence[np.ndarray],
        *,
        never: Sequence[int] = (),
        on_pass: Callable[[int], None] = lambda done: None,
    ) -> list[np.ndarray]:
        """Tokens drawn at every position of a continuation, each given what really stands before it: one pass.

        Args:
            groups: prefixes with their continuations.
            uniforms: per group [positions, draws] in [0, 1); where in the distribution's cumulative sum a draw falls.
                Positions are those of its continuations, one behind the other.
            never: token ids that are not drawn.
            on_pass: called after each forward pass with the number of groups that are done.

        Returns:
            Per group [positions, draws], token ids, int64.
        """
        drawn: list[np.ndarray] = [np.empty(0)] * len(groups)
        done = 0
        order = sorted(range(len(groups)), key=lambda i: groups[i].longest)
        for indices, batch in lay_out([groups[i] for i in order], self.layout, self.row_tokens):
            chosen = [order[index] for index in indices]
            where = torch.from_numpy(np.concatenate([uniforms[i] for i in chosen])).to(self.model.device)
            tokens = draw_tokens(self.prepared, batch.to(self.model.device), where, never=never)
            lengths = [len(uniforms[i]) for i in chosen]
            for i, part in zip(chosen, tokens.split(lengths), strict=True):
                drawn[i] = part.cpu().numpy()
            done += len(chosen)
            on_pass(done)
        return drawn
