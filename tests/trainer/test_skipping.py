"""--skip_below: which candidates have no backward pass, how far off the gradient may be, that all else stays."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from data.command.errors import UserError
from tests.support.processes import TwoProcesses
from tests.support.training import cli, first_gradient, make_trainer, metrics
from trainer.arguments import parse
from trainer.groups.dataset import PackedGroups
from trainer.objectives.base import Term
from trainer.objectives.losses import cpo_loss, mle_loss
from trainer.run import main
from trainer.scoring.continuations import Continuations
from trainer.scoring.prepared_model import candidate_logps
from trainer.skipping import Remainder, gradient, lay_out_remainders, positions, remainders, weighty
from trainer.trainer import ContrastiveTrainer

BETA = 5.0
BATCH = 12
NAMES = ("candidates", "groups")


def leaf(h: list[list[float]]) -> torch.Tensor:
    """Log-probabilities whose h is this, where the reference's are zero."""
    return (torch.tensor(h) / BETA).requires_grad_()


def test_a_negative_is_kept_by_its_softmax_weight_and_the_truth_by_that_of_all_negatives() -> None:
    h = [[0.0, -1.0, -5.0, 0.0], [9.0, 3.0, 2.0, 1.0]]
    logps, mask = leaf(h), torch.tensor([[True, True, True, False], [True] * 4])
    weights = torch.tensor(h).masked_fill(~mask, -torch.inf).softmax(-1)
    loss = cpo_loss(logps, torch.zeros(2, 4), beta=BETA, mask=mask) * 2
    slopes = gradient(loss, logps)
    torch.testing.assert_close(slopes[:, 1:], BETA * weights[:, 1:])
    torch.testing.assert_close(slopes[:, 0], -BETA * (1 - weights[:, 0]))
    kept = weighty({"contrast": Term(loss)}, logps, mask, scale=BETA, below=0.01)
    assert kept.tolist() == [[True, True, False, False], [False] * 4]
    assert float(weights[0, 2]) < 0.01 < float(weights[0, 1])
    assert 1 - float(weights[1, 0]) < 0.01


