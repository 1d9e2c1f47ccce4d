"""Which layouts and masks a model takes: what `data.architectures` knows, then what a trial on small groups shows."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask

from data.architectures import obstacle_to_packing
from data.command.errors import first_line
from trainer.scoring.attention import NAME as PACKED_ROWS
from trainer.scoring.attention import mark
from trainer.scoring.continuations import Continuations
from trainer.scoring.flex import packed_block_mask
from trainer.scoring.head import reduction_dtype
from trainer.scoring.packing import TokenBatch, pack, packed_attention, pad

log = logging.getLogger(__name__)

# The probe's groups: tokens of the prefix and of each continuation. Few: on a CPU a large model takes seconds for them.
PROBE_LENGTHS = ((4, (4, 1, 3)), (1, (3, 2)), (6, (3,)))
# Differences are relative to the spread of the values. The same computation on the same shapes differs by noise:
SAME = 1e-5
# Packed and padded differ by rounding, layer upon layer:
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def attention_implementation(model: Any) -> str | None:
    """The name, such as "sdpa"; None where transformers does not say (it keeps this in a private attribute)."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None)


def set_attention(model: Any) -> None:
    """Let attention go over packed rows segment by segment where that gives the same."""
    if attention_implementation(model) in ("sdpa", "flex_attention"):
        model.set_attn_implementation(PACKED_ROWS)


def disable_dropout(model: Any) -> None:
    """Set every dropout probability of a model to 0, also those that attention modules keep as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def chosen_layout(model: Any) -> str:
    """The layout of a model: "packed", or "padded" if it cannot take the packed one; the log says why."""
    with _evaluating(model):
        obstacle = _known_obstacle(model) or _probed_obstacle(model)
    if obstacle:
        log.warning("Using the padded layout, slower than the packed one: %s.", obstacle)
    return "padded" if obstacle else "packed"


def takes_block_masks(model: Any) -> bool:
    """Whether a model that takes the packed layout gives the same with FlexAttention's blocks; never on a CPU."""
    if not torch.cuda.is_available() or attention_implementation(model) != PACKED_ROWS:
        return False
    obstacle = block_obstacle(model)
    if obstacle:
        log.warning("Using dense attention masks, slower than FlexAttention: %s.", obstacle)
    return obstacle is None


def model_inputs(model: Any, batch: TokenBatch, *, blocks: bool = False) -> dict[str, Any]:
    """A batch as arguments of a model.

    Args:
        model: not wrapped.
        batch: on the model's device.
        blocks: mask a packed row by FlexAttention's blocks, not densely.
    """
    mask = _attention_mask(model, batch, blocks)
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}


def _attention_mask(model: Any, batch: TokenBatch, blocks: bool) -> torch.Tensor | BlockMask | None:
    if batch.group_ids is None or batch.segment_ids is None:
        return batch.attention_mask
    if blocks:
        mask: Any = packed_block_mask(batch.group_ids, batch.segment_ids)
        mask.ndim = 4  # GPT-2 asks any mask for it, and leaves those of four dimensions alone
        return mask
    allowed = packed_attention(batch.group_ids, batch.segment_ids)
    attention = attention_implementation(model)
    if attention == PACKED_ROWS and allowed.device.type == "cpu" and batch.pieces is not None:
        return mark(allowed, batch.pieces)  # elsewhere a kernel per segment costs more than it saves
    if attention in ("sdpa", PACKED_ROWS):
        return allowed
    # Eager attention adds its mask to the scores.
    scores = torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device)
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _known_obstacle(model: Any) -> str | None:
    """Why a model cannot take the packed layout, as far as config, head and attention say; None if they do not."""
    config = model.config.get_text_config()
    if obstacle := obstacle_to_packing(config):
        return obstacle
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return f"the head of {config.model_type} is not a plain linear map"
    attention = attention_implementation(model)
    if attention not in ("sdpa", PACKED_ROWS, "eager"):
        return f"attention implementation '{attention}' takes no 4-D mask"
    return None


