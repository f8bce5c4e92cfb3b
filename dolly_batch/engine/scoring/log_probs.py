"""Log-probabilities of chosen tokens from hidden states, without holding the logits of the whole vocabulary at once.

The vocabulary is processed in pieces that fit the processor's cache; log-softmax is in float32, or float64 where
the logits are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Numbers of the output layer held at once, and, on a CPU, columns of a product: a power of two, for others are slower.
_MAX_LOGITS = {"cpu": 2**24, "cuda": 2**26}
_COLUMNS = 1024


def log_probs(head: Any, vocab_size: int, hidden: Tensor, edges: Sequence[tuple[int, int]]) -> list[float]:
    """The log-probability of each edge's token.

    `hidden` is [nodes, hidden size], `head` the output layer of `vocab_size` tokens; an edge is the number of a node
    and a token.
    """
    if not edges:
        return []
    nodes, tokens = torch.tensor(edges, device=hidden.device).unbind(1)
    found = torch.empty(len(edges), dtype=_wide(hidden.dtype), device=hidden.device)
    rows = max(1, _MAX_LOGITS.get(hidden.device.type, _MAX_LOGITS["cpu"]) // _num_held(head, vocab_size, hidden))
    for start in range(0, len(hidden), rows):
        own = ((nodes >= start) & (nodes < start + rows)).nonzero()[:, 0]
        if len(own):
            found[own] = _of_rows(head, vocab_size, hidden[start : start + rows], nodes[own] - start, tokens[own])
    values: list[float] = found.tolist()
    return values


def _of_rows(head: Any, vocab_size: int, hidden: Tensor, nodes: Tensor, tokens: Tensor) -> Tensor:
    """`log_probs` for as many nodes as are run at once."""
    picked = torch.empty(len(tokens), dtype=_wide(hidden.dtype), device=hidden.device)
    totals = []
    for start, logits in _pieces(head, vocab_size, hidden):
        own = ((tokens >= start) & (tokens < start + logits.shape[1])).nonzero()[:, 0]
        picked[own] = logits[nodes[own], tokens[own] - start]
        # As logsumexp, in place. The clamp lets a piece of -inf alone be -inf; NaN and +inf end as NaN.
        highest = logits.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
        totals.append(logits.sub_(highest).exp_().sum(dim=-1).log_().add_(highest[:, 0]))
    return picked - torch.stack(totals).logsumexp(dim=0)[nodes]


def _pieces(head: Any, vocab_size: int, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first token, logits [nodes, tokens]) of each piece of the vocabulary; the caller may change the logits."""
    width = vocab_size if hidden.device.type == "cuda" else _COLUMNS
    whole = None if type(head) is nn.Linear else head(hidden)
    for start in range(0, vocab_size, width):
        part = slice(start, start + width)
        if whole is None:
            bias = None if head.bias is None else head.bias[part]
            logits = functional.linear(hidden, head.weight[part], bias)
        else:
            logits = whole[:, part]
        yield start, logits.to(_wide(logits.dtype))


def _num_held(head: Any, vocab_size: int, hidden: Tensor) -> int:
    """Logits of a node held at once: a piece of them on a CPU, all where they are packed or quantized."""
    return vocab_size if hidden.device.type == "cuda" or type(head) is not nn.Linear else _COLUMNS


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
