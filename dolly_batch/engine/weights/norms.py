"""Root mean square norms in one compiled pass: torch takes seven, each a step through Python for few rows."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dolly_batch.engine.kernels.cpu.compiled import Kernel, as_array, find_rms_norm


class CompiledRMSNorm(nn.Module):
    """A norm of a model's: [..., features] in the weight's dtype to the same."""

    def __init__(self, norm: Any, normalize: Kernel) -> None:
        super().__init__()
        self.weight = norm.weight
        self._weight_array = as_array(norm.weight.detach())
        self._epsilon = np.float32(norm.variance_epsilon)
        self._normalize = normalize

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize each row."""
        rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        outputs = torch.empty_like(rows)
        self._normalize(as_array(rows), self._weight_array, self._epsilon, as_array(outputs))
        return outputs.view(inputs.shape)


def compile_norms(model: nn.Module) -> None:
    """Replace a CPU model's root mean square norms, in place, where their weights are in bfloat16 and numba is there.

    In float32 a model stays Hugging Face's to the bit.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm") and child.weight.dtype == torch.bfloat16:
                normalize = find_rms_norm()
                if normalize is not None:
                    setattr(module, name, CompiledRMSNorm(child, normalize))
