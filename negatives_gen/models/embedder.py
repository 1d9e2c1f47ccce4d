"""Sentence embeddings, for the ranking signal and for the evaluation."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.command.errors import UserError
from data.command.extras import require_package
from data.model_settings import check_tokenizer_fits, text_model_identity
from data.models import model_directory
from data.whole_weights import whole_weights
from negatives_gen.models.batches import give_pad_token, minds_padding
from negatives_gen.models.cut_texts import CutTexts, uncut
from negatives_gen.models.loading import TRUST, loading

log = logging.getLogger(__name__)

REFERENCE = "reference"


def embedder_identity(embedder: str, model: str) -> dict[str, str]:
    """What decides an embedder's vectors, for the manifest. Raises UserError if it cannot be used."""
    require_package("sentence_transformers", f"embedder '{embedder}'")
    source = model if embedder == REFERENCE else embedder
    try:
        identity = text_model_identity(source)
    except UserError as error:
        raise UserError(
            f"embedder '{embedder}' cannot be reached or used: {error} An embedder is a sentence-transformers model, "
            "or --embedder reference for mean-pooled states of the reference model."
        ) from error
    check_tokenizer_fits(source)
    return identity


class Embedder:
    """A sentence-transformers model, or the reference model's mean-pooled states, as an embedder of texts.

    A text's vector is the same whatever texts it is embedded with.

    Args:
        embedder: name or path, or "reference" for mean-pooled last hidden states of the reference model.
        model: directory of the reference model.
        trust_remote_code: run Python code that comes with the model.
        custom_code: what to say if the model comes with code that was not to be run.

    Raises:
        UserError: the embedder cannot be loaded.
    """

    def __init__(self, embedder: str, model: str, trust_remote_code: bool = False, custom_code: str = TRUST):
        from sentence_transformers import SentenceTransformer

        directory = str(model_directory(model if embedder == REFERENCE else embedder))
        with loading(f"embedder '{embedder}'", custom_code), whole_weights(f"embedder '{embedder}'"):
            loaded = (
                SentenceTransformer(modules=_mean_pooled(directory, trust_remote_code))
                if embedder == REFERENCE
                else SentenceTransformer(directory, trust_remote_code=trust_remote_code)
            )
        self.model: Any = loaded.float()  # in bfloat16 close candidates would tie, and a CPU would be half as fast
        self.tokenizer: Any = getattr(self.model, "tokenizer", None)  # not every first module has one
        give_pad_token(self.tokenizer)
        # A CPU gains nothing from a large batch and loses by its padding: 64 takes 2.5 times as long as 8.
        self.batch_size = 64 if self.model.device.type == "cuda" else 8
        self._heed_padding(embedder)
        # Word vectors have tokenizers of other kinds, and no limit.
        longest = getattr(self.model, "max_seq_length", None) if callable(self.tokenizer) else None
        self._cut = CutTexts(f"embedder '{embedder}'", longest)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit-length embeddings, [len(texts), D], float32."""
        side = getattr(self.tokenizer, "truncation_side", "right")
        self._cut.look(texts, self._tokens, "end" if side == "left" else "beginning")
        return self._vectors(texts)

    def _tokens(self, text: str) -> int:
        return uncut(self.tokenizer, text)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self.model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, batch_size=self.batch_size
        )
        return np.asarray(vectors, dtype=np.float32)

    def _heed_padding(self, embedder: str) -> None:
        """Pad on the right where the model minds its tokenizer's side; where it minds that too, do not pad at all."""
        if not minds_padding(self._vectors):
            return
        if hasattr(self.tokenizer, "padding_side"):
            self.tokenizer.padding_side = "right"
            if not minds_padding(self._vectors):
                return
        log.warning("embedder '%s' gives padded texts other vectors: texts are embedded one by one.", embedder)
        self.batch_size = 1


def _mean_pooled(directory: str, trust_remote_code: bool) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    code = {"trust_remote_code": trust_remote_code}
    transformer = Transformer(directory, model_kwargs=code, processor_kwargs=code, config_kwargs=code)
    return [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")]
