"""A world small enough to enumerate: all responses, their exact probabilities, a policy that can hold any of them.

Tokens are an end and three letters. A response is up to three letters with the end behind them, or cut off after
three: 40 sequences, of which none begins another, so that a model's next-token distributions over 13 histories of a
prefix and a distribution over the 40 are the same thing. A distribution here is an array [prefixes, sequences] of
log-probabilities in nats. What an objective converges to is a function of such arrays.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import pack, pad
from trainer.scoring.prepared_model import PreparedModel, candidate_logps, prepare_model

END, LETTERS, LONGEST = 0, (1, 2, 3), 3
VOCABULARY = 1 + len(LETTERS)
PREFIXES = [np.array(ids) for ids in ((1, 2), (2, 3), (3, 1))]
SEQUENCES = [
    np.array([*letters, END][:LONGEST])
    for length in range(LONGEST + 1)
    for letters in itertools.product(LETTERS, repeat=length)
]
HISTORIES = [letters for length in range(LONGEST) for letters in itertools.product(LETTERS, repeat=length)]
# Rows of a policy's table: a prime above the code of every history of the world, which so has a row of its own.
ROWS = 631


def code(tokens: Sequence[int]) -> int:
    """The number of a history, by which its row is found."""
    return sum((int(token) + 1) * (VOCABULARY + 1) ** place for place, token in enumerate(tokens)) % ROWS


# --- distributions ---


def random_table(seed: int, scale: float, around: np.ndarray | float = 0.0) -> np.ndarray:
    """Next-token logits of every history, normal around others, [ROWS, VOCABULARY]."""
    return around + scale * np.random.default_rng(seed).standard_normal((ROWS, VOCABULARY))


def distribution_of(table: np.ndarray) -> np.ndarray:
    """The distribution over sequences that next-token logits make."""
    logps = table - np.logaddexp.reduce(table, axis=1, keepdims=True)
    return np.array(
        [
            [sum(logps[code([*prefix, *sequence[:i]]), t] for i, t in enumerate(sequence)) for sequence in SEQUENCES]
            for prefix in PREFIXES
        ]
    )


def table_of(distribution: np.ndarray) -> np.ndarray:
    """The next-token logits that make a distribution over sequences; rows of no history of the world are normal."""
    table = random_table(0, 1.0)
    for (x, prefix), history in itertools.product(enumerate(PREFIXES), HISTORIES):
        for token in range(VOCABULARY):
            begins = [tuple(s[: len(history) + 1]) == (*history, token) for s in SEQUENCES]
            table[code([*prefix, *history]), token] = np.logaddexp.reduce(distribution[x, begins])
    return table


def normalised(logps: np.ndarray) -> np.ndarray:
    """Unnormalised log-probabilities made a distribution over the sequences of each prefix."""
    return logps - np.logaddexp.reduce(logps, axis=1, keepdims=True)


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the summed difference of two distributions, a mean over prefixes."""
    return float(np.abs(np.exp(first) - np.exp(second)).sum(axis=1).mean() / 2)


def mass(policy: np.ndarray, where: np.ndarray) -> float:
    """Share of a policy's responses that lie where a mask [prefixes, sequences] is True, a mean over prefixes."""
    return float((np.exp(policy) * where).sum(axis=1).mean())


def top_k_of(distribution: np.ndarray, k: int) -> np.ndarray:
    """What sampling among the k likeliest tokens at each position draws from; -inf out of its reach."""
    table = table_of(distribution)
    kept = np.argsort(np.argsort(-table, axis=1), axis=1) < k
    return distribution_of(np.where(kept, table, -np.inf))


def marginal(truth: np.ndarray) -> np.ndarray:
    """What BN borrows from where prefixes are equally frequent: any row's ground truth."""
    whole = np.logaddexp.reduce(truth, axis=0) - np.log(len(truth))
    return np.broadcast_to(whole, truth.shape)


# --- what an objective converges to ---


def optimum(reference: np.ndarray, truth: np.ndarray, negatives: np.ndarray, beta: float) -> np.ndarray:
    """reference (truth / negatives)^(1/beta): of CPO, and DPO, where each negative is an independent draw."""
    return normalised(reference + (truth - negatives) / beta)


def tilted(reference: np.ndarray, truth: np.ndarray, exponent: float) -> np.ndarray:
    """reference^(1 - exponent) truth^exponent: `optimum` with negatives of the reference, exponent 1/beta."""
    return normalised((1 - exponent) * reference + exponent * truth)


def optimum_of_other_texts(reference: np.ndarray, truth: np.ndarray, negatives: np.ndarray, beta: float) -> np.ndarray:
    """reference (truth / (negatives (1 - negatives)))^(1/beta): K = 2 where the draw is repeated while it is the truth.

    Stage 1 does so. A pair (y, z) then comes as often as P(y) A(z) / (1 - A(y)), so that the odds of y against z in it
    are P(y) A(z) (1 - A(z)) : P(z) A(y) (1 - A(y)).
    """
    return normalised(reference + (truth - negatives - np.log1p(-np.exp(negatives))) / beta)


