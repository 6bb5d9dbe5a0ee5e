"""The blocked statistics against statistics of a row-by-row float64 map, and what must hold of any map."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.attention import visible_pairs
from kernels.statistics import STATISTICS, statistics
from kernels.statistics.reference import statistics as reference

Dense = Callable[..., tuple[Tensor, Tensor]]
LOWEST = torch.finfo(torch.float32).min


def by_hand(
    p: Tensor, lse: Tensor, visible: Tensor, spans: dict[str, Tensor], query: Tensor, key: Tensor, sink: bool
) -> dict[str, Tensor]:
    """Every statistic from a float64 map, spelled out. query (b, n) and key (b, m) are positions."""
    parked = 1 - p.sum(-1)
    entropy = -torch.where(p > 0, p * p.clamp_min(1e-300).log(), 0.0).sum(-1)
    if sink:
        entropy = entropy - torch.where(parked > 0, parked * parked.clamp_min(1e-300).log(), 0.0)
    ahead = query[:, None, :, None] - key[:, None, None, :]
    seen = visible.any(-1)
    places = key[:, None, None, :].expand_as(p).gather(-1, p.argmax(-1, keepdim=True))[..., 0]
    found = {
        "lse": lse,
        "entropy": entropy,
        "distance": (p * ahead).sum(-1),
        "top_key": torch.where(seen, places, -1),
        "top_weight": p.amax(-1),
        "received": p.sum(-2) / visible.sum(-2).clamp_min(1),
    }
    for name, members in spans.items():
        found[f"mass:{name}"] = (p * members[:, None, None, :]).sum(-1)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert not found[name].isnan().any(), name
        if name == "top_key":
            assert torch.equal(found[name], value), name
        else:
            assert torch.allclose(found[name].double(), value.double(), atol=1e-5, rtol=1e-5), name


def halves(b: int, m: int) -> dict[str, Tensor]:
    first = (torch.arange(m) < m // 2).expand(b, m)
    return {"first": first, "rest": ~first}


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize(("h", "g"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("n", "m"), [(13, 13), (1, 10), (5, 17)])
@pytest.mark.parametrize(
    ("softcap", "with_sink", "window", "causal"),
    [
        (None, False, None, True),
        (2.0, False, None, True),
        (None, True, None, True),
        (None, False, 4, True),
        (1.0, True, 3, True),
        (None, False, None, False),
        (None, True, 3, False),
    ],
)
def test_every_statistic_equals_the_dense_one_at_any_block(
    dense: Dense,
    block: int,
    h: int,
    g: int,
    n: int,
    m: int,
    softcap: float | None,
    with_sink: bool,
    window: int | None,
    causal: bool,
) -> None:
    q, k = 2 * torch.randn(2, h, n, 4), torch.randn(2, g, m, 4)
    sink = torch.randn(h) if with_sink else None
    visible = visible_pairs(n, m, causal=causal, window=window).expand(2, h, n, m)
    spans = halves(2, m)
    found = statistics(
        q, k, scale=0.7, wanted=STATISTICS, causal=causal, window=window, spans=spans, softcap=softcap, sink=sink,
        block=block,
    )  # fmt: skip
    p, lse = dense(q, k, scale=0.7, visible=visible, softcap=softcap, sink=sink)
    query, key = torch.arange(m - n, m).expand(2, n), torch.arange(m).expand(2, m)
    assert_same(found, by_hand(p, lse, visible, spans, query, key, with_sink))


def test_grouped_heads_are_read_one_by_one_not_averaged_over_the_group() -> None:
    q, k = torch.randn(1, 6, 9, 4), torch.randn(1, 2, 9, 4)
    together = statistics(q, k, scale=0.5, wanted=["entropy", "received"])
    for head in range(6):
        alone = statistics(q[:, head, None], k[:, head // 3, None], scale=0.5, wanted=["entropy", "received"])
        for name, value in alone.items():
            assert torch.allclose(together[name][:, head], value[:, 0], atol=1e-6)
    assert (together["entropy"][:, 0] - together["entropy"][:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("kind", ["bool", "additive infinity", "additive lowest number"])
def test_left_padding_is_invisible_and_its_own_rows_are_zero(dense: Dense, block: int, kind: str) -> None:
    n, padding = 11, torch.tensor([0, 4])
    q, k = torch.randn(2, 4, n, 4), torch.randn(2, 2, n, 4)
    real = torch.arange(n) >= padding[:, None]
    visible = (visible_pairs(n, n) & real[:, None, :])[:, None]
    mask = visible
    if kind != "bool":
        mask = torch.zeros(visible.shape).masked_fill(~visible, LOWEST if "number" in kind else float("-inf"))
    positions = torch.arange(n) - padding[:, None]
    spans = {"start": positions.eq(0) | positions.eq(1)}
    found = statistics(
        q, k, scale=0.6, wanted=STATISTICS, mask=mask, query_positions=positions, key_positions=positions, spans=spans,
        block=block,
    )  # fmt: skip
    everyone = visible.expand(2, 4, n, n)
    p, lse = dense(q, k, scale=0.6, visible=everyone)
    assert_same(found, by_hand(p, lse, everyone, spans, positions, positions, sink=False))
    for name in ("entropy", "distance", "top_weight", "mass:start"):
        assert found[name][1, :, :4].eq(0).all()
    assert found["top_key"][1, :, :4].eq(-1).all()
    assert found["received"][1, :, :4].eq(0).all()


def test_the_strongest_key_is_named_by_its_position_not_by_its_slot() -> None:
    q = torch.ones(1, 1, 1, 2)
    k = torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, 1.0]]).view(1, 1, 3, 2)
    places = {"query_positions": torch.tensor([[9]]), "key_positions": torch.tensor([[7, 8, 9]])}
    found = statistics(q, k, scale=1.0, wanted=["top_key"], **places)
    assert found["top_key"].item() == 8


def test_a_tie_names_the_first_key() -> None:
    found = statistics(torch.zeros(1, 1, 5, 2), torch.randn(1, 1, 5, 2), scale=1.0, wanted=["top_key"])
    assert found["top_key"].eq(0).all()


def test_uniform_attention_has_known_numbers() -> None:
    found = statistics(
        torch.zeros(1, 1, 4, 2), torch.randn(1, 1, 4, 2), scale=1.0,
        wanted=["entropy", "distance", "received", "top_weight"],
    )  # fmt: skip
    counts = torch.arange(1, 5).float()
    assert torch.allclose(found["entropy"][0, 0], counts.log(), atol=1e-6)
    assert torch.allclose(found["distance"][0, 0], (counts - 1) / 2, atol=1e-6)
    assert torch.allclose(found["top_weight"][0, 0], 1 / counts, atol=1e-6)
    assert found["received"][0, 0, 0].item() == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 3),
    g=st.integers(1, 2),
    n=st.integers(1, 20),
    past=st.integers(0, 9),
    window=st.none() | st.integers(1, 12),
    causal=st.booleans(),
    block=st.integers(1, 25),
    sharpness=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_invariants_hold_at_any_shape(
    group: int,
    g: int,
    n: int,
    past: int,
    window: int | None,
    causal: bool,
    block: int,
    sharpness: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    m, h = n + past, g * group
    q, k = sharpness * torch.randn(1, h, n, 4), torch.randn(1, g, m, 4)
    spans = halves(1, m)
    found = statistics(q, k, scale=0.5, wanted=STATISTICS, causal=causal, window=window, spans=spans, block=block)
    visible = visible_pairs(n, m, causal=causal, window=window)
    assert found["entropy"].min() >= 0
    assert (found["entropy"] <= visible.sum(-1).log() + 1e-5).all()
    assert torch.allclose(found["mass:first"] + found["mass:rest"], torch.ones(()), atol=1e-5)
    assert torch.allclose((found["received"] * visible.sum(-2)).sum(-1), torch.full((), float(n)), rtol=1e-5)
    assert ((found["top_weight"] > 0) & (found["top_weight"] <= 1)).all()
    seen = visible.expand(1, h, n, m).gather(-1, found["top_key"][..., None])
    assert seen.all()


def test_the_reference_and_the_blocked_path_agree() -> None:
    q, k = torch.randn(2, 6, 70, 8), torch.randn(2, 2, 75, 8)
    where = {"query_positions": torch.arange(5, 75).expand(2, 70), "key_positions": torch.arange(75).expand(2, 75)}
    visible = visible_pairs(70, 75)[None, None]
    expected = reference(q, k, scale=0.3, visible=visible, wanted=STATISTICS, spans=halves(2, 75), **where)
    found = statistics(q, k, scale=0.3, wanted=STATISTICS, spans=halves(2, 75), block=16)
    assert_same(found, expected)


@pytest.mark.parametrize("block", [1, 2, 64])
def test_queries_before_the_first_key_see_nothing_and_read_zero(block: int) -> None:
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 3, 4)
    found = statistics(q, k, scale=1.0, wanted=["entropy", "top_key", "received"], block=block)
    assert found["entropy"][..., :3].eq(0).all()
    assert found["top_key"][..., :3].eq(-1).all()
    assert torch.allclose((found["received"] * torch.tensor([3.0, 2.0, 1.0])).sum(-1), torch.tensor(3.0))


def test_half_precision_inputs_are_read_in_float32() -> None:
    q, k = torch.randn(1, 4, 9, 8).bfloat16(), torch.randn(1, 2, 9, 8).bfloat16()
    found = statistics(q, k, scale=0.3, wanted=["entropy", "lse"])
    exact = statistics(q.double(), k.double(), scale=0.3, wanted=["entropy", "lse"])
    for name in found:
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name].double(), exact[name], atol=1e-5)


def test_an_unknown_statistic_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown statistic 'entropie'"):
        statistics(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), scale=1.0, wanted=["entropie"])


def test_mass_without_a_span_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one span"):
        statistics(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), scale=1.0, wanted=["mass"])
