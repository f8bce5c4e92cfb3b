"""What a layer moves and launches between its products: by Hugging Face's modules, and by fused layers.

Launches are those that `tests/engine/test_gpu_fake_cuda.py` counts. Bytes are counted in hidden sizes of two bytes, a
token's and layer's, each tensor that an operation reads or writes once; the same test's operations add up to them.
"""

from dataclasses import dataclass

_ROTARY = {True: 1.0, False: 0.25}  # of a head's numbers, in Llama's family and in Dolly


@dataclass(frozen=True, slots=True)
class Launches:
    """A layer's launches, its products and attention among them: in steps that decode, of prompts, of both."""

    decoding: int
    prompts: int
    both: int


# By whether layers are of Llama's family, and whether they are fused. Prompts continue what is cached.
LAUNCHES = {
    (False, False): Launches(23, 26, 28),
    (False, True): Launches(9, 8, 12),
    (True, False): Launches(39, 42, 44),
    (True, True): Launches(13, 12, 16),
}


@dataclass(frozen=True, slots=True)
class Between:
    """Hidden sizes that a layer moves for each token.

    `kv_share` are the heads of keys for each query head, `inner` the inner layer's hidden sizes; `stored` is the size
    of a number in pages, for one of two bytes.
    """

    is_llama: bool
    is_fused: bool
    kv_share: float
    inner: float
    stored: float = 1.0

    @property
    def decoding(self) -> float:
        """Of a decoding token, its key and value stored."""
        return self._norms + self._inner + self._rotary

    @property
    def prompts(self) -> float:
        """Of a prompt's token, its key and value stored, and ready for attention."""
        return self.decoding + (2 * self.kv_share if self.is_fused else 0.0)

    def gathered(self, num_tokens: float, num_cached: float) -> float:
        """Of prompts with so many tokens in all, which continue so many cached ones: read from pages and packed."""
        moved = (2 + 2 * self.stored) * self.kv_share
        return moved * (num_cached if self.is_fused else num_tokens + num_cached)

    @property
    def _norms(self) -> float:
        """Two norms and two additions. Llama's norms by modules: to float32, square, mean, scale, back, weight."""
        if self.is_fused:
            return 8.0 if self.is_llama else 6.0
        return 2 * (18 + 3) if self.is_llama else 2 * (2 + 3)

    @property
    def _inner(self) -> float:
        if not self.is_llama:
            return 2 * self.inner
        return (3 if self.is_fused else 5) * self.inner

    @property
    def _rotary(self) -> float:
        """Of queries and keys; and storing keys and values. By modules, of what is rotated: two products, a negation of
        a half, joining the halves, a sum; then, where not all is rotated, joining it with the rest.
        """
        stored = (2 + 2 * self.stored) * self.kv_share
        if self.is_fused:
            return 2 + stored
        return (1 + self.kv_share) * (10 * _ROTARY[self.is_llama] + (0 if self.is_llama else 2)) + stored
