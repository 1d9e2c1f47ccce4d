"""The policy of a training run: loaded as transformers does, prepared for packed groups, wrapped for an adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError
from data.manifest import DTYPES
from data.whole_weights import load_whole

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainer.scoring.prepared_model import PreparedModel


@dataclass(frozen=True)
class Policy:
    """What a policy is made from.

    Attributes:
        directory: of the model.
        config: how it is loaded and adapted: dtype, quantisation, attention, LoRA.
        from_scratch: from random weights, made from the directory's config.json.
        dropout: whether it keeps its dropout.
    """

    directory: Path
    config: "ModelConfig"
    from_scratch: bool
    dropout: bool

    @property
    def adapter(self) -> Any:
        """peft's configuration of an adapter, or None."""
        from trl import get_peft_config

        return get_peft_config(self.config)

    def load(self) -> Any:
        """The model as transformers loads it, neither prepared nor wrapped. Raises UserError for an unknown dtype."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from trl import get_quantization_config

        dtype = self.config.dtype
        if dtype not in (None, "auto", *DTYPES):  # argparse checks flags, not what a YAML file says
            raise UserError(f"unknown dtype {dtype!r}. Use auto, {', '.join(DTYPES)}.")
        options: dict[str, Any] = {"dtype": dtype if dtype in (None, "auto") else getattr(torch, dtype)}
        if self.config.attn_implementation:
            options["attn_implementation"] = self.config.attn_implementation
        if self.from_scratch:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.directory), **options)
        else:
            quantization = get_quantization_config(self.config)
            if quantization is not None:
                options["quantization_config"] = quantization
                options["device_map"] = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
            model = load_whole(AutoModelForCausalLM, self.directory, str(self.directory), **options)
        if not self.dropout:
            # It would make the policy differ from the reference, which was scored without it.
            from trainer.scoring.support import disable_dropout

            disable_dropout(model)
        return model


def prepared_policy(model: Any, adapter: Any = None, layout: str | None = None) -> "PreparedModel":
    """A loaded causal language model, taught to return log-probabilities, and called through an adapter if asked.

    Args:
        model: as transformers made it, or wrapped for an adapter of PEFT's already.
        adapter: peft's configuration of one; None for none.
        layout: what it is known to take; None: it is tried.
    """
    from trainer.scoring.prepared_model import prepare_model

    is_wrapped = hasattr(model, "get_base_model")  # by PEFT, which need not be there
    prepared = prepare_model(model.get_base_model() if is_wrapped else model, layout)
    if adapter is not None:
        from peft import get_peft_model, prepare_model_for_kbit_training

        if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
            model = prepare_model_for_kbit_training(model)
        model = get_peft_model(model, adapter)
    return prepared.of(model)
