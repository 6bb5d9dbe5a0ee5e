"""Branches over shared keys equal ordinary attention over a copy of those keys per branch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.attention import attend
from kernels.branches import attend_branches


def both_ways(
    b: int, g: int, group: int, m: int, t: int, *, softcap: float | None = None, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    d, e = 8, 5
    q = torch.randn(b, g * group, 1, d)
    shared_k, shared_v = torch.randn(1, g, m, d), torch.randn(1, g, m, e)
    own_k, own_v = torch.randn(b, g, t, d), torch.randn(b, g, t, e)
    k = torch.cat([shared_k.expand(b, -1, -1, -1), own_k], dim=2)
    v = torch.cat([shared_v.expand(b, -1, -1, -1), own_v], dim=2)
    found = attend_branches(q, shared_k, shared_v, own_k, own_v, scale=0.4, softcap=softcap, sink=sink)
    return found, attend(q, k, v, scale=0.4, softcap=softcap, sink=sink)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize(("g", "group"), [(4, 1), (2, 3), (1, 4)])
def test_branches_equal_attention_over_the_concatenated_copy(
    g: int, group: int, with_sink: bool, softcap: float | None
) -> None:
    sink = torch.randn(g * group) if with_sink else None
    found, expected = both_ways(3, g, group, 13, 4, softcap=softcap, sink=sink)
    assert torch.allclose(found, expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 5),
    g=st.integers(1, 3),
    group=st.integers(1, 3),
    m=st.integers(0, 20),
    t=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_branches_equal_the_copy_at_any_shape_an_empty_shared_part_included(
    b: int, g: int, group: int, m: int, t: int, seed: int
) -> None:
    torch.manual_seed(seed)
    found, expected = both_ways(b, g, group, m, t)
    assert torch.allclose(found, expected, atol=1e-5)


def test_half_precision_is_no_worse_than_twice_pytorchs_own_error() -> None:
    q, k, v = torch.randn(3, 4, 1, 16), torch.randn(3, 2, 40, 16), torch.randn(3, 2, 40, 16)
    k[1:, :, :30], v[1:, :, :30] = k[:1, :, :30], v[:1, :, :30]
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    exact = attend(q.double(), k.double(), v.double(), scale=0.25)
    own = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.25, enable_gqa=True)
    found = attend_branches(q, k[:1, :, :30], v[:1, :, :30], k[:, :, 30:], v[:, :, 30:], scale=0.25)
    assert (found - exact).abs().max() <= 2 * (own - exact).abs().max()
