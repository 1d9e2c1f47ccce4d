"""The one place where token sequences become log-probabilities: for the scorer, the trainer and the evaluation.

The packed layout of `trainer.scoring.packing` goes through the model's backbone with a 4-D attention mask (dense, or
on a GPU FlexAttention's blocks); the head is applied only where there is a target, in chunks, so that logits are never
materialised. Whether a model takes this is found out by trying (`prepare_model`); one that does not gets the padded
layout and its own forward.
"""

import inspect
import logging
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask

from data.command.errors import first_line
from trainer.scoring.attention import NAME as PACKED_ROWS
from trainer.scoring.attention import mark
from trainer.scoring.flex import autocast_dtype, packed_block_mask, works_on
from trainer.scoring.packing import (
    Continuations,
    TokenBatch,
    pack,
    packed_attention,
    pad,
    split_by_budget,
    split_padded,
)

log = logging.getLogger(__name__)

# Logits held at a time, in elements. Large enough that a matrix product outweighs reading the head and adding to its
# gradient once per chunk, see docs/benchmarks.md; small beside the model.
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}
# Marks the forward that `prepare_model` puts in place.
RETURNS_LOGPS = "returns_logps"

# The probe's groups: tokens of the prefix and of each continuation. Few: on a CPU a large model takes seconds for them.
PROBE_LENGTHS = ((4, (4, 1, 3)), (1, (3, 2)), (6, (3,)))
# Differences are relative to the spread of the values. The same computation on the same shapes differs by noise:
SAME = 1e-5
# Packed and padded differ by rounding, layer upon layer:
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class _TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] for each row, chunk by chunk, recomputed in the backward pass.

    With p = softmax(logits) and upstream gradient g, d logits = g * (onehot(target) - p). What is as wide as the
    vocabulary is passed over as seldom as can be, in one buffer that all chunks share: g goes into the narrow side of
    both products instead.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps = torch.empty(len(targets), dtype=_reduction_dtype(hidden.dtype), device=hidden.device)
        normalisers = torch.empty_like(logps)
        for rows, logits in _logits(hidden, weight.to(hidden.dtype)):
            chosen = logits.gather(-1, targets[rows, None])[:, 0]
            top = logits.amax(-1, keepdim=True)
            normalisers[rows] = logits.sub_(top).exp_().sum(-1).log_().add_(top[:, 0])
            logps[rows] = chosen - normalisers[rows]
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        return logps

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]  # the decorator's stub loses the name of ctx
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        upstream = -grads[0].to(hidden.dtype)[:, None]
        cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # In float32: a bfloat16 sum over many chunks would drop the small terms.
        wide = _reduction_dtype(weight.dtype)
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for rows, logits in _logits(hidden, cast):
            difference = logits.sub_(normalisers[rows, None]).exp_()  # p - onehot(target)
            difference.scatter_add_(-1, targets[rows, None], difference.new_full((len(difference), 1), -1))
            difference = difference.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mul(difference @ cast, upstream[rows], out=grad_hidden[rows])
            if grad_weight is not None:
                weighted = hidden[rows] * upstream[rows]
                if wide == hidden.dtype:
                    grad_weight.addmm_(difference.T, weighted)
                else:
                    grad_weight.add_(difference.T @ weighted)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of rows and their logits, float32 or wider, to be overwritten: the next chunk's take their place."""
    buffer: torch.Tensor | None = None
    for rows in _chunks(hidden, weight):
        part = hidden[rows]
        if buffer is None:
            buffer = part.new_empty(len(part), len(weight))
        logits = torch.mm(part, weight.T, out=buffer[: len(part)])
        yield rows, logits.to(_reduction_dtype(logits.dtype))


