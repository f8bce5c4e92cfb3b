"""The optimizer that trains `tiny`, beside torch's own."""

import pytest
import torch

from dolly_batch.tiny.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (64, 16), (16, 64)])
def test_in_bfloat16_it_is_torchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.01, weight_decay=0.05, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.allclose(ours, start, atol=1e-3)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_in_float32_updates_are_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonal(torch.randn(64, 16), torch.float32))
    assert 0.5 < float(singular.min()) <= float(singular.max()) < 1.5
