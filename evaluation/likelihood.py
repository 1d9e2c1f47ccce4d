"""How likely answers are under a second, stronger model P^, which stands in for the truth (ACL section 4.4).

log Q(y|x) of a reverse KL is the engine's own log-probability of what it drew (`Sample.logp`): that is the very
distribution of the draw, of which another implementation's score differs by rounding.
"""

import functools
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data.encode import encode_pairs, special_ids
from data.errors import UserError, first_line
from data.identity import check_model, context_length, load_tokenizer, tokenizer_hash
from data.schema import Group
from evaluation.generations import GenerationSet, identify_model
from evaluation.statistics import Estimate
from evaluation.store import Store, hash_of
from negatives_gen.engine import Sample

KIND = "likelihoods"
SCHEMA = pa.schema([("id", pa.string()), ("logp", pa.float64()), ("tokens", pa.int32()), ("problem", pa.string())])

# Token ids of a prompt and of an answer.
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Likelihoods:
    """Of the answers of a generation set under a second model, in their order.

    Attributes:
        by: "ids": the models share a tokenizer, and the very tokens were scored; "text": the second model's tokenizer
            read prompt and answer as text.
        logps: log P^(y|x) in nats, summed over the answer's tokens; None where it could not be scored.
        tokens: of the answer under the second model, with EOS if it ended by itself.
        problems: why an answer could not be scored, in few words; "" where it was.
    """

    by: str
    logps: list[float | None]
    tokens: list[int]
    problems: list[str]

    def unscored(self) -> dict[str, int]:
        """Reason -> number of answers that could not be scored for it, the most frequent first."""
        return dict(Counter(filter(None, self.problems)).most_common())


class SecondModel:
    """A model that scores other models' answers; loaded when there is something to score.

    Args:
        path: directory of the model.
        dtype: that it computes in.
        store: see `identify_model`.

    Raises:
        UserError: it is no model, or (when it is loaded) transformers cannot load it.
    """

    def __init__(self, path: str, *, dtype: str = "float32", store: Store | None = None):
        self.directory = str(check_model(path))
        self.path, self.dtype = path, dtype
        self.tokenizer = load_tokenizer(path)
        self.context = context_length(path)
        self.identity = identify_model(path, tokenizer_hash(self.tokenizer), store)

    @functools.cached_property
    def scorer(self) -> Any:
        """A `trainer.logprobs.Scorer`."""
        from trainer.logprobs import Scorer

        try:
            return Scorer.load(self.directory, dtype=self.dtype)
        except Exception as error:  # transformers and a model's own code raise a dozen unrelated classes
            raise UserError(f"transformers cannot load the second model '{self.path}': {first_line(error)}") from error


def second_model_logps(
    store: Store, generations: GenerationSet, groups: Sequence[Group], second: SecondModel
) -> Likelihoods:
    """Score the answers of a generation set with a second model, or take the scores from the store.

    An answer is left out, and counted, if with its prompt it does not fit into the second model's context, if it has
    no tokens, or if prompt or answer spells one of the second model's special tokens.

    Args:
        groups: those that the answers are to.

    Raises:
        UserError: the second model cannot be loaded, or can score none of the answers.
    """
    same = generations.key["model"]["tokenizer_sha256"] == second.identity["tokenizer_sha256"]
    if same:
        sequences = [(g.prompt_ids, s.ids) for g, s in zip(groups, generations.samples, strict=True)]
    else:
        sequences = _read_as_text(groups, generations.samples, second.tokenizer)
    by = "ids" if same else "text"
    key = {
        "generations": generations.hash,
        "second_model": second.identity,
        "dtype": second.dtype,
        "by": by,
        "sequences_sha256": hash_of({"sequences": sequences}),  # a chat template decides them as well
    }
    table = store.get_or_make(KIND, key, lambda: _score(generations.ids, sequences, second))
    found = Likelihoods(by, *(table[name].to_pylist() for name in ("logp", "tokens", "problem")))
    if all(logp is None for logp in found.logps):
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.unscored().items())
        raise UserError(
            f"the second model '{second.path}' can score none of {len(found.logps)} answers: {reasons}. Use another."
        )
    return found


def reverse_kl(log_q: Sequence[float], log_p: Sequence[float | None]) -> Estimate:
    """Reverse KL divergence in nats per answer, from one draw per prompt (ACL eq. 9).

    Args:
        log_q: log Q(y|x) in nats of answers drawn from Q itself: decoding "sample", nothing cut off.
        log_p: log P^(y|x) in nats; an answer without is left out.
    """
    return Estimate.of([q - p for q, p in zip(log_q, log_p, strict=True) if p is not None])


def length_normalised_nll(log_p: Sequence[float | None], tokens: Sequence[int]) -> Estimate:
    """Mean of -log P^(y|x) / |y|, in nats per token (ACL eq. 10).

    Args:
        log_p: log P^(y|x) in nats; an answer without is left out.
        tokens: |y|, of the answer under P^.
    """
    return Estimate.of([-p / n for p, n in zip(log_p, tokens, strict=True) if p is not None])


def _read_as_text(groups: Sequence[Group], samples: Sequence[Sample], tokenizer: Any) -> list[Pair | str]:
    """Prompt and answer as the second model's tokens, or why there are none.

    A prompt is encoded as that of a data set is for the second model: with its BOS, a chat with its chat template. That
    needs a response, which does not change the prompt's tokens.
    """
    pairs = [(g.messages, [{"role": "assistant", "content": "a"}]) if g.messages else (g.prompt, "a") for g in groups]
    prompts = encode_pairs(pairs, tokenizer, sys.maxsize)
    answers = tokenizer([s.text for s in samples], add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    sequences: list[Pair | str] = []
    for prompt, answer, sample in zip(prompts, answers, samples, strict=True):
        if isinstance(prompt, tuple):
            sequences.append(prompt[0])
        elif special.intersection(answer):
            sequences.append("special token in answer")
        else:
            end = [tokenizer.eos_token_id] if sample.finish_reason == "stop" else []
            sequences.append((prompt.prompt_ids, [*answer, *end]))
    return sequences


def _score(ids: Sequence[str], sequences: Sequence[Pair | str], second: SecondModel) -> pa.Table:
    from trainer.packing import Continuations

    problems = [_problem(sequence, second.context) for sequence in sequences]
    fitting = {i: pair for i, pair in enumerate(sequences) if not isinstance(pair, str) and not problems[i]}
    logps: list[float | None] = [None] * len(sequences)
    if fitting:
        scores = second.scorer.score([Continuations(prompt, [answer]) for prompt, answer in fitting.values()])
        for i, (logp,) in zip(fitting, scores, strict=True):
            if math.isfinite(logp):
                logps[i] = logp
            else:
                problems[i] = "log-probability not finite"
    tokens = [0 if isinstance(sequence, str) else len(sequence[1]) for sequence in sequences]
    return pa.table([ids, logps, tokens, problems], schema=SCHEMA)


def _problem(sequence: Pair | str, context: int) -> str:
    if isinstance(sequence, str):
        return sequence
    prompt, answer = sequence
    if not answer:
        return "no tokens"
    return "longer than the second model's context" if len(prompt) + len(answer) > context else ""