def token_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the targets under a linear head, without materialising the logits.

    Args:
        hidden: [N, H], float32, float64, float16 or bfloat16.
        weight: [V, H], cast to hidden's dtype for the products.
        targets: [N], token ids.

    Returns:
        [N] in nats, reduced in float32 (float64 for float64 input).
    """
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        return _TokenLogps.apply(hidden, weight, targets)  # type: ignore[return-value]  # apply is untyped


def prepare_model(model: Any) -> str:
    """Teach a causal language model to return log-probabilities, and say by which path it does.

    Patches `model.forward` so that a call with `target_ids` returns log-probabilities, and one with `uniforms` tokens
    drawn at the same positions; every other call, and so `generate` and wrappers such as PEFT and DDP, works as before.
    Call it before wrapping the model. Where the patch is in place it does nothing; where something took it off, it
    patches again.

    Returns:
        "packed", or "padded" if the model cannot take the packed layout; the log says why.
    """
    if _returns_logps(model.forward):
        return model._logprob_path
    bound = model.forward
    original = bound.__func__ if inspect.ismethod(bound) else lambda _, *args, **kwargs: bound(*args, **kwargs)

    def forward(
        self: Any,
        *args: Any,
        target_ids: Any = None,
        target_index: Any = None,
        uniforms: Any = None,
        never: Sequence[int] = (),
        **kwargs: Any,
    ) -> Any:
        if target_index is None:
            return original(self, *args, **kwargs)
        if self._logprob_path == "packed":
            hidden = self.base_model(*args, use_cache=False, **kwargs)[0].flatten(0, 1)[target_index]
            head = self.get_output_embeddings()
            if uniforms is not None:
                parts = [_drawn(head(hidden[rows]), uniforms[rows], never) for rows in _chunks(hidden, head.weight)]
                return torch.cat(parts)
            if type(head) is nn.Linear:
                # In autocast's type, as the head itself would be.
                return token_logps(hidden.to(autocast_dtype(hidden)), head.weight, target_ids)
            logits = head(hidden)  # wrapped since: its weight alone would leave out an adapter
        else:
            logits = original(self, *args, use_cache=False, **kwargs).logits.flatten(0, 1)[target_index]
        if uniforms is not None:
            return _drawn(logits, uniforms, never)
        logits = logits.to(_reduction_dtype(logits.dtype))
        return logits.log_softmax(-1).gather(-1, target_ids[:, None])[:, 0]

    # The signature alone, not functools.wraps: accelerate's unwrap_model follows __wrapped__, past this function.
    vars(forward).update({"__signature__": inspect.signature(type(model).forward), RETURNS_LOGPS: True})
    model.forward = types.MethodType(forward, model)  # a method, so that a deep copy calls its own weights
    if attention_implementation(model) in ("sdpa", "flex_attention"):
        model.set_attn_implementation(PACKED_ROWS)
    model._takes_block_masks = False
    obstacle = _obstacle(model)
    model._logprob_path = "padded" if obstacle else "packed"
    if obstacle:
        log.warning("Using the padded layout, slower than the packed one: %s.", obstacle)
    elif torch.cuda.is_available() and attention_implementation(model) == PACKED_ROWS:
        block_obstacle = _block_obstacle(model)
        model._takes_block_masks = block_obstacle is None
        if block_obstacle:
            log.warning("Using dense attention masks, slower than FlexAttention: %s.", block_obstacle)
    return model._logprob_path


def attention_implementation(model: Any) -> str | None:
    """The name, such as "sdpa"; None where transformers does not say (it keeps this in a private attribute)."""
    config = getattr(model, "module", model).config.get_text_config()
    return getattr(config, "_attn_implementation", None)


def candidate_logps(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Log-probability of each continuation given its prefix, summed over its tokens.

    Args:
        model: a model that went through `prepare_model`, wrapped or not.
        batch: packed or padded, on the model's device.

    Returns:
        [G, K] in nats, float32 or wider; 0 where `batch.mask` is False.
    """
    logps = model(**_inputs(model, batch), target_ids=batch.target_ids, target_index=batch.target_index)
    sums = torch.zeros(batch.mask.numel(), dtype=logps.dtype, device=logps.device)
    return sums.index_add(0, batch.slot, logps).view(batch.mask.shape)


@torch.no_grad()
def draw_tokens(model: Any, batch: TokenBatch, uniforms: torch.Tensor, *, never: Sequence[int] = ()) -> torch.Tensor:
    """Tokens drawn at every predicted position, each given what really stands before it: one pass.

    Args:
        model, batch: as for `candidate_logps`.
        uniforms: [N, draws] in [0, 1); where in the distribution's cumulative sum a draw falls.
        never: token ids that are not drawn.

    Returns:
        [N, draws], token ids, int64.
    """
    return model(**_inputs(model, batch), target_index=batch.target_index, uniforms=uniforms, never=never)


def layout(groups: Sequence[Continuations], path: str, row_tokens: int) -> Iterator[tuple[list[int], TokenBatch]]:
    """Lay out groups as the model's path wants them: (indices of the groups, their tensors) per forward pass."""
    packed = path == "packed"
    passes = (
        split_by_budget([g.packed_length for g in groups], row_tokens) if packed else split_padded(groups, row_tokens)
    )
    for indices in passes:
        chosen = [groups[i] for i in indices]
        yield indices, pack(chosen) if packed else pad(chosen)


