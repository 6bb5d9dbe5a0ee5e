"""A second writing of attention, one head and one row at a time in float64, that shares no code with kernels/."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor


def _row(query: np.ndarray, keys: np.ndarray, scale: float, allowed: list[int], softcap: float | None) -> np.ndarray:
    logits = np.array([scale * float(query @ keys[j]) for j in allowed])
    return logits if softcap is None else softcap * np.tanh(logits / softcap)


def plain_map(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    visible: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Probabilities (b, h, n, m) and log-sum-exp (b, h, n). visible: (b, h, n, m); bias is added after the soft-cap."""
    b, h, n, _ = q.shape
    m, group = k.shape[2], h // k.shape[1]
    queries, keys = q.double().numpy(), k.double().numpy()
    p = np.zeros((b, h, n, m))
    total = np.full((b, h, n), -math.inf)
    for batch, head, i in np.ndindex(b, h, n):
        allowed = [j for j in range(m) if visible[batch, head, i, j]]
        logits = _row(queries[batch, head, i], keys[batch, head // group], scale, allowed, softcap)
        if bias is not None:
            logits = logits + bias[batch, head, i].double().numpy()[allowed]
        terms = np.exp(logits)
        below = terms.sum() + (math.exp(float(sink[head])) if sink is not None else 0.0)
        if below > 0:
            p[batch, head, i, allowed] = terms / below
            total[batch, head, i] = math.log(below)
    return torch.from_numpy(p), torch.from_numpy(total)


@pytest.fixture
def dense() -> Callable[..., tuple[Tensor, Tensor]]:
    return plain_map
