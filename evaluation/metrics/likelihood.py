"""How likely answers are under a second, stronger model P^, which stands in for the truth (ACL section 4.4).

log Q(y|x) of a reverse KL is the engine's own log-probability of what it drew (`Sample.logp`): that is the very
distribution of the draw, of which another implementation's score differs by rounding.
"""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data.command.errors import UserError
from data.finite import LOOK
from data.models import check_causal, context_length, load_tokenizer, vocabulary_size
from data.schema import Group
from data.sources.encode import Encoded, encode_pairs
from data.tokens import marks_of
from evaluation.answers.cache import Store, hash_of
from evaluation.answers.checkpoints import Checkpoint
from evaluation.answers.generations import GenerationSet, identify_model
from evaluation.answers.weights import kept_tokenizer_hash, tokenizer_settings
from evaluation.on_demand import OnDemand
from negatives_gen.models.engine import Sample
from negatives_gen.models.loading import NO_CODE, load_scorer

KIND = "likelihoods"
SCHEMA = pa.schema([("id", pa.string()), ("logp", pa.float64()), ("tokens", pa.int32()), ("problem", pa.string())])

# How prompt and answer become the second model's tokens where it reads them as text; part of the key.
READING = "jointly"
# What answers without their prompts stand behind; part of their key.
ALONE = "beginning of text"

# Token ids of a prompt and of an answer.
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Likelihoods:
    """Log-probabilities of a generation set's answers under a second model, in the order of the answers.

    Attributes:
        by: "ids": the models share a tokenizer, and the very tokens were scored; "text": the second model's tokenizer
            read prompt and answer as text.
        logps: log P^(y|x) in nats, summed over the answer's tokens; None where it could not be scored.
        tokens: |y|, how many these are: with EOS if the answer ended by itself; by "text" as `_split` counts them.
        problems: why an answer could not be scored, in few words; "" where it was.
        without_prompt: log P^(y) of the same tokens, as `second_model_logps` gives it; empty where nobody asked.
    """

    by: str
    logps: list[float | None]
    tokens: list[int]
    problems: list[str]
    without_prompt: list[float | None] = field(default_factory=list)

    def unscored(self, kept: Sequence[int]) -> dict[str, int]:
        """Reason -> number of the kept answers that could not be scored for it, the most frequent first."""
        return dict(Counter(self.problems[i] for i in kept if self.problems[i]).most_common())


class SecondModel:
    """A model that scores other models' answers; model and tokenizer are loaded when there is something to score.

    Args:
        path: directory of the model.
        dtype: that it computes in.
        store: remembers the hashes of its weights and of its tokenizer.

    Raises:
        UserError: the path is no model's, or (when they are loaded) transformers cannot load model or tokenizer.
    """

    def __init__(self, path: str, *, dtype: str = "float32", store: Store | None = None):
        self.directory = str(check_causal(path))
        self.path, self.dtype = path, dtype
        self.context = context_length(path, sys.maxsize)  # one that does not say has no limit
        self.rows = vocabulary_size(path)
        self.identity = identify_model(path, kept_tokenizer_hash(path, store), store)
        self.tokenizer = OnDemand(lambda: load_tokenizer(path))
        named = f"the second model '{path}'"
        self.scorer = OnDemand(lambda: load_scorer(self.directory, dtype=dtype, named=named, custom_code=NO_CODE))

    def describe(self) -> dict[str, str]:
        """The second model's identity, for the record of an evaluation."""
        return {"name": self.path, **self.identity, "dtype": self.dtype}

    def drop(self) -> None:
        """Free what the second model takes."""
        self.scorer.drop()
        self.tokenizer.drop()


def second_model_logps(
    store: Store,
    generations: GenerationSet,
    groups: Sequence[Group],
    second: SecondModel,
    *,
    without_prompt: bool = False,
) -> Likelihoods:
    """Score the answers of a generation set with a second model, or take the scores from the store.

    An answer is left out, and counted, if with its prompt it does not fit into the second model's context, if it has
    no tokens or one that the second model has not, if none of the prompt's tokens is left before it, if prompt or
    answer spells one of the second model's special tokens, or if it is impossible to the second model (a logit of minus
    infinity).

    Args:
        groups: those that the answers are to.
        without_prompt: log P^(y) in the place of log P^(y|x): the same tokens of each answer, at the beginning of a
            text, behind the second model's BOS, or its EOS where it has none.

    Raises:
        UserError: the second model cannot be loaded, or can score none of the answers.
    """
    found = _likelihoods(store, generations, groups, second, without_prompt=without_prompt)
    if all(logp is None for logp in found.logps):
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.unscored(range(len(found.problems))).items())
        raise UserError(
            f"the second model '{second.path}' can score none of {len(found.logps)} answers: {reasons}. Use another."
        )
    return found


