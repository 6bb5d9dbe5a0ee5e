"""The pass for Hopper GPUs, on one: against float64 where that fits, against a swapped forward at 32k and 128k."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels.attention import visible_pairs, weights
from kernels.statistics import hopper, statistics
from kernels.statistics.hopper import STATISTICS

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper GPU (H100, H200); without one test_compile.py holds that the kernels compile",
)
HALF = 2.0**-11
"""Rounding of one weight to half precision, relative: what mass and distance are made of."""
CASES: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any]]] = {
    "square": ((1, 8, 2, 1000, 1000), {}),
    "a batch, sharp": ((2, 8, 2, 515, 515), {"sharp": 4.0}),
    "fewer queries than keys": ((1, 8, 2, 300, 1111), {}),
    "queries that see nothing": ((1, 4, 4, 700, 300), {}),
    "window": ((1, 8, 2, 900, 900), {"window": 200}),
    "window smaller than a tile": ((1, 8, 2, 900, 900), {"window": 20}),
    "learned sink": ((1, 8, 2, 600, 600), {"sink": True}),
    "half precision, clip beyond a tile": ((1, 8, 2, 600, 600), {"clip": 300, "dtype": torch.float16}),
    "one more than a block": ((1, 8, 2, 129, 129), {}),
    "fewer than a block": ((3, 8, 2, 17, 17), {}),
    "n 4,097": ((1, 2, 1, 4097, 4097), {}),
}


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(shape: tuple[int, int, int, int, int], d: int, dtype: torch.dtype, sharp: float) -> tuple[Tensor, Tensor]:
    b, h, g, n, m = shape
    q = (sharp * torch.randn(b, n, h, d, device="cuda")).to(dtype).transpose(1, 2)
    return q, torch.randn(b, m, g, d, device="cuda").to(dtype).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("d", sorted(hopper.TUNED))
@pytest.mark.parametrize("name", CASES)
def test_every_statistic_equals_that_of_the_float64_map(
    monkeypatch: pytest.MonkeyPatch, poisoned: None, name: str, d: int, deterministic: bool
) -> None:
    monkeypatch.setattr(hopper, "DETERMINISTIC", deterministic)
    shape, options = CASES[name]
    options = dict(options)
    q, k = draw(shape, d, options.pop("dtype", torch.bfloat16), options.pop("sharp", 1.0))
    if options.pop("sink", False):
        options["sink"] = torch.randn(shape[1], device="cuda")
    b, m = shape[0], shape[4]
    spans = {
        "start": (torch.arange(m, device="cuda") < 4).expand(b, m),
        "some": torch.rand(b, m, device="cuda") < 0.2,
        "all": torch.ones(b, m, dtype=torch.bool, device="cuda"),
    }
    asked = {"scale": d**-0.5, "wanted": STATISTICS, "spans": spans, **options}
    found = statistics(q, k, implementation="triton", **asked)
    exact = statistics(q.double(), k.double(), implementation="reference", **asked)
    assert set(found) == set(exact)
    for statistic, value in exact.items():
        mine = found[statistic]
        assert mine.isfinite().all(), statistic
        if statistic == "top_key":
            continue
        rounded = statistic.startswith("mass") or statistic in ("distance", "clipped_distance", "received_max")
        allowed = 2 * HALF if rounded else 1e-3 if statistic == "top_weight" else 2e-5
        floor = 1e-6 if statistic != "entropy" else 5e-5
        assert ((mine.double() - value).abs() <= allowed * value.abs() + floor).all(), statistic
    visible = visible_pairs(*shape[3:], window=options.get("window"), device="cuda")
    p = weights(q.double(), k.double(), scale=d**-0.5, mask=visible, sink=options.get("sink"))
    at_key = p.gather(-1, found["top_key"].clamp_min(0)[..., None])[..., 0]
    assert torch.equal(found["top_key"] < 0, exact["top_key"] < 0)
    assert (at_key >= (1 - 2 * HALF) * p.amax(-1))[found["top_key"] >= 0].all()


def test_two_runs_agree_to_the_last_bit() -> None:
    q, k = draw((1, 32, 8, 4096, 4096), 128, torch.bfloat16, 1.0)
    first, second = (statistics(q, k, scale=0.09, wanted=[s for s in STATISTICS if s != "mass"]) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("d", sorted(hopper.TUNED))
@pytest.mark.parametrize("n", [32_768, 131_072])
def test_what_keys_receive_is_the_log_sum_exp_of_a_swapped_forward(n: int, d: int) -> None:
    torch.compiler.reset()
    q, k = draw((1, 4, 1, n, n), d, torch.bfloat16, 1.0)
    wide = k.expand(1, 4, n, d).contiguous()
    forward = torch.ops.aten._scaled_dot_product_cudnn_attention(q, wide, wide, None, True, 0.0, True, scale=d**-0.5)
    lse = forward[1].reshape(1, 4, n)
    found = statistics(q, k, scale=d**-0.5, wanted=["received_sum"], lse=lse)["received_sum"]
    build = torch.compile(create_block_mask)  # plain, it would build the whole map
    seen = build(lambda b, h, j, i: i >= j, None, None, n, n, device="cuda")
    _, swapped = torch.compile(flex_attention)(
        wide, q, q, score_mod=lambda s, b, h, j, i: s - lse[b, h, i], block_mask=seen, return_lse=True
    )
    expected = swapped.double().exp()
    assert ((found - expected).abs() <= 1e-4 * expected.clamp_min(1 / n)).all()
    assert ((found.double().sum(-1) - n).abs() <= 1e-5 * n).all()
