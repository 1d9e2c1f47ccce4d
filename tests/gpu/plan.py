"""Which parts there are: what each runs and needs, and how long it may take."""

from dataclasses import dataclass

# GiB of GPU memory that a step needs, about: bfloat16 weights, gradients and AdamW's two, and a row of 8,192 tokens.
SIZES = {"124M": 8, "1.5B": 48, "3B": 60}
METHODS = {"cpo": (), "mle": (), "dpo": ("trl", "datasets"), "padded": ()}


@dataclass(frozen=True)
class Part:
    """One process of the program.

    Attributes:
        name: of the part in the record.
        function: "module:name"; called with the device, "cuda" or "cpu", and the arguments; gives a JSON object whose
            "checks" are those of `tests.gpu.parts.checks`.
        needs: packages without which the part is left out.
        gibibytes: of GPU memory; on a GPU with less it is left out.
        seconds: after which it is ended.
    """

    name: str
    function: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    gibibytes: int = 2
    seconds: float = 300


PARTS = (
    Part("parity", "tests.gpu.parts.parity:float32"),
    Part("parity-bfloat16", "tests.gpu.parts.parity:bfloat16"),
    Part("start", "tests.gpu.parts.parity:start"),
    Part("flex", "tests.gpu.parts.attention:flex", gibibytes=16),
    Part("bfloat16", "tests.gpu.parts.precision:bfloat16", gibibytes=16),
    *(
        Part(f"{method}-{size}", f"tests.gpu.parts.steps:{method}", (size,), needs, gibibytes)
        for size, gibibytes in SIZES.items()
        for method, needs in METHODS.items()
    ),
    Part("an", "tests.gpu.parts.sampling:an", needs=("vllm",), gibibytes=16),
)
