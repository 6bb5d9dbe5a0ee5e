"""PyTorch's own fused attention, with the log-sum-exp that its public function throws away."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import attend_fused, log_sum_exp, scores, visible_pairs


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("g", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_is_pytorchs_to_the_last_bit_and_the_log_sum_exp_that_of_the_formula(
    dtype: torch.dtype, g: int, causal: bool
) -> None:
    n = 70
    q, k, v = (torch.randn(2, heads, n, 16).to(dtype) for heads in (9, g, g))
    output, lse = attend_fused(q, k, v, scale=0.3, causal=causal)
    plain = scaled_dot_product_attention(q, k, v, scale=0.3, is_causal=causal, enable_gqa=g != 9)
    assert torch.equal(output, plain)
    assert lse is not None
    exact = log_sum_exp(scores(q.double(), k.double(), scale=0.3, mask=visible_pairs(n, n, causal=causal)))
    assert (lse - exact).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)


def test_with_a_mask_the_log_sum_exp_is_not_given_since_a_row_may_see_nothing() -> None:
    q, k, v = (torch.randn(1, 2, 9, 16) for _ in range(3))
    mask = visible_pairs(9, 9)
    output, lse = attend_fused(q, k, v, scale=0.3, mask=mask)
    assert lse is None
    assert torch.equal(output, scaled_dot_product_attention(q, k, v, mask, scale=0.3))


def test_head_sizes_that_no_fused_kernel_takes_still_give_the_output() -> None:
    q, k, v = torch.randn(1, 2, 9, 5), torch.randn(1, 2, 9, 5), torch.randn(1, 2, 9, 7)
    output, lse = attend_fused(q, k, v, scale=0.3, causal=True)
    assert lse is None
    assert torch.allclose(output, scaled_dot_product_attention(q, k, v, scale=0.3, is_causal=True))