def truths_by(second: SecondModel, store: Store, checkpoint: Checkpoint) -> Likelihoods:
    """Score the ground truths with a second model, read as a checkpoint's answers are, or take them from the store.

    Checkpoints of one tokenizer share them. What cannot be scored is left out, all of them too.

    Raises:
        UserError: the second model cannot be loaded.
    """
    groups = checkpoint.groups
    samples = [Sample(g.response_ids, g.response, "stop", 0.0, None) for g in groups]
    tokenizer = {"tokenizer_sha256": checkpoint.identity["tokenizer_sha256"]}
    key = {"model": tokenizer, "truths": [[g.prompt_ids, g.response_ids] for g in groups]}
    truths = GenerationSet(key, hash_of(key), [g.id for g in groups], samples)
    return _likelihoods(store, truths, groups, second, without_prompt=False)


def reverse_kl(log_q: Sequence[float], log_p: Sequence[float | None]) -> list[float | None]:
    """One draw of the reverse KL divergence per prompt, in nats; their mean is the estimate (ACL eq. 9).

    Args:
        log_q: log Q(y|x) in nats of answers drawn from Q itself: decoding "sample", nothing cut off.
        log_p: log P^(y|x) in nats; None where there is none, and then none here.
    """
    return [None if p is None else q - p for q, p in zip(log_q, log_p, strict=True)]


def length_normalised_nll(log_p: Sequence[float | None], tokens: Sequence[int]) -> list[float | None]:
    """-log P^(y|x) / |y| of each answer, in nats per token; their mean is the measure (ACL eq. 10).

    Args:
        log_p: log P^(y|x) in nats; None where there is none, and then none here.
        tokens: |y|, of the answer under P^.
    """
    return [None if p is None else -p / n for p, n in zip(log_p, tokens, strict=True)]


def pointwise_mutual_information(
    log_p: Sequence[float | None], without_prompt: Sequence[float | None]
) -> list[float | None]:
    """log P^(y|x) - log P^(y) of each answer, in nats; None where one of both is missing.

    Args:
        log_p: log P^(y|x) in nats.
        without_prompt: log P^(y) in nats, of the same tokens.
    """
    pairs = zip(log_p, without_prompt, strict=True)
    return [None if given is None or alone is None else given - alone for given, alone in pairs]


def _likelihoods(
    store: Store, generations: GenerationSet, groups: Sequence[Group], second: SecondModel, *, without_prompt: bool
) -> Likelihoods:
    key = {"generations": generations.hash, "second_model": second.identity, "dtype": second.dtype}
    if without_prompt:
        key |= {"behind": ALONE, "tokenizer": tokenizer_settings(second.path)}
    if generations.key["model"]["tokenizer_sha256"] == second.identity["tokenizer_sha256"]:
        by, sequences = "ids", [(g.prompt_ids, s.ids) for g, s in zip(groups, generations.samples, strict=True)]
        key |= {"by": by, "sequences_sha256": hash_of({"sequences": sequences})}

        def read() -> Sequence[Pair | str]:
            return sequences
    else:
        by = "text"
        # All that the tokens follow from: a finished evaluation then loads no tokenizer.
        prompts = [[g.prompt, g.messages] for g in groups]
        samples = [dataclasses.astuple(sample) for sample in generations.samples]
        reading = {"reading": READING, "tokenizer": tokenizer_settings(second.path)}
        key |= {"by": by, **reading, "texts_sha256": hash_of({"prompts": prompts, "samples": samples})}

        def read() -> Sequence[Pair | str]:
            return _read_as_text(groups, generations.samples, second.tokenizer())

    def make() -> pa.Table:
        pairs = _without_prompts(read(), second.tokenizer()) if without_prompt else read()
        return _score(generations.ids, pairs, second)

    table = store.get_or_make(KIND, key, make)
    return Likelihoods(by, *(table[name].to_pylist() for name in ("logp", "tokens", "problem")))


