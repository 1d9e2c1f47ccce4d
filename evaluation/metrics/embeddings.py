"""What metrics by an embedder share: its option, its identity, and embeddings that are kept in the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from evaluation.metrics.base import PromptMetric, Request

if TYPE_CHECKING:
    import numpy as np

    from evaluation.answers.cache import Store
    from evaluation.subject import Evaluation


@dataclass(frozen=True)
class EmbedderOptions:
    """Options of the metrics by an embedder."""

    embedder: str | None = option(None, "sentence-transformers name or path", metavar="PATH", is_name=True)

    def check(self) -> None:
        """Raise UserError for what would be another model for each checkpoint."""
        if self.embedder == "reference":
            raise UserError("--embedder must be one model for all checkpoints: a sentence-transformers name or path.")


class EmbedderMetric(PromptMetric):
    """A metric of texts' embeddings. They are kept: what one metric embedded, another takes from the store."""

    Options = EmbedderOptions
    record_schema: ClassVar = {"embedder": {"type": ["object", "null"]}}

    @classmethod
    def needs(cls, options: EmbedderOptions, request: Request) -> str:
        return "" if options.embedder else "--embedder"

    def __init__(self, options: EmbedderOptions, evaluation: "Evaluation"):
        super().__init__(options, evaluation)
        assert options.embedder is not None  # needs
        self.record = _identify(options.embedder, evaluation.store)
        self.embedder = self.on_demand(lambda: load_embedder(options.embedder))

    def identity(self) -> dict[str, Any]:
        return {"embedder": self.record}

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """[len(texts), D], of unit length, kept in the store."""
        import numpy as np
        import pyarrow as pa

        from evaluation.answers.cache import hash_of

        hashes = {key: self.record[key] for key in ("weights_sha256", "settings_sha256")}
        key = {**hashes, "texts_sha256": hash_of({"texts": list(texts)})}

        def make() -> pa.Table:
            return pa.table({"embedding": list(self.embedder().embed(texts))})

        table = self.evaluation.store.get_or_make("embeddings", key, make)
        return np.stack(table["embedding"].to_numpy())


def load_embedder(embedder: str | None) -> Any:
    """The sentence-transformers model of --embedder."""
    from negatives_gen.models.embedder import Embedder
    from negatives_gen.models.loading import NO_CODE

    assert embedder is not None  # EmbedderMetric.needs
    return Embedder(embedder, "", custom_code=NO_CODE)


def _identify(embedder: str, store: "Store") -> dict[str, str]:
    from evaluation.answers.weights import identify_text_model

    try:
        identity = identify_text_model(embedder, store)
    except UserError as error:
        raise UserError(f"embedder '{embedder}' cannot be used: {error}") from error
    return {"name": embedder, **identity}
