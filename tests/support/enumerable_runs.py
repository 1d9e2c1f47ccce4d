"""Training in the world of `tests.support.enumerable`: exactly, over all groups, and by the trainer on drawn ones."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainerCallback

from data.schema import Candidate, Group
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from negatives_gen.strategies.base import Tools
from negatives_gen.strategies.bn import STRATEGY as BN
from tests.support.enumerable import (
    LONGEST,
    PREFIXES,
    SEQUENCES,
    TabularLM,
    covariances,
    distribution_by,
    distribution_of,
    random_table,
    scored,
    standard_errors,
)
from tests.support.written import job_of
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import ContrastiveGroups, TrainingGroup
from trainer.groups.store import GroupStore
from trainer.objectives import OBJECTIVES
from trainer.objectives.losses import cpo_loss
from trainer.objectives.pairs import make_dpo_trainer, preference_pairs
from trainer.scoring.continuations import Continuations
from trainer.scoring.prepared_model import prepare_model
from trainer.trainer import ContrastiveTrainer

REFERENCE = distribution_of(random_table(1, 0.5))
TRUTH = distribution_of(random_table(2, 0.8, around=random_table(1, 0.5)))

WORDS = ".abc"  # of the end and the letters: a text for each sequence
BATCH = 128  # groups of a step
RATE = 0.12  # of Adam at the start, times 1/beta: so far a step moves h; it falls to 0 over the only epoch
BN_BATCH = 16
ROW_TOKENS = 512  # of a pass
SCALE = 1e6  # of the exact loss: L-BFGS of torch learns no curvature from changes below 1e-10


# --- exactly ---


def all_groups(number: int, responses: int = len(SEQUENCES)) -> np.ndarray:
    """Every group of so many candidates, [responses^K, K]; candidate 0 is the ground truth."""
    return np.array(list(itertools.product(range(responses), repeat=number)))


def independent(groups: np.ndarray, truth: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """How often each group comes where all candidates are drawn independently, [prefixes, groups]."""
    return np.exp(truth[:, groups[:, 0]] + negatives[:, groups[:, 1:]].sum(axis=-1))


def of_other_texts(groups: np.ndarray, truth: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """How often each group comes where a draw is repeated while the group has its text, [prefixes, groups]."""
    weights = np.zeros((len(truth), len(groups)))
    distinct = (np.diff(np.sort(groups, axis=1), axis=1) > 0).all(axis=1)
    first, *others = groups[distinct].T
    found, left = np.exp(truth[:, first]), 1 - np.exp(negatives[:, first])
    for chosen in others:
        found = found * np.exp(negatives[:, chosen]) / left
        left = left - np.exp(negatives[:, chosen])
    weights[:, distinct] = found
    return weights


def expected_loss(
    policy: torch.Tensor, reference: np.ndarray, groups: np.ndarray, weights: np.ndarray, beta: float
) -> torch.Tensor:
    """CPO's loss of a policy [prefixes, responses] over groups that come as often as their weights say; summed."""
    per_group = torch.vmap(lambda new, old: cpo_loss(new[None], old[None], beta=beta))
    candidates, fixed = torch.from_numpy(groups), torch.from_numpy(reference)
    losses = [per_group(new[candidates], old[candidates]) for new, old in zip(policy, fixed, strict=True)]
    return (torch.from_numpy(weights) * torch.stack(losses)).sum()


