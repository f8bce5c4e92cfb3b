"""GPUs by their data sheets, and models by their sizes, for estimates."""

from dataclasses import dataclass

from benchmarks.gpu.between import Between
from benchmarks.gpu.work import SHAPES, Shape


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet. Rates a second: bytes, dense bf16 operations, all multiprocessors' cycles, float64."""

    name: str
    memory: float
    bytes_s: float
    flops_s: float
    cycles_s: float
    doubles_s: float
    has_fp8: bool = False


DEVICES = {
    device.name: device
    for device in (
        Device("A10", 24e9, 0.6e12, 125e12, 72 * 1.6e9, 0.24e12),
        Device("A100", 80e9, 2.04e12, 312e12, 108 * 1.41e9, 4.85e12),
        Device("H100", 80e9, 3.35e12, 989e12, 132 * 1.75e9, 16.7e12, has_fp8=True),
        Device("H200", 141e9, 4.8e12, 989e12, 132 * 1.75e9, 16.7e12, has_fp8=True),
    )
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model's sizes; `layer_weights` are those of all layers' products."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    layer_weights: int
    vocab_size: int
    inner: float = 4.0  # hidden sizes
    is_llama: bool = False

    @classmethod
    def of_dolly(cls, name: str, shape: Shape) -> "Model":
        heads = shape.num_heads
        return cls(name, shape.hidden_size, shape.num_layers, heads, heads, shape.layer_weights, shape.vocab_size)

    @property
    def spared_weights(self) -> float:
        """Of the last layer, those behind its attention: a prompt's last token alone needs them."""
        inner = (3 if self.is_llama else 2) * self.inner
        return self.layer_weights / self.num_layers * (1 + inner) / (2 + 2 * self.num_kv_heads / self.num_heads + inner)

    def between(self, is_fused: bool, kv_dtype: str = "auto") -> Between:
        """What moves between a layer's products."""
        stored = 1.0 if kv_dtype == "auto" else 0.5
        return Between(self.is_llama, is_fused, self.num_kv_heads / self.num_heads, self.inner, stored)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def token_numbers(self) -> int:
        """Numbers in a token's keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size

    def token_bytes(self, kv_dtype: str = "auto") -> int:
        """Keys and values of a token: in two bytes a number, or in one and a scale of four for each vector."""
        eight_bits = self.token_numbers + 4 * self.token_numbers // self.head_size
        return 2 * self.token_numbers if kv_dtype == "auto" else eight_bits

    @property
    def weight_bytes(self) -> int:
        """All weights in two bytes a number, the embedding's too."""
        return 2 * (self.layer_weights + 2 * self.vocab_size * self.hidden_size)


_LLAMA_WEIGHTS = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14_336)
MODELS = {
    **{name: Model.of_dolly(name, shape) for name, shape in SHAPES.items() if name != "smoke"},
    "llama-8b": Model("llama-8b", 4096, 32, 32, 8, _LLAMA_WEIGHTS, 128_256, 3.5, is_llama=True),
}
