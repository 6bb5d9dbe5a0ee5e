"""Attention whose keys carry a class, under Triton's interpreter or on a GPU, against its formula in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.reweight import triton
from kernels.reweight.triton import attend_classes, class_masses

QKV = tuple[Tensor, Tensor, Tensor]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element nobody wrote shows."""
    fresh = Tensor.new_empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        made = fresh(*args, **options)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


def dense(
    q: Tensor, k: Tensor, v: Tensor, classes: Tensor, log_weights: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    (b, h, n, _), m = q.shape, k.shape[2]
    k, v = (x.double().repeat_interleave(h // k.shape[1], 1) for x in (k, v))
    of_key = classes.long()[:, None, None, :].expand(b, h, n, m)
    s = scale * q.double() @ k.mT + log_weights.double().expand(b, h, n, -1).gather(-1, of_key)
    if causal:
        s = s.masked_fill(torch.arange(m) > torch.arange(m - n, m)[:, None], -math.inf)
    return s.softmax(-1).nan_to_num() @ v, s.logsumexp(-1)


def draw(b: int, h: int, g: int, n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> QKV:
    # As models hold them: a token's heads beside each other.
    q, k, v = (torch.randn(b, rows, heads, d, dtype=dtype).transpose(1, 2) for heads, rows in ((h, n), (g, m), (g, m)))
    return q, k, v


def spans(m: int, *edges: tuple[int, int]) -> Tensor:
    classes = torch.zeros(1, m, dtype=torch.uint8)
    for at, (start, stop) in enumerate(edges, 1):
        classes[:, start:stop] = at
    return classes


def check(
    qkv: QKV, classes: Tensor, log_weights: Tensor, *, causal: bool = True, scale: float = 0.3, atol: float = 1e-5
) -> tuple[Tensor, Tensor]:
    q, k, v, c, w = (x.to(DEVICE) for x in (*qkv, classes, log_weights))
    output, lse = (x.cpu() for x in attend_classes(q, k, v, c, w, scale=scale, causal=causal))
    expected, expected_lse = dense(*qkv, classes, log_weights, scale, causal)
    assert (output.dtype, lse.dtype) == (qkv[0].dtype, torch.float32)
    torch.testing.assert_close(output.double(), expected, atol=atol, rtol=atol)
    torch.testing.assert_close(lse.double(), expected_lse, atol=atol, rtol=1e-5)
    return output, lse


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n", "m"), [(70, 70), (1, 83), (33, 150), (64, 96), (50, 20)])
def test_plain_blocks_classed_blocks_and_the_diagonal_add_up_to_the_formula(n: int, m: int, causal: bool) -> None:
    classes = spans(m, (0, 2), (m // 2, m // 2 + 3))
    check(draw(1, 4, 2, n, m, 16), classes, torch.randn(1, 4, 1, 3), causal=causal)


def test_values_may_be_narrower_or_wider_than_keys() -> None:
    q, k, _ = draw(1, 4, 2, 70, 90, 16)
    for size in (3, 40):
        check((q, k, torch.randn(1, 2, 90, size)), spans(90, (3, 9)), torch.randn(1, 4, 1, 2))


def test_masses_are_what_each_class_holds_of_a_row() -> None:
    q, k, _ = draw(2, 4, 2, 70, 70, 16)
    classes, weights = spans(70, (0, 2), (40, 45)), torch.randn(1, 4, 1, 3)
    given = (x.to(DEVICE) for x in (q, k, classes, weights))
    found = class_masses(*given, scale=0.3, causal=True).cpu()
    for number in range(3):
        member = (classes == number).double()[:, None, :, None].expand(2, 2, 70, 1)
        expected = dense(q, k, member, classes, weights, 0.3, True)[0]
        torch.testing.assert_close(found[..., number, None].double(), expected, atol=1e-5, rtol=1e-5)


def test_each_row_may_weigh_the_classes_its_own_way() -> None:
    check(draw(2, 4, 2, 70, 90, 16), spans(90, (3, 9), (60, 61)), 3 * torch.randn(2, 4, 70, 3))


def test_each_prompt_of_a_batch_walks_its_own_classes() -> None:
    classes = torch.cat([spans(110, (0, 4)), spans(110, (70, 75))])
    check(draw(2, 2, 1, 110, 110, 16), classes, torch.randn(1, 2, 1, 2))


def test_a_class_lost_among_others_within_a_block_is_weighed() -> None:
    check(draw(1, 2, 2, 40, 40, 16), torch.randint(0, 16, (1, 40), dtype=torch.uint8), torch.randn(1, 2, 1, 16))


@pytest.mark.parametrize("log_weight", [-30.0, -10.0, 0.0, 5.0, 80.0])
def test_far_log_weights_stay_exact(log_weight: float) -> None:
    weights = torch.zeros(1, 2, 1, 2)
    weights[..., 1] = log_weight
    check(draw(1, 2, 1, 70, 70, 16), spans(70, (0, 40)), weights)


def test_a_weight_of_class_0_shifts_the_blocks_that_hold_nothing_else() -> None:
    weights = torch.tensor([-4.0, 0.0]).expand(1, 2, 70, 2) + torch.randn(1, 2, 70, 1)
    check(draw(1, 2, 1, 70, 70, 16), spans(70, (40, 45)), weights)


def test_a_hidden_class_leaves_rows_that_see_no_other_with_zero() -> None:
    weights = torch.zeros(1, 2, 1, 2)
    weights[:, 0, :, 1] = -math.inf
    output, lse = check(draw(1, 2, 1, 70, 70, 16), spans(70, (0, 37)), weights)
    assert output[0, 0, :37].eq(0).all()
    assert lse[0].isneginf().nonzero().tolist() == [[0, row] for row in range(37)]


def test_where_class_0_is_hidden_only_the_others_are_seen() -> None:
    output, _ = check(draw(1, 1, 1, 70, 70, 16), spans(70, (50, 53)), torch.tensor([-math.inf, 0.5]).view(1, 1, 1, 2))
    assert output[0, 0, :50].eq(0).all()


def test_logits_of_hundreds_do_not_overflow() -> None:
    q, k, v = draw(1, 2, 1, 40, 40, 16)
    check((200 * q, k, v), spans(40, (0, 9)), torch.ones(1, 2, 1, 2), atol=1e-3)


@pytest.mark.parametrize("d", [10, 24, 80, 200])
def test_a_head_size_that_is_no_power_of_two_is_served(d: int) -> None:
    check(draw(1, 2, 1, 35, 40, d), spans(40, (0, 4)), torch.randn(1, 2, 1, 2), scale=d**-0.5)


@pytest.mark.parametrize("tile", [triton.Tile(16, 64, 4, 1), triton.Tile(64, 16, 4, 1)])
def test_blocks_need_not_be_square(monkeypatch: pytest.MonkeyPatch, tile: triton.Tile) -> None:
    monkeypatch.setattr(triton, "FLOAT32", tile)
    check(draw(1, 2, 1, 130, 145, 16), spans(145, (0, 4), (100, 110)), torch.randn(1, 2, 130, 3))


@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter multiplies bfloat16 as if it were integers")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("log_weight", [-math.inf, -30.0, -1.0, 5.0])
def test_in_half_precision_the_error_is_at_most_twice_that_of_plain_attention(
    dtype: torch.dtype, d: int, log_weight: float
) -> None:
    qkv, scale = draw(1, 4, 2, 515, 700, d, dtype), d**-0.5
    classes, weights = spans(700, (0, 300), (600, 604)), torch.zeros(1, 4, 1, 3)
    weights[..., 1] = log_weight
    expected, expected_lse = dense(*qkv, classes, weights, scale, True)
    q, k, v = (x.to(DEVICE) for x in qkv)
    output, lse = attend_classes(q, k, v, classes.to(DEVICE), weights.to(DEVICE), scale=scale, causal=True)
    mask = weights[:, :, 0].gather(-1, classes.long()[:, None].expand(1, 4, 700))[:, :, None].expand(1, 4, 515, 700)
    mask = mask.masked_fill(torch.arange(700) > torch.arange(185, 700)[:, None], -math.inf).to(DEVICE, dtype)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    sees = expected_lse.isfinite()
    allowed = 2 * (plain.double().cpu() - expected)[sees].abs().max()
    assert (output.double().cpu() - expected).abs().max() <= allowed
    torch.testing.assert_close(lse.double().cpu(), expected_lse, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"classes": torch.zeros(1, 20, dtype=torch.int64)}, "classes"),
        ({"log_weights": torch.zeros(1, 2, 1, 17)}, "log_weights"),
        ({"classes": torch.zeros(1, 19, dtype=torch.uint8)}, "classes"),
        ({"v": torch.zeros(1, 1, 21, 16)}, "v"),
        ({"q": torch.zeros(1, 2, 20, 16, dtype=torch.float64)}, "q"),
        ({"scale": 0.0}, "scale"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(change: dict[str, Any], field: str) -> None:
    q, k, v = draw(1, 2, 1, 20, 20, 16)
    given: dict[str, Any] = {"q": q, "k": k, "v": v, "classes": spans(20, (0, 2)), "scale": 1.0}
    given["log_weights"] = torch.zeros(1, 2, 1, 2)
    with pytest.raises(ValueError, match=rf"\b{field}\b"):
        attend_classes(**(given | change), causal=True)
