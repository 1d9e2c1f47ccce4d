"""Parallel scheduled sampling: what stands in the inputs, from which predictions, and the loss that learns from it."""

from dataclasses import replace

import pytest
import torch

from tests.support.tiny import tiny_model
from trainer.groups.dataset import Collator, TrainingGroup
from trainer.objectives.losses import mle_loss, pss_loss
from trainer.objectives.scheduled import ScheduledSampling, with_inputs
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import pack, pad
from trainer.scoring.prepared_model import PreparedModel, candidate_logps, draw_tokens, prepare_model

GROUPS = [Continuations([1, 2, 3], [[11, 12, 13], [21, 22]]), Continuations([4], [[31, 32, 33, 34]])]


@pytest.mark.parametrize("arrange", [pack, pad])
def test_tokens_are_replaced_where_they_are_inputs_and_nowhere_else(arrange) -> None:
    batch = arrange(GROUPS)
    mixed = with_inputs(batch, batch.target_ids + 100)
    expected = batch.input_ids.clone()
    for token in (11, 12, 21, 31, 32, 33):  # the last of each continuation is no input, or followed by no prediction
        expected[expected == token] += 100
    assert torch.equal(mixed.input_ids, expected)
    assert torch.equal(mixed.target_ids, batch.target_ids)
    assert 11 in batch.input_ids


@pytest.mark.parametrize("arrange", [pack, pad])
def test_draws_follow_the_models_distribution_at_every_position(arrange) -> None:
    model = tiny_model("llama", scale=1.0)
    prepared = replace(prepare_model(model), layout="padded" if arrange is pad else "packed")
    batch = arrange(GROUPS)
    number = 4000
    uniforms = torch.rand(len(batch.target_ids), number, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(prepared, batch, uniforms, never=(5,))
    ids = torch.tensor([[1, 2, 3, 11, 12, 13]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, 2:5]
    logits[:, 5] = -torch.inf
    expected = logits.softmax(-1)
    for row in range(3):
        found = drawn[row].bincount(minlength=97) / number
        assert (found - expected[row]).abs().max() < 5 * (expected[row].max() / number) ** 0.5
        assert found[5] == 0


def test_the_first_pass_predicts_from_gold_and_the_next_from_the_mixture() -> None:
    """A model that always predicts its input plus one shows what it saw."""
    model = tiny_model("llama")
    seen: list[list[int]] = []

    def follow(*, input_ids: torch.Tensor, target_index: torch.Tensor, **_: object) -> torch.Tensor:
        inputs = input_ids.flatten()[target_index]
        seen.append(inputs.tolist())
        return (inputs + 1)[:, None]

    policy = PreparedModel(model, follow, "packed", block_masks=False)
    group = TrainingGroup("g", Continuations([1, 2, 3], [[11, 12, 13]]))
    (packed,) = Collator("packed", 100, copies=2)([group])
    once = ScheduledSampling(share=1.0, passes=1).mix(policy, packed, (0,))
    twice = ScheduledSampling(share=1.0, passes=2).mix(policy, packed, (0,))
    never = ScheduledSampling(share=0.0, passes=2).mix(policy, packed, (0,))
    # Gold inputs 3 11 12 predict 4 12 13; the first two of these are inputs.
    assert seen[0] == [3, 11, 12] * 2
    assert once.tokens.input_ids.tolist() == [[1, 2, 3, 4, 12, 3, 4, 12]]
    assert seen[2] == [3, 4, 12] * 2
    assert twice.tokens.input_ids.tolist() == [[1, 2, 3, 4, 5, 3, 4, 5]]
    assert torch.equal(never.tokens.input_ids, packed.tokens.input_ids)
    assert once.tokens.target_ids.tolist() == [11, 12, 13] * 2


def test_each_mixture_is_of_its_own_and_its_share_is_as_asked() -> None:
    model = tiny_model("llama", scale=0.1)  # nearly uniform: it hardly ever draws the gold token
    prepared = prepare_model(model)
    group = TrainingGroup("g", Continuations([1], [list(range(2, 90))]))
    (packed,) = Collator("packed", 10_000, copies=40)([group])
    mixed = ScheduledSampling(share=0.25, passes=1).mix(prepared, packed, (1,))
    changed = (mixed.tokens.input_ids != packed.tokens.input_ids)[0].view(40, 88)
    assert not changed[:, 0].any()  # the prefix's last token
    assert abs(changed[:, 1:].float().mean().item() - 0.25) < 0.03  # 3,480 draws: sd 0.007, less 1% that draw gold
    assert len({tuple(row.tolist()) for row in changed}) == 40


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_groups_mixtures_are_the_same_in_any_pass(layout: str) -> None:
    model = tiny_model("gpt2")
    prepared = replace(prepare_model(model), layout=layout)
    groups = [TrainingGroup(f"g{i}", Continuations(g.prefix, g.continuations[:1])) for i, g in enumerate(GROUPS)]
    sampling = ScheduledSampling(share=0.5, passes=2)

    def mixtures(row_tokens: int, order: list[TrainingGroup]) -> dict[str, list[list[int]]]:
        found: dict[str, list[list[int]]] = {}
        for packed in Collator(layout, row_tokens, copies=3)(order):
            tokens = sampling.mix(prepared, packed, (7, 3)).tokens
            inputs = tokens.input_ids.flatten()[tokens.target_index]
            for slot in range(tokens.mask.numel()):
                found.setdefault(packed.ids[slot // 3], []).append(inputs[tokens.slot == slot].tolist())
        return found

    together, apart = mixtures(1000, groups), mixtures(1, groups[::-1])
    assert together == apart
    assert any(mixture != together["g0"][0] for mixture in together["g0"])


def test_the_loss_is_a_mean_over_mixtures_and_tokens_and_mles_without_any() -> None:
    logps = torch.tensor([[-2.0, -4.0], [-6.0, -12.0]])
    assert pss_loss(logps, 6).item() == pytest.approx((3 + 9) / 6)
    model = tiny_model("gpt2")
    prepared = prepare_model(model)
    groups = [TrainingGroup(str(i), Continuations(g.prefix, g.continuations[:1])) for i, g in enumerate(GROUPS)]
    (plain,) = Collator("packed", 100)(groups)
    (copied,) = Collator("packed", 100, copies=3)(groups)
    assert plain.num_truth_tokens == copied.num_truth_tokens == 7
    unmixed = pss_loss(candidate_logps(prepared, copied.tokens), 7)
    assert unmixed.item() == pytest.approx(mle_loss(candidate_logps(prepared, plain.tokens), 7).item(), abs=1e-5)