@dataclass
class Scorer:
    """Scores groups with a frozen model: the stage 1 scorer and the evaluation.

    Attributes:
        model: transformers causal language model, in eval mode, on its device.
        path: "packed" or "padded".
        row_tokens: token budget of a forward pass.
    """

    model: Any
    path: str
    row_tokens: int = 1024

    @classmethod
    def load(
        cls, model: str, *, dtype: str = "float32", device: str | None = None, trust_remote_code: bool = False
    ) -> "Scorer":
        """Load a model directory for scoring, on the GPU if there is one."""
        from transformers import AutoModelForCausalLM

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Any: the stubs of `to` take no device name.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=trust_remote_code
        )
        loaded.to(device).eval()
        # On a CPU attention over a longer row's dense mask costs more than a larger matrix product gains.
        return cls(loaded, prepare_model(loaded), row_tokens=8192 if device.startswith("cuda") else 1024)

    @torch.no_grad()
    def score(self, groups: Sequence[Continuations]) -> list[list[float]]:
        """Summed log-probabilities in nats, one list per group with one number per continuation."""
        scores: list[list[float]] = [[] for _ in groups]
        # Passes of similar length waste little in the padded layout and cost nothing in the packed one.
        order = sorted(range(len(groups)), key=lambda i: groups[i].longest)
        for indices, batch in layout([groups[i] for i in order], self.path, self.row_tokens):
            logps = candidate_logps(self.model, batch.to(self.model.device)).tolist()
            for index, row in zip(indices, logps, strict=True):
                group = order[index]
                scores[group] = row[: len(groups[group].continuations)]
        return scores

    @torch.no_grad()
    def draw(
        self, groups: Sequence[Continuations], uniforms: Sequence[np.ndarray], *, never: Sequence[int] = ()
    ) -> list[np.ndarray]:
        """Tokens drawn at every position of a continuation, each given what really stands before it: one pass.

        Args:
            groups: a prefix with one continuation each.
            uniforms: per group [positions, draws] in [0, 1); where in the distribution's cumulative sum a draw falls.
            never: token ids that are not drawn.

        Returns:
            Per group [positions, draws], token ids, int64.
        """
        drawn: list[np.ndarray] = [np.empty(0)] * len(groups)
        order = sorted(range(len(groups)), key=lambda i: groups[i].longest)
        for indices, batch in layout([groups[i] for i in order], self.path, self.row_tokens):
            chosen = [order[index] for index in indices]
            where = torch.from_numpy(np.concatenate([uniforms[i] for i in chosen])).to(self.model.device)
            tokens = draw_tokens(self.model, batch.to(self.model.device), where, never=never)
            lengths = [len(groups[i].continuations[0]) for i in chosen]
            for i, part in zip(chosen, tokens.split(lengths), strict=True):
                drawn[i] = part.cpu().numpy()
        return drawn


def _drawn(logits: torch.Tensor, uniforms: torch.Tensor, never: Sequence[int]) -> torch.Tensor:
    """[N, draws] tokens of [N, V] logits."""
    logits = logits.double()
    logits[:, list(never)] = -torch.inf
    cumulative = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniforms.to(cumulative) * cumulative[:, -1:], right=True)


def _returns_logps(forward: Any) -> bool:
    """Whether `prepare_model`'s forward is there, perhaps inside wrappers such as accelerate's autocast."""
    return hasattr(inspect.unwrap(forward, stop=lambda f: hasattr(f, RETURNS_LOGPS)), RETURNS_LOGPS)


def _obstacle(model: Any) -> str | None:
    """Why the packed path would be wrong for this model, or None."""
    training = model.training
    model.eval()
    try:
        return _known_obstacle(model) or _probed_obstacle(model)
    finally:
        model.train(training)


