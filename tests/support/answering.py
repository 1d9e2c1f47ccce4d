"""A tiny model whose answers end, a real vLLM engine for it, and a toy whose answers can all be listed."""

from collections.abc import Callable, Sequence
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import torch

from data.models import context_length, load_tokenizer
from data.schema import Group
from data.sources.prepare import prepare_groups
from negatives_gen.models.engine import Engine, Request, Sample
from tests.support.read_examples import load_examples
from tests.support.tiny import save_tiny_model, tiny_model

TASK = "prompt-completion"


def facts_groups(model: Path, number: int, split: str = "test") -> list[Group]:
    """Groups of the embedded example, without negatives."""
    tokenizer, context = load_tokenizer(str(model)), context_length(str(model))
    return prepare_groups(load_examples("facts", TASK, split, number), TASK, tokenizer, context).groups


def save_answering_model(directory: Path) -> Path:
    """A tiny model that has seen enough of the embedded example to answer in its words and to end."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(save_tiny_model(directory), dtype=torch.float32)
    groups = facts_groups(directory, 32, "train")
    sequences = [[*group.prompt_ids, *group.response_ids] for group in groups]
    ids = torch.zeros(len(groups), max(map(len, sequences)), dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, (group, sequence) in enumerate(zip(groups, sequences, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, len(group.prompt_ids) : len(sequence)] = torch.tensor(group.response_ids)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(40):
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(directory)
    return directory


class Engines(BaseManager):
    """Engines in a process of their own: vLLM leaves a process changed (compiler, threads, process group).

    Their methods are called as if they were here.
    """

    Engine: Callable[..., "DrawingEngine"]


class DrawingEngine(Engine):
    """An engine that is stepped to the end of some requests."""

    def draw(self, requests: Sequence[Request]) -> list[list[Sample]]:
        """The samples of each request."""
        for number, request in enumerate(requests):
            self.start(str(number), request)
        samples: dict[str, list[Sample]] = {}
        while len(samples) < len(requests):
            samples |= dict(self.step())
        return [samples[str(number)] for number in range(len(requests))]

    def look(self) -> tuple[int, int | None, int]:
        """What a proxy cannot see: slots, sequences that run, sequences that have not ended."""
        return self.slots, self.running, self.unfinished


class SteppedProxy:
    """An engine of another process, as the loop of this one steps it (`negatives_gen.job.batching`)."""

    def __init__(self, engine: DrawingEngine):
        self.start, self.step, self._look = engine.start, engine.step, engine.look
        self.slots, _, _ = self._look()

    @property
    def running(self) -> int | None:
        return self._look()[1]

    @property
    def unfinished(self) -> int:
        return self._look()[2]


KEPT: list[DrawingEngine] = []


BLOCKS = 64  # of 128 tokens: where the cache takes what it may, each engine takes a GiB


def _kept(*arguments: Any, options: dict[str, Any] | None = None, **more: Any) -> DrawingEngine:
    """An engine that lives as long as its process: one that ends takes the process groups of the others with it."""
    KEPT.append(DrawingEngine(*arguments, options={"num_gpu_blocks_override": BLOCKS, **(options or {})}, **more))
    return KEPT[-1]


Engines.register("Engine", _kept)


def save_toy_model(directory: Path, seed: int) -> Any:
    """Save a model over five tokens, of which 0 is EOS, and return it; its distributions are far from flat."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(directory)
    model = tiny_model("llama", vocab_size=5, seed=seed)
    model.save_pretrained(directory)
    return model


@torch.no_grad()
def answer_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[tokens of the answer, vocabulary] log-probabilities before each token, by transformers' own forward."""
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


def answer_logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """log-probability of an answer in nats, summed."""
    return answer_logps(model, prompt, answer).gather(-1, torch.tensor(answer)[:, None]).sum().item()


def drawn_logp(
    model: Any, prompt: list[int], answer: list[int], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> float:
    """Log-density of an answer that was drawn by a temperature, then among the k likeliest, then among the fewest of
    these that have a probability together; by transformers' own forward."""
    logits = answer_logps(model, prompt, answer) / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    ordered = logits.softmax(-1).sort(descending=True)
    cut = ordered.values.cumsum(-1) - ordered.values >= top_p
    logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, ordered.indices, cut), -torch.inf)
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).double().sum().item()