def lbfgs(
    parameter: torch.Tensor, loss: Callable[[], torch.Tensor], most: int, watch: Callable[[], None] = lambda: None
) -> None:
    """Minimise a loss, by at most so many iterations of L-BFGS; watch is called after every tenth."""
    settings: dict[str, Any] = {"line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimiser = torch.optim.LBFGS([parameter], max_iter=10, history_size=40, **settings)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        scaled = SCALE * loss()
        scaled.backward()
        return scaled

    for _ in range(most // 10):
        optimiser.step(closure)  # type: ignore[arg-type]
        watch()


def minimised(
    reference: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray,
    beta: float,
    *,
    layout: str = "packed",
    most: int = 200,
    watch: Callable[[np.ndarray], None] = lambda _: None,
) -> np.ndarray:
    """The minimiser of CPO's expected loss, by L-BFGS in float64 over the policy's table, from the reference.

    Args:
        weights: how often each group comes, [prefixes, groups].
        layout: in which the sequences are scored.
        most: iterations.
        watch: is shown the policy after every tenth of them.
    """
    model = TabularLM.of(reference, torch.float64)
    prepared = replace(prepare_model(model), layout=layout)

    def loss() -> torch.Tensor:
        return expected_loss(scored(prepared), reference, groups, weights, beta)

    lbfgs(model.table, loss, most, lambda: watch(scored(prepared).detach().numpy()))
    return scored(prepared).detach().numpy()


def minimised_by_responses(reference: np.ndarray, groups: np.ndarray, weights: np.ndarray, beta: float) -> np.ndarray:
    """The policy of least expected loss that has a logit for each response, [prefixes, responses]."""
    logits = torch.from_numpy(reference).clone().requires_grad_()
    lbfgs(logits, lambda: expected_loss(logits.log_softmax(-1), reference, groups, weights, beta), 200)
    return logits.detach().log_softmax(-1).numpy()


# --- by the trainer, on groups that are drawn and seen once ---


@dataclass(frozen=True)
class Drawn:
    """Groups that were drawn: prefixes [N] and candidates [N, K], the ground truth first, as places in the lists."""

    prefixes: np.ndarray
    candidates: np.ndarray

    def part(self, index: int, parts: int) -> "Drawn":
        """One of several parts of equal size."""
        return Drawn(self.prefixes[index::parts], self.candidates[index::parts])


def draw(seed: int, number: int, truth: np.ndarray, negatives: np.ndarray, candidates: int) -> Drawn:
    """Groups with independent draws; prefixes take turns."""
    random = np.random.default_rng(seed)
    prefixes = random.permutation(np.arange(number) % len(PREFIXES))
    found = np.empty((number, candidates), dtype=np.int64)
    for x in range(len(PREFIXES)):
        rows = prefixes == x
        for place in range(candidates):
            p = np.exp(truth[x] if place == 0 else negatives[x])
            found[rows, place] = random.choice(len(SEQUENCES), rows.sum(), p=p / p.sum())
    return Drawn(prefixes, found)


class DrawnGroups(Dataset):
    """Drawn groups as the trainer's data set, in memory: what a negative set gives, but for its files."""

    strategies = ("an",)

    def __init__(self, drawn: Drawn, reference: np.ndarray):
        self.drawn = drawn
        self.reference = reference

    def __len__(self) -> int:
        return len(self.drawn.prefixes)

    def __getitem__(self, number: int) -> TrainingGroup:
        if number < 0:
            return replace(self[~number], counts=False)
        x, candidates = self.drawn.prefixes[number], self.drawn.candidates[number]
        negatives = len(candidates) - 1
        return TrainingGroup(
            str(number),
            Continuations(PREFIXES[x], [SEQUENCES[s] for s in candidates]),
            self.reference[x, candidates],  # type: ignore[arg-type]
            [1.0] + [0.0] * negatives,
            ["an"] * negatives,
        )

    @property
    def blocks(self) -> list[np.ndarray]:
        return [np.arange(len(self))]

    def tokens(self, block: np.ndarray) -> np.ndarray:
        return np.array([len(s) for s in SEQUENCES])[self.drawn.candidates[block]].sum(axis=1)

    def keep(self, groups: int) -> None:
        """Keep so many groups at hand: all are in memory."""


def text_of(sequence: np.ndarray) -> str:
    """A text that no other sequence has."""
    return " ".join(WORDS[token] for token in sequence)


def write_set(path: Path, drawn: Drawn, reference: np.ndarray) -> NegativeSet:
    """A negative set by the set's writer: the drawn groups' own negatives as AN, and one by strategy BN itself."""
    groups = []
    for number, (x, candidates) in enumerate(zip(drawn.prefixes, drawn.candidates, strict=True)):
        first, *others = candidates
        groups.append(
            Group(
                *(f"{number:032x}", text_of(PREFIXES[x]), text_of(SEQUENCES[first])),
                *(PREFIXES[x].tolist(), SEQUENCES[first].tolist(), "train", float(reference[x, first])),
                negatives=[
                    Candidate("an", SEQUENCES[s].tolist(), text_of(SEQUENCES[s]), reference_logp=float(reference[x, s]))
                    for s in others
                ],
                query="which?",
            )
        )
    tools = Tools(seed=0, context=len(PREFIXES[0]) + LONGEST, tokenizer=None)
    assert not BN.add(groups, groups, {"count": 1, "bn_batch_size": BN_BATCH}, tools)
    places = {text_of(sequence): s for s, sequence in enumerate(SEQUENCES)}
    for x, group in zip(drawn.prefixes, groups, strict=True):
        for candidate in group.negatives:
            candidate.similarity = {"embedding": 0.0}
            candidate.reference_logp = float(reference[x, places[candidate.text]])
    writer = NegativeSetWriter(str(path), job_of(an=drawn.candidates.shape[1] - 1, bn=1), ["embedding"])
    writer.begin()
    writer.write_shard(0, groups, [], seconds={}, layout="packed")
    writer.finish(1)
    return NegativeSet(str(path))


def contrastive(negatives: NegativeSet, use: str | None) -> ContrastiveGroups:
    """The groups of a set; without a choice of negatives, its ground truths alone."""
    if use is None:
        return ContrastiveGroups(GroupStore([negatives], "train"))
    return ContrastiveGroups.of([negatives], "train", use)


def borrowed(negatives: NegativeSet) -> np.ndarray:
    """The negative by BN of each group of a set that `write_set` wrote, [N], as a place in SEQUENCES."""
    places = {tuple(sequence): s for s, sequence in enumerate(SEQUENCES)}
    return np.array(
        [places[tuple(c.ids)] for group in negatives.groups() for c in group.negatives if c.strategy == "bn"]
    )


class Watch(TrainerCallback):
    """Shows the policy's distribution after each step."""

    def __init__(self, show: Callable[[int, np.ndarray], None]):
        self.show = show

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show(state.global_step, distribution_by(kwargs["model"]))


def trained(
    start: np.ndarray,
    groups: DrawnGroups | ContrastiveGroups,
    beta: float,
    objective: str = "cpo",
    *,
    batch: int = BATCH,
    watch: Callable[[int, np.ndarray], None] | None = None,
) -> TabularLM:
    """A policy after one epoch, in which each group is seen once, by the trainer of the objective.

    Args:
        start: the policy before.
        batch: groups of a step.
        watch: is shown the number of steps and the policy after each.
    """
    model: Any = TabularLM.of(start)
    with tempfile.TemporaryDirectory() as output:
        arguments = PaperTrainingArguments(
            output_dir=output, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_strategy="no", num_train_epochs=1, per_device_train_batch_size=batch,
            learning_rate=RATE / beta, lr_scheduler_type="linear", weight_decay=0.0, max_grad_norm=0.0,
            adam_beta2=0.99,
        )  # fmt: skip
        trainer: Trainer
        if objective == "dpo":
            pairs = preference_pairs(groups, objective)  # type: ignore[arg-type]
            trainer = make_dpo_trainer(pairs, model, None, tokenizer(), arguments, beta)
        else:
            chosen = OBJECTIVES.load(objective)
            trainer = ContrastiveTrainer(
                model=model,
                args=arguments,
                train_dataset=groups,
                objective=chosen,
                options=chosen.Options(**({"beta": beta} if chosen.needs == "groups" else {})),
                row_tokens=ROW_TOKENS,
            )
        trainer.remove_callback(PrinterCallback)
        if watch:
            trainer.add_callback(Watch(watch))
        trainer.train()
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the world's words, of which TRL wants one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({word: token for token, word in enumerate(WORDS)}, unk_token="."))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".", pad_token=".")


def learned(model: TabularLM) -> np.ndarray:
    """A trained model's distribution, in float64 arithmetic."""
    return distribution_by(model.double())


PARTS, PART = 6, 3072  # runs whose spread is measured, and groups of each


def spread(number: int) -> tuple[float, float, np.ndarray, Drawn]:
    """Variance of log-probabilities over runs at beta 1 on groups of their own, weighted as the truth says.

    Args:
        number: K.

    Returns:
        As measured, as the groups' Fisher information says, the mixture of the policies, and the groups of all runs.
    """
    whole = draw(number, PARTS * PART, TRUTH, REFERENCE, number)
    parts = [whole.part(i, PARTS) for i in range(PARTS)]
    runs = np.array([learned(trained(REFERENCE, DrawnGroups(part, REFERENCE), 1.0, batch=32)) for part in parts])
    covariance = covariances(whole.prefixes, whole.candidates, TRUTH - REFERENCE, TRUTH, 1.0)
    variances = runs.var(axis=0, ddof=1), PARTS * standard_errors(covariance) ** 2
    found, expected = ((np.exp(TRUTH) * v).sum(axis=1).mean() for v in variances)
    return float(found), float(expected), np.log(np.exp(runs).mean(axis=0)), whole