def test_an_mle_term_keeps_every_ground_truth_and_no_negative() -> None:
    logps, mask = leaf([[9.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    terms = {
        "contrast": Term(cpo_loss(logps, torch.zeros(1, 3), beta=BETA, mask=mask)),
        "sft": Term(mle_loss(logps, 1), "truth tokens", 0.001),
    }
    assert weighty(terms, logps, mask, scale=BETA, below=0.1).tolist() == [[True, False, False]]


def test_terms_that_are_means_over_groups_are_weighed_together() -> None:
    """Slopes of 0.6 and 0.6 W beta are more than W beta, 0.6 and -0.3 less; weights of terms count."""
    logps, mask = leaf([[0.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    unit = 0.1 * BETA * logps
    terms = {"a": Term(0.6 * unit[:, :2].sum()), "b": Term(0.3 * unit[0, 0] - 0.15 * unit[0, 1], weight=2.0)}
    for name in terms:
        assert not weighty({name: terms[name]}, logps, mask, scale=BETA, below=0.1).any()
    assert weighty(terms, logps, mask, scale=BETA, below=0.1).tolist() == [[True, False, False]]


def test_a_weight_that_is_not_a_number_is_kept_and_one_that_nothing_depends_on_is_not() -> None:
    logps, mask = leaf([[math.nan, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    assert weighty({"a": Term(logps.sum() * logps[0, 0])}, logps, mask, scale=1, below=0.1).all()
    assert not weighty({"a": Term(torch.zeros(()))}, logps, mask, scale=1, below=0.0).any()


@pytest.mark.parametrize(("layout", "expected"), [("packed", [3 + 2, 6 + 5]), ("padded", [1 * 4, 2 * 7])])
def test_what_is_left_is_laid_out_with_its_coefficients(layout: str, expected: list[int]) -> None:
    parts = [
        Remainder(Continuations([1, 2, 3, 4, 5], [[6, 7], [8]]), torch.tensor([1.0, 2.0])),
        Remainder(Continuations([1, 2], [[3, 4]]), torch.tensor([3.0])),
    ]
    found = list(lay_out_remainders(parts, layout, 6))
    assert [coefficients.tolist() for _, coefficients in found] == [[[3.0]], [[1.0, 2.0]]]
    assert [positions([part], layout) for part in parts[::-1]] == [tokens.input_ids.numel() for tokens, _ in found]
    (tokens, together), *more = lay_out_remainders(parts, layout, 100)
    assert together.tolist() == [[3.0, 0.0], [1.0, 2.0]]
    assert not more
    assert positions(parts, layout) == tokens.input_ids.numel()


def moved(reference: Path, negative_set: Path, out: Path, **options: Any) -> ContrastiveTrainer:
    """A trainer whose policy is away from its reference, so that candidates weigh differently."""
    options = {"per_device_train_batch_size": BATCH, "max_steps": 1, "logging_steps": 1, "report_to": "none", **options}
    trainer = make_trainer(reference, negative_set, out, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # type: ignore[union-attr]
            if parameter.dim() > 1:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return trainer


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).double()


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("objective", "options", "layout", "below"),
    [
        ("cpo", {}, "packed", 0.1),
        ("cpo", {}, "padded", 0.1),
        ("cpo", {"sft_weight": 0.5}, "packed", 0.1),
        ("cpo-rank", {}, "packed", 0.5),
    ],
)
def test_the_gradient_is_off_by_less_than_what_was_left_out_and_loss_and_metrics_are_those_of_whole_groups(
    objective: str,
    options: dict[str, Any],
    layout: str,
    below: float,
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
) -> None:
    """|difference| <= W beta sum |grad log pi(y_k|x)| / groups over what was left out; 0 with W = 0."""

    def make(limit: float | None) -> ContrastiveTrainer:
        trainer = moved(
            reference, negative_set, tmp_path, objective=objective, objective_options=options, skip_below=limit
        )
        return laid_out(trainer, layout)

    full, exact, skipping = make(None), make(0.0), make(below)
    whole, same, less = (flat(first_gradient(trainer)) for trainer in (full, exact, skipping))
    assert float((same - whole).norm() / whole.norm()) < 1e-5
    norms = skipped_norms(make(None), below)
    assert 0 < len(norms) < 4 * BATCH
    off = float((less - whole).norm())
    assert 0 < off <= below * BETA * sum(norms) / BATCH
    logs, others = full.state.log_history[0], skipping.state.log_history[0]
    assert set(others) - set(logs) == {"skipped/candidates", "skipped/groups", "skipped/tokens"}
    for name in logs.keys() - {"grad_norm", "tokens_per_second", "epoch"}:
        assert float(others[name]) == pytest.approx(float(logs[name]), rel=1e-5, abs=1e-6), name
    assert float(others["skipped/candidates"]) == pytest.approx(len(norms) / (4 * BATCH))
    assert 0 < float(others["skipped/tokens"]) < 1
    assert full.state.total_flos / 3 < skipping.state.total_flos < full.state.total_flos


@pytest.mark.seconds
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("objective", "options"), [("cpo", {}), ("cpo", {"sft_weight": 0.5})])
def test_the_gradient_is_that_of_a_loss_to_which_what_is_left_out_is_constant(
    objective: str, options: dict[str, Any], layout: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """Three micro-batches, some of whose passes go backward whole, and the others' remainders are laid out anew."""

    def make(limit: float | None) -> ContrastiveTrainer:
        trainer = moved(
            reference, negative_set, tmp_path, objective=objective, objective_options=options, skip_below=limit,
            per_device_train_batch_size=BATCH // 3, gradient_accumulation_steps=3,
        )  # fmt: skip
        return laid_out(trainer, layout, row_tokens=100)

    constant, skipping, kinds = make(None), make(0.1), set()
    terms_of = constant._terms

    def terms(logps: torch.Tensor, packed: PackedGroups) -> Mapping[str, Term]:
        kept = going_back(constant, logps, packed, 0.1)
        kinds.add(bool(kept.equal(packed.tokens.mask)))
        return terms_of(torch.where(kept, logps, logps.detach()), packed)

    constant._terms = terms  # type: ignore[method-assign]
    expected, found = (flat(first_gradient(trainer)) for trainer in (constant, skipping))
    assert kinds == {True, False}
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def laid_out(trainer: ContrastiveTrainer, layout: str, **options: Any) -> ContrastiveTrainer:
    """The trainer with passes in another layout."""
    trainer.prepared = dataclasses.replace(trainer.prepared, layout=layout)
    collator: Any = trainer.data_collator
    trainer.data_collator = dataclasses.replace(collator, layout=layout, **options)
    return trainer


def going_back(trainer: ContrastiveTrainer, logps: torch.Tensor, packed: PackedGroups, below: float) -> torch.Tensor:
    """Which candidates of a pass have a backward pass, [G, K]: all, where more than two thirds of its positions do."""
    found = logps.detach().requires_grad_()
    mask, layout = packed.tokens.mask, trainer.prepared.layout
    with torch.enable_grad():
        terms = trainer.objective.terms(found, packed, trainer.options)
        kept = weighty(terms, found, mask, scale=BETA, below=below)
    whole = positions(remainders(packed, mask, torch.zeros(mask.shape)), layout)
    left = positions(remainders(packed, kept, torch.zeros(mask.shape)), layout)
    return mask if left > 2 / 3 * whole else kept


def skipped_norms(trainer: ContrastiveTrainer, below: float) -> list[float]:
    """The gradient norms of the log-probabilities of the first step's candidates that have no backward pass."""
    norms: list[float] = []
    model: Any = trainer.model
    for batch in trainer.get_train_dataloader():
        for packed in batch:
            logps = candidate_logps(trainer.prepared, packed.tokens)
            kept = going_back(trainer, logps, packed, below)
            for logp in logps[packed.tokens.mask & ~kept]:
                gradients = torch.autograd.grad(logp, list(model.parameters()), retain_graph=True)
                norms.append(math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients)))
        break
    return norms


@pytest.mark.seconds
def test_where_nothing_is_left_the_step_is_one_with_a_gradient_of_zero(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """AdamW's weight decay goes on, as it would with gradients that are all but zero."""
    trainer = moved(
        reference, negative_set, tmp_path, skip_below=0.999999, learning_rate=1e-2, weight_decay=0.5,
        lr_scheduler_type="constant",
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}  # type: ignore[union-attr]
    full = moved(reference, negative_set, tmp_path)
    full.train()
    trainer.train()
    assert trainer.state.total_flos == full.state.total_flos / 3  # no backward pass, and the small one is not counted
    logs = trainer.state.log_history[0]
    assert (float(logs["skipped/candidates"]), float(logs["skipped/groups"])) == (1.0, 1.0)
    assert float(logs["grad_norm"]) == 0.0
    assert float(logs["skipped/tokens"]) == 1.0
    for name, parameter in trainer.model.named_parameters():  # type: ignore[union-attr]
        decayed = 1.0 if parameter.dim() == 1 else 1 - 1e-2 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * decayed)


@pytest.mark.seconds
@pytest.mark.parametrize(("below", "share"), [(0.0, 0.0), (0.999999, 1.0)])
def test_what_does_not_count_is_in_no_share(
    below: float, share: float, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """The last step of the epoch has three groups, and two micro-batches of a group that does not count."""
    trainer = moved(
        reference, negative_set, tmp_path, skip_below=below, max_steps=-1, num_train_epochs=1, learning_rate=0.0,
        per_device_train_batch_size=1, gradient_accumulation_steps=5,
    )  # fmt: skip
    assert len(trainer.train_dataset) % 5 == 3  # type: ignore[arg-type]
    trainer.train()
    *steps, _ = trainer.state.log_history
    assert [step[f"skipped/{name}"] for step in steps for name in (*NAMES, "tokens")] == [share] * 3 * len(steps)


@pytest.mark.seconds
def test_at_the_start_where_all_weigh_the_same_each_pass_goes_backward_as_it_is(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": BATCH}
    full, skipping = (
        make_trainer(reference, negative_set, tmp_path, skip_below=below, **options) for below in (None, 0.05)
    )
    passes = []
    skipping.model.base_model.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    torch.testing.assert_close(flat(first_gradient(skipping)), flat(first_gradient(full)))
    batch = [skipping.train_dataset[i] for i in range(BATCH)]  # type: ignore[index]
    assert len(passes) <= 2 * len(skipping.data_collator(batch))  # the check of the start, and the step itself
    logs = skipping.state.log_history[0]
    assert [logs[f"skipped/{name}"] for name in ("candidates", "groups", "tokens")] == [0.0, 0.0, 0.0]


@pytest.mark.seconds
def test_two_processes_skip_like_one(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    """Six steps of SGD until little is left, so that a process may have nothing to do where the other has."""
    options = ["--max_steps", "6", "--optim", "sgd", "--lr_scheduler_type", "constant", "--save_strategy", "no"]
    options += ["--max_grad_norm", "0", "--learning_rate", "5e-2", "--skip_below", "0.2", "--objective", "cpo"]
    options += ["--logging_steps", "1", "--report_to", "none"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(cli(reference, negative_set, alone, *options)) == 0
    command = cli(reference, negative_set, together, *options, "--ddp_backend", "gloo")
    command[command.index("--per_device_train_batch_size") + 1] = "4"
    TwoProcesses.start(main, command).finish()
    start, expected, found = (load_file(d / "model.safetensors") for d in (reference, alone, together))
    moved = math.sqrt(sum((expected[n] - start[n]).pow(2).sum().item() for n in expected))
    off = math.sqrt(sum((expected[n] - found[n]).pow(2).sum().item() for n in expected))
    assert moved > 1e-3
    assert off / moved < 1e-3
    logs = [[line for line in metrics(d) if "loss" in line] for d in (alone, together)]
    shares = [[line[f"skipped/{name}"] for line in lines] for lines in logs for name in NAMES]
    assert shares[0] == pytest.approx(shares[2])
    assert shares[1] == pytest.approx(shares[3])
    assert 0 < shares[1][-1] <= shares[0][-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--skip_below", "1"), "--skip_below must be from 0 to less than 1, got 1.0"),
        (("--skip_below", "-0.1"), "--skip_below must be from 0 to less than 1"),
        (("--skip_below", "0.01", "--objective", "mle"), "--skip_below does not apply to objective 'mle'"),
        (("--skip_below", "0.01", "--objective", "pss"), "--skip_below does not apply to objective 'pss'"),
        (("--skip_below", "0.01", "--objective", "dpo"), "--skip_below does not apply to objective 'dpo'"),
    ],
)
def test_where_it_cannot_go_it_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(["--model", "m", "--output_dir", "o", "--shards", "s", *words])


@pytest.mark.seconds
def test_dropout_and_fsdp_are_refused(negative_set: Path, reference: Path, tmp_path: Path) -> None:
    dropping = LoraConfig(lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match=r"does not go with dropout.*--lora_dropout 0"):
        make_trainer(reference, negative_set, tmp_path, skip_below=0.1, peft_config=dropping)
    trainer = make_trainer(reference, negative_set, tmp_path, skip_below=0.1)
    trainer.is_fsdp_enabled = True
    with pytest.raises(UserError, match="does not go with FSDP"):
        trainer._refuse_to_skip()