def _without_prompts(sequences: Sequence[Pair | str], tokenizer: Any) -> list[Pair | str]:
    """Each answer at the beginning of a text: behind what the tokenizer puts there, else behind BOS, or EOS."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    beginning = [*(marks_of(tokenizer).leading or (first,))]
    return [sequence if isinstance(sequence, str) else (beginning, sequence[1]) for sequence in sequences]


def _read_as_text(groups: Sequence[Group], samples: Sequence[Sample], tokenizer: Any) -> list[Pair | str]:
    """Prompt and answer as the second model's tokens, or why there are none.

    A prompt is written as that of a data set is for the second model: a text behind its BOS, a chat by its chat
    template. That needs a response, which does not change the prompt. The answer, whose text is as it reads behind its
    prompt, follows directly.
    """
    pairs = [(g.messages, [{"role": "assistant", "content": "a"}]) if g.messages else (g.prompt, "a") for g in groups]
    encoded = encode_pairs(pairs, tokenizer, sys.maxsize)
    prompts = [prompt.prompt if isinstance(prompt, Encoded) else "" for prompt in encoded]
    wholes = [prompt + sample.text for prompt, sample in zip(prompts, samples, strict=True)]
    prompt_ids, whole_ids = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, wholes))
    marks = marks_of(tokenizer)
    sequences: list[Pair | str] = []
    for group, sample, prompt, *ids in zip(groups, samples, encoded, prompt_ids, whole_ids, strict=True):
        context, answer = _split(*ids)
        before = context if group.messages else [*marks.leading, *context]
        if not isinstance(prompt, Encoded):
            sequences.append(prompt[0])
        elif marks.written.intersection(answer):
            sequences.append("special token in answer")
        elif not before:
            sequences.append("no token of the prompt before the answer")
        else:
            # It ends as what was encoded in its place does: with EOS, or as the chat template ends a turn.
            end = prompt.response_ids[-1:] if sample.finish_reason == "stop" else []
            sequences.append((before, [*answer, *end]))
    return sequences


def _split(prompt: list[int], whole: list[int]) -> Pair:
    """The tokens of prompt and answer together, split in two.

    Tokenised by itself, an answer would be another text: SentencePiece puts a space before it, and what continues a
    word would begin one. The answer's tokens are those from the first that the prompt alone does not have. Where the
    prompt ends with a token of its own, these spell the answer, and their log-probability is log P^(prompt + answer) -
    log P^(prompt). Else the token at the boundary spells the prompt's end as well, and is charged to the answer: the
    same for all models that continue the prompt alike, and never more than the probability of something certain, as
    the difference may be.

    Args:
        prompt, whole: ids of the prompt alone, and of prompt and answer.
    """
    pairs = zip(prompt, whole, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(whole)))
    return whole[:shared], whole[shared:]


def _score(ids: Sequence[str], sequences: Sequence[Pair | str], second: SecondModel) -> pa.Table:
    from trainer.scoring.continuations import Continuations

    problems = [_problem(sequence, second) for sequence in sequences]
    fitting = {i: pair for i, pair in enumerate(sequences) if not isinstance(pair, str) and not problems[i]}
    logps: list[float | None] = [None] * len(sequences)
    if fitting:
        scores = second.scorer().score([Continuations(prompt, [answer]) for prompt, answer in fitting.values()])
        for i, (logp,) in zip(fitting, scores, strict=True):
            if logp == -math.inf:
                problems[i] = "impossible to the second model"
            elif not math.isfinite(logp):
                raise UserError(
                    f"the second model '{second.path}' gives the answer to example {ids[i]} the log-probability "
                    f"{logp}, which is no finite number. {LOOK}"
                )
            else:
                logps[i] = logp
    tokens = [0 if isinstance(sequence, str) else len(sequence[1]) for sequence in sequences]
    return pa.table([ids, logps, tokens, problems], schema=SCHEMA)


def _problem(sequence: Pair | str, second: SecondModel) -> str:
    if isinstance(sequence, str):
        return sequence
    prompt, answer = sequence
    if not answer:
        return "no tokens"
    if (
        second.rows is not None and max(*prompt, *answer) >= second.rows
    ):  # models of one tokenizer are padded as they like
        return "a token that the second model has not"
    return "longer than the second model's context" if len(prompt) + len(answer) > second.context else ""
