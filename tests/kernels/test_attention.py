"""The dense reference against a row-by-row float64 writing of the formula, and against PyTorch's own attention."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import attend, attend_by_blocks, log_sum_exp, scores, visible_pairs, weights

Dense = Callable[..., tuple[Tensor, Tensor]]


def random_qkv(b: int, h: int, g: int, n: int, m: int, d: int, e: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(b, h, n, d), torch.randn(b, g, m, d), torch.randn(b, g, m, e or d)


@pytest.mark.parametrize(("h", "g"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("n", "m"), [(1, 9), (5, 5), (3, 8)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sink", [False, True])
def test_weights_follow_the_formula_head_by_head(
    dense: Dense, h: int, g: int, n: int, m: int, softcap: float | None, with_sink: bool
) -> None:
    q, k, _ = random_qkv(2, h, g, n, m, 4)
    sink = torch.randn(h) if with_sink else None
    visible = visible_pairs(n, m)
    p, total = dense(q, k, scale=0.7, visible=visible.expand(2, h, n, m), softcap=softcap, sink=sink)
    found = weights(q, k, scale=0.7, mask=visible, softcap=softcap, sink=sink)
    assert torch.allclose(found.double(), p, atol=1e-6)
    logits = scores(q, k, scale=0.7, mask=visible, softcap=softcap)
    assert torch.allclose(log_sum_exp(logits, sink=sink).double(), total, atol=1e-5)


def test_output_equals_pytorchs_attention_with_grouped_heads_and_a_window() -> None:
    q, k, v = random_qkv(2, 6, 2, 11, 17, 8, e=5)
    visible = visible_pairs(11, 17, window=4)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=0.3, enable_gqa=True)
    assert torch.allclose(attend(q, k, v, scale=0.3, mask=visible), expected, atol=1e-5)


def test_a_learned_sink_is_the_plain_output_times_a_sigmoid() -> None:
    q, k, v = random_qkv(1, 4, 2, 6, 6, 8)
    sink = torch.randn(4)
    visible = visible_pairs(6, 6)
    plain = attend(q, k, v, scale=0.5, mask=visible)
    total = log_sum_exp(scores(q, k, scale=0.5, mask=visible))
    expected = plain * torch.sigmoid(total - sink[:, None])[..., None]
    assert torch.allclose(attend(q, k, v, scale=0.5, mask=visible, sink=sink), expected, atol=1e-5)


def test_visible_pairs_put_the_last_query_on_the_last_key() -> None:
    assert visible_pairs(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_a_window_counts_the_query_itself() -> None:
    assert visible_pairs(3, 3, window=2).tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def test_a_bidirectional_window_reaches_as_far_ahead_as_back() -> None:
    assert visible_pairs(3, 3, causal=False, window=2).tolist() == [
        [True, True, False],
        [True, True, True],
        [False, True, True],
    ]


def test_some_rows_of_the_visible_pairs_are_the_same_rows_of_all_of_them() -> None:
    whole = visible_pairs(9, 12, window=5)
    assert torch.equal(visible_pairs(9, 12, window=5, rows=slice(3, 7)), whole[3:7])


def blinding(kind: str) -> Tensor:
    visible = visible_pairs(4, 4).clone()
    visible[1] = False
    if kind == "bool":
        return visible
    lowest = float("-inf") if kind == "additive infinity" else torch.finfo(torch.float32).min
    return torch.zeros(4, 4).masked_fill(~visible, lowest)


@pytest.mark.parametrize("kind", ["bool", "additive infinity", "additive lowest number"])
@pytest.mark.parametrize("with_sink", [False, True])
def test_a_row_that_sees_no_key_gives_zero(kind: str, with_sink: bool) -> None:
    q, k, v = random_qkv(1, 2, 1, 4, 4, 4)
    sink = torch.zeros(2) if with_sink else None
    mask = blinding(kind)
    p, out = weights(q, k, scale=1.0, mask=mask, sink=sink), attend(q, k, v, scale=1.0, mask=mask, sink=sink)
    assert p[:, :, 1].eq(0).all()
    assert out[:, :, 1].eq(0).all()
    assert out.isfinite().all()
    assert out[:, :, 2].ne(0).all()


def test_an_additive_mask_is_added_after_the_soft_cap(dense: Dense) -> None:
    q, k, _ = random_qkv(1, 2, 2, 3, 3, 4)
    bias = torch.randn(1, 2, 3, 3)
    everywhere = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    p, _ = dense(q, k, scale=3.0, visible=everywhere, bias=bias, softcap=1.5)
    assert torch.allclose(weights(q, k, scale=3.0, mask=bias, softcap=1.5).double(), p, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    group=st.integers(1, 3),
    g=st.integers(1, 3),
    n=st.integers(1, 9),
    past=st.integers(0, 9),
    window=st.none() | st.integers(1, 12),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_are_probabilities_over_what_the_query_sees(
    group: int, g: int, n: int, past: int, window: int | None, causal: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    q, k, _ = random_qkv(1, g * group, g, n, n + past, 4)
    visible = visible_pairs(n, n + past, causal=causal, window=window)
    p = weights(q, k, scale=0.5, mask=visible)
    assert torch.allclose(p.sum(-1), torch.ones(()), atol=1e-5)
    assert p.masked_select(~visible).eq(0).all()


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_blocks_equals_the_whole_at_any_block(block: int, masked: bool) -> None:
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 5)
    mask = torch.rand(2, 1, 7, 9) > 0.4 if masked else None
    options = {"scale": 0.3, "softcap": 2.0, "sink": torch.randn(4)}
    whole = attend(q, k, v, mask=visible_pairs(7, 9) if mask is None else mask, **options)
    assert torch.allclose(attend_by_blocks(q, k, v, mask=mask, block=block, **options), whole, atol=1e-6)


def test_attention_by_blocks_of_half_precision_is_computed_in_float32() -> None:
    q, k, v = (torch.randn(1, 2, 33, 16).bfloat16() for _ in range(3))
    found = attend_by_blocks(q, k, v, scale=1.0, softcap=50.0)
    exact = attend(q.double(), k.double(), v.double(), scale=1.0, softcap=50.0, mask=visible_pairs(33, 33))
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= 2**-8 * exact.abs().max()  # bfloat16 keeps eight bits