@torch.no_grad()
def _probed_obstacle(model: Any) -> str | None:
    """Try the packed layout on small groups: the head, the mask, the positions, and the whole against padded.

    The first three compare a computation with the same one on equal shapes. That is all but exact, so that neither
    low precision nor an untrained model, whose log-probabilities hardly depend on anything, can hide an error.
    """
    config = model.config.get_text_config()
    kind = config.model_type
    batches = [batch.to(model.device) for batch in _probe_batches(config.vocab_size)]
    padded, packed, _ = batches
    # Outside of `try`: where the model's own forward fails there is nothing to fall back to.
    logits = model(**model_inputs(model, padded), use_cache=False).logits
    try:
        states = [model.base_model(**model_inputs(model, batch), use_cache=False)[0] for batch in batches]
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError) as error:
        return f"{kind} does not run with a 4-D mask ({str(error).splitlines()[0]})"
    ours = model.get_output_embeddings()(states[0])
    ours, logits = (x.flatten(0, 1)[padded.target_index] for x in (ours, logits))
    if not _distance(ours, logits).max() <= SAME:  # "not below" rather than "above": nan counts as different
        return f"the logits of {kind} are not its head applied to its hidden states"

    own, here, there = (s.flatten(0, 1)[b.target_index] for s, b in zip(states, batches, strict=True))
    moved = _distance(there, here)
    first, last = packed.slot == 0, packed.slot >= packed.mask[:-1].numel()
    if not moved[~first & ~last].max() <= SAME:
        return f"in {kind}, packed continuations see one another"
    if moved[first][1:].min() <= SAME:  # its first prediction is made before anything changed
        return f"in {kind}, a packed continuation does not see its own tokens"
    if moved[last].max() <= SAME:
        return f"{kind} pays no attention to position_ids"
    off = _distance(here, own).mean().item()
    if not off <= ROUNDING.get(own.dtype, ROUNDING[torch.bfloat16]):
        return f"{kind} gives other hidden states in the packed layout (off by {off:.2g} of their spread)"
    return None


@torch.no_grad()
def block_obstacle(model: Any) -> str | None:
    """Why FlexAttention's block masks would be wrong for this model, or None: tried on the probe's packed groups."""
    kind = model.config.get_text_config().model_type
    with _evaluating(model):
        try:
            batch = _probe_batches(model.config.get_text_config().vocab_size)[1].to(model.device)
            dense, states = (
                model.base_model(**model_inputs(model, batch, blocks=blocks), use_cache=False)[0]
                for blocks in (False, True)
            )
        except Exception as error:  # a model's own code meets a mask that is no tensor, or a compiler fails
            return f"{kind} does not run with block masks ({first_line(error)})"
    off = _distance(states.flatten(0, 1), dense.flatten(0, 1)).mean().item()
    if not off <= ROUNDING.get(states.dtype, ROUNDING[torch.bfloat16]):
        return f"{kind} gives other hidden states with block masks (off by {off:.2g} of their spread)"
    return None


def _probe_batches(vocab_size: int) -> tuple[TokenBatch, TokenBatch, TokenBatch]:
    """The probe's groups padded, packed, and packed with changes to the very first continuation and the last group.

    Every other token of the continuation changes; those in between notice only by attending. The group's positions
    are doubled, as RoPE would not notice a shift.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(vocab_size, (length,), generator=generator).tolist()

    groups = [Continuations(draw(prefix), [draw(n) for n in lengths]) for prefix, lengths in PROBE_LENGTHS]
    prefix, (first, *others) = groups[0].prefix, groups[0].continuations
    first = [(token + 1) % vocab_size if i % 2 == 0 else token for i, token in enumerate(first)]
    changed = pack([Continuations(prefix, [first, *others]), *groups[1:]])
    changed.position_ids[changed.group_ids == len(groups) - 1] *= 2
    return pad(groups), pack(groups), changed


def _distance(values: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """[N]: how far each row of [N, D] is from the expected one, relative to the expected rows' spread."""
    expected = expected.to(reduction_dtype(expected.dtype))
    spread = (expected - expected.mean(dim=0)).norm(dim=-1).mean()
    return (values - expected).norm(dim=-1) / spread.clamp(min=torch.finfo(expected.dtype).tiny)
