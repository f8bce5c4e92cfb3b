"""GPU kernels, compiled by Triton."""

from dataclasses import dataclass

from torch import Tensor

SPLIT_KEYS = 512  # of a row that one program of the decode kernel reads


@dataclass(frozen=True, slots=True)
class Rotation:
    """How a layer's queries and keys are rotated: by the angles of their positions, after the heads' norms if any.

    `cosines` and `sines` are float32 [tokens, half of the numbers that are rotated]; `norms` the weights of the root
    mean square norms of queries and of keys, both [head size].
    """

    cosines: Tensor
    sines: Tensor
    norms: tuple[Tensor, Tensor] | None = None
    epsilon: float = 0.0

    def of(self, tokens: slice) -> "Rotation":
        """That of some of the tokens."""
        return Rotation(self.cosines[tokens], self.sines[tokens], self.norms, self.epsilon)