def _known_obstacle(model: Any) -> str | None:
    """What is known beforehand, such as what only sequences longer than the probe's would show."""
    config = model.config.get_text_config()
    kind = config.model_type
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or []
    if window and ("sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)):
        return f"{kind} attends through a sliding window of {window} tokens"
    if "local" in (getattr(config, "attention_layers", None) or []):  # GPT-Neo's name for it
        return f"{kind} attends through a sliding window of {config.window_size} tokens"
    if "chunked_attention" in layers:
        return f"{kind} attends within chunks of {config.attention_chunk_size} tokens"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for settings in (rope, *(value for value in rope.values() if isinstance(value, dict))):  # may be per layer type
        scaling = settings.get("rope_type", settings.get("type"))
        if scaling in ("longrope", "dynamic"):
            return (
                f"the '{scaling}' RoPE of {kind} takes its frequencies from the longest position in a forward pass (in "
                f"either layout, a sequence beyond the original context changes the others in its pass)"
            )
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return f"the head of {kind} is not a plain linear map"
    attention = attention_implementation(model)
    if attention not in ("sdpa", PACKED_ROWS, "eager"):
        return f"attention implementation '{attention}' takes no 4-D mask"
    return None


@torch.no_grad()
def _probed_obstacle(model: Any) -> str | None:
    """Try the packed path on small groups: the head, the mask, the positions, and the whole against padded.

    The first three compare a computation with the same one on equal shapes. That is all but exact, so that neither
    low precision nor an untrained model, whose log-probabilities hardly depend on anything, can hide an error.
    """
    config = model.config.get_text_config()
    kind = config.model_type
    batches = [batch.to(model.device) for batch in _probe_batches(config.vocab_size)]
    padded, packed, _ = batches
    # Outside of `try`: where the model's own forward fails there is nothing to fall back to.
    logits = model(**_inputs(model, padded), use_cache=False).logits
    try:
        states = [model.base_model(**_inputs(model, batch), use_cache=False)[0] for batch in batches]
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
def _block_obstacle(model: Any) -> str | None:
    """Why FlexAttention's block masks would be wrong for this model, or None: tried on the probe's packed groups."""
    config = model.config.get_text_config()
    training = model.training
    model.eval()
    try:
        batch = _probe_batches(config.vocab_size)[1].to(model.device)
        assert batch.group_ids is not None
        assert batch.segment_ids is not None
        dense = model.base_model(**_inputs(model, batch), use_cache=False)[0]
        blocks = packed_block_mask(batch.group_ids, batch.segment_ids)
        inputs = {**_inputs(model, batch), "attention_mask": blocks}
        states = model.base_model(**inputs, use_cache=False)[0]
    except Exception as error:  # a model's own code meets a mask that is no tensor, or a compiler fails
        return f"{config.model_type} does not run with block masks ({first_line(error)})"
    finally:
        model.train(training)
    off = _distance(states.flatten(0, 1), dense.flatten(0, 1)).mean().item()
    if not off <= ROUNDING.get(states.dtype, ROUNDING[torch.bfloat16]):
        return f"{config.model_type} gives other hidden states with block masks (off by {off:.2g} of their spread)"
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
    expected = expected.to(_reduction_dtype(expected.dtype))
    spread = (expected - expected.mean(dim=0)).norm(dim=-1).mean()
    return (values - expected).norm(dim=-1) / spread.clamp(min=torch.finfo(expected.dtype).tiny)


def _inputs(model: Any, batch: TokenBatch) -> dict[str, Any]:
    mask = _attention_mask(model, batch)
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}


def _takes_block_masks(model: Any) -> bool:
    """Whether the model takes them, and FlexAttention works for its heads on its device."""
    model = getattr(model, "module", model)
    if not getattr(model, "_takes_block_masks", False):
        return False
    config, device = model.config.get_text_config(), model.device
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    dtype = getattr(model, "_computes_in", model.dtype)
    return works_on(device, dtype, heads, key_heads, size)


def _attention_mask(model: Any, batch: TokenBatch) -> torch.Tensor | BlockMask | None:
    if batch.group_ids is None or batch.segment_ids is None:
        return batch.attention_mask
    if batch.input_ids.is_cuda and _takes_block_masks(model):
        return packed_block_mask(batch.group_ids, batch.segment_ids)
    allowed = packed_attention(batch.group_ids, batch.segment_ids)
    attention = attention_implementation(model)
    if attention == PACKED_ROWS and allowed.device.type == "cpu" and batch.pieces is not None:
        return mark(allowed, batch.pieces)  # elsewhere a kernel per segment costs more than it saves
    if attention in ("sdpa", PACKED_ROWS):
        return allowed
    # Eager attention adds its mask to the scores.
    unwrapped = getattr(model, "module", model)
    scores = torch.zeros(allowed.shape, dtype=getattr(unwrapped, "dtype", torch.float32), device=allowed.device)
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    size = max(32, elements // len(weight))
    for start in range(0, len(hidden), size):
        yield slice(start, min(start + size, len(hidden)))


def _reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