def exponent_weights(reference: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What `exponent_of` multiplies each log-probability's change with, [prefixes, sequences]."""
    weights = np.exp(reference)
    way = truth - reference
    way = way - (weights * way).sum(axis=1, keepdims=True)
    return weights * way / (weights * way**2).sum()


def exponent_of(policy: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> float:
    """How far of the way from the reference to the truth a policy is in log space: the least-squares slope.

    Sequences weigh as the reference says; each prefix has a constant of its own, its normalisation.
    """
    return float((exponent_weights(reference, truth) * (policy - reference)).sum())


def covariances(
    prefixes: np.ndarray, candidates: np.ndarray, odds: np.ndarray, policy: np.ndarray, beta: float
) -> np.ndarray:
    """Covariance of the log-probabilities at the minimum of some groups' loss, [prefixes, sequences, sequences].

    The loss is the log-likelihood of which candidate is the ground truth, so its Fisher information is the groups' own:
    the sum of diag(q) - q q', with q the truth's distribution over the candidates. Its pseudo-inverse is the covariance
    of h, which beta times log-probabilities are but for a constant.

    Args:
        prefixes, candidates: [N] and [N, K], the groups.
        odds: log (truth / negatives), [prefixes, sequences].
        policy: where the minimiser is expected.
    """
    found = []
    for x in range(len(PREFIXES)):
        chosen = candidates[prefixes == x]
        q = np.exp(odds[x, chosen])
        q /= q.sum(axis=1, keepdims=True)
        information = np.zeros((len(SEQUENCES), len(SEQUENCES)))
        for i, j in itertools.product(range(chosen.shape[1]), repeat=2):
            np.add.at(information, (chosen[:, i], chosen[:, j]), q[:, i] * ((i == j) - q[:, j]))
        centred = np.eye(len(SEQUENCES)) - np.exp(policy[x])  # probabilities go on summing to one
        found.append(centred @ np.linalg.pinv(information) @ centred.T / beta**2)
    return np.array(found)


def covariances_of_mle(groups: int, truth: np.ndarray) -> np.ndarray:
    """Covariance of log-probabilities that are relative frequencies of so many ground truths, as MLE's are."""
    return np.array([np.diag(np.exp(-row)) - 1 for row in truth]) * len(truth) / groups


def standard_errors(covariance: np.ndarray) -> np.ndarray:
    """Standard error of each log-probability, [prefixes, sequences]."""
    return np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def exponent_error(covariance: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> float:
    """Standard error of `exponent_of` a policy whose log-probabilities have this covariance."""
    weights = exponent_weights(reference, truth)
    return float(np.sqrt(np.einsum("xi,xij,xj->", weights, covariance, weights)))


def expected_distance(policy: np.ndarray, errors: np.ndarray) -> float:
    """The total variation between a policy and an estimate with these normal errors of log-probabilities, expected."""
    return float((np.exp(policy) * errors * np.sqrt(2 / np.pi)).sum(axis=1).mean() / 2)


# --- the policy ---


class TabularConfig(PreTrainedConfig):
    """The configuration of `TabularLM`."""

    model_type = "tabular"

    def __init__(self, **kwargs: Any):
        self.vocab_size = self.hidden_size = VOCABULARY
        self.num_hidden_layers = self.num_attention_heads = 1
        super().__init__(**{"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, **kwargs})


class Histories(nn.Module):
    """A backbone whose hidden state is the table's row for all tokens that it attends to, with their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(ROWS, VOCABULARY)

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **_: Any
    ) -> BaseModelOutput:
        length = input_ids.shape[1]
        attended = torch.ones(length, length, dtype=torch.bool).tril()[None]
        if attention_mask is not None and attention_mask.dim() == 4:
            attended = attention_mask[:, 0] == 0  # it is added to scores
        elif attention_mask is not None:
            attended = attended & attention_mask[:, None].bool()
        if position_ids is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        parts = (input_ids + 1).double() * float(VOCABULARY + 1) ** position_ids  # exact below 2^53
        codes = (attended.double() @ parts[..., None])[..., 0].long() % ROWS
        return BaseModelOutput(last_hidden_state=self.embed_tokens(codes))


class TabularLM(PreTrainedModel, GenerationMixin):
    """A causal language model with logits of its own for each history: it can hold any distribution.

    Eager attention in transformers' words: a mask is added to scores, so that the trainer gives it the packed layout's.
    """

    config_class = TabularConfig
    base_model_prefix = "model"

    def __init__(self, config: TabularConfig):
        super().__init__(config)
        self.model = Histories()
        self.lm_head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
        self.post_init()

    @classmethod
    def of(cls, distribution: np.ndarray, dtype: torch.dtype = torch.float32) -> "TabularLM":
        """The model of a distribution over sequences."""
        model: Any = cls(TabularConfig())  # Any: the stubs of `to` take no dtype alone
        model.to(dtype)
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.from_numpy(table_of(distribution)))
            model.lm_head.weight.copy_(torch.eye(VOCABULARY))
        model.lm_head.weight.requires_grad_(False)
        return model

    @property
    def table(self) -> torch.Tensor:
        """The logits, [ROWS, VOCABULARY], which are all its weights."""
        return self.model.embed_tokens.weight

    def _init_weights(self, module: nn.Module) -> None:
        """`of` sets them."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids, **kwargs)[0]))


def scored(prepared: PreparedModel) -> torch.Tensor:
    """A policy's distribution as the trainer's own scoring gives it, with gradients, [prefixes, sequences]."""
    groups = [Continuations(prefix, SEQUENCES) for prefix in PREFIXES]
    return candidate_logps(prepared, pack(groups) if prepared.layout == "packed" else pad(groups))


@torch.no_grad()
def distribution_by(model: TabularLM) -> np.ndarray:
    """A model's distribution, by the trainer's own scoring."""
    return scored(prepare_model(model)).double().numpy()
