"""Every implementation of the statistics against a row-by-row float64 map, and what must hold of any map.

What may be asked, and how PyTorch sees the operation, is in test_statistics_operation.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.statistics import PER_KEY, STATISTICS, QueryWindow, Tile, blocked, statistics

Measure = Callable[..., dict[str, Tensor]]
Plain = Callable[..., Any]
Same = Callable[..., None]
Call = tuple[Tensor, Tensor, dict[str, Any]]

FAINT = 1e-15
"""Weights whose squares float32 can't hold."""
LOWEST = torch.finfo(torch.float32).min
WINDOWS = {
    "early": QueryWindow(stop=5),
    "late": QueryWindow(start=5),
    "ahead": QueryWindow(nearest=1, farthest=4),
    "middle of what follows": QueryWindow(start=2, stop=9, nearest=2),
    "behind": QueryWindow(farthest=0),
    "nobody": QueryWindow(start=10**6),
}


def halves(b: int, m: int) -> dict[str, Tensor]:
    first = (torch.arange(m) < m // 2).expand(b, m)
    return {"first": first, "rest": ~first}


def over(b: int, n: int, m: int) -> dict[str, Any]:
    """What every statistic needs to be measured over."""
    odd = torch.arange(m).remainder(2).eq(1) ^ torch.arange(b)[:, None].eq(1)
    return {
        "spans": halves(b, m) | {"odd": odd, "none": torch.zeros(b, m, dtype=torch.bool)},
        "tile": Tile((n // 4, n), (0, max(1, m - m // 5)), cells=3),
        "clip": 3,
        "top": min(5, m),
        "edges": (0, 1, 2, 5, 9),
    }


def skip_what_cannot_be_interpreted(implementation: str, q: Tensor) -> None:
    if implementation == "triton" and q.dtype == torch.bfloat16 and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers")


def call(b: int, h: int, g: int, n: int, m: int, d: int = 4, **options: Any) -> Call:
    q, k = 2 * torch.randn(b, h, n, d), torch.randn(b, g, m, d)
    return q, k, {"scale": 1.4 / math.sqrt(d)} | over(b, n, m) | options


def padded(n: int, m: int, *padding: int) -> Tensor:
    return torch.arange(m) >= torch.tensor(padding)[:, None]


def hidden(visible: Tensor, kind: str) -> Tensor:
    """A mask that hides what is not visible, in each of the ways that models write it."""
    if kind == "bool":
        return visible
    dtype = {"infinity": torch.float32, "lowest": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}[kind]
    lowest = float("-inf") if kind == "infinity" else torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, lowest)


def lower(n: int, m: int) -> Tensor:
    return torch.ones(n, m, dtype=torch.bool).tril(m - n)


def with_padded_positions(n: int, m: int, *padding: int) -> dict[str, Tensor]:
    key = torch.arange(m) - torch.tensor(padding)[:, None]
    return {"padding": padded(n, m, *padding), "key_positions": key, "query_positions": key[:, m - n :]}


def evicted(n: int, kept: int, jump: int) -> Call:
    """A cache that kept positions 0 to 3 and the last `kept`, the newest of which is at `jump`."""
    key = torch.cat([torch.arange(4), torch.arange(jump - kept + 1, jump + 1)])[None]
    return call(1, 2, 1, n, 4 + kept, key_positions=key, query_positions=key[:, -n:])


def half(dtype: torch.dtype) -> Call:
    q, k, options = call(1, 2, 1, 13, 17, d=8)
    return q.to(dtype), k.to(dtype), options


def seen_through_views() -> Call:
    _, _, options = call(2, 2, 1, 9, 14)
    q, cache = torch.randn(2, 9, 2, 4).transpose(1, 2), torch.randn(2, 1, 40, 8)
    return q, cache[:, :, 6:34:2, ::2], options


def per_head_mask() -> Call:
    mask = lower(9, 11) & (torch.rand(2, 2, 9, 11) > 0.4)
    return call(2, 2, 1, 9, 11, mask=mask)


def blinded(kind: str, **options: Any) -> Call:
    visible = lower(9, 9).clone()
    visible[4] = False
    visible[:, 3] = False
    return call(1, 1, 1, 9, 9, mask=hidden(visible[None, None], kind), **options)


CASES: dict[str, Callable[[], Call]] = {
    "one pair": lambda: call(1, 1, 1, 1, 1),
    "square": lambda: call(2, 2, 1, 13, 13),
    "grouped heads": lambda: call(1, 6, 2, 13, 13),
    "all heads on one key head": lambda: call(1, 3, 1, 7, 9),
    "decode": lambda: call(2, 2, 1, 1, 10),
    "decode, grouped, longer than a block": lambda: call(1, 4, 1, 1, 70),
    "chunk after a cache": lambda: call(2, 2, 1, 5, 17),
    "more queries than keys": lambda: call(1, 2, 1, 9, 4),
    "no power of two": lambda: call(1, 2, 1, 37, 41),
    "one over a power of two": lambda: call(1, 1, 1, 17, 33, d=8),
    "head size 3": lambda: call(1, 2, 1, 9, 9, d=3),
    "head size 20": lambda: call(1, 1, 1, 18, 18, d=20),
    "head size 64": lambda: call(1, 1, 1, 18, 18, d=64),
    "soft-cap": lambda: call(1, 2, 1, 13, 13, softcap=1.5),
    "learned sinks": lambda: call(1, 4, 2, 13, 13, sink=torch.tensor([-4.0, 0.0, 1.5, 6.0])),
    "learned sinks, decode": lambda: call(1, 2, 1, 1, 13, sink=torch.randn(2)),
    "learned sinks in half precision": lambda: call(1, 2, 1, 7, 7, sink=torch.randn(2).bfloat16()),
    "sliding window": lambda: call(1, 2, 1, 13, 17, window=4),
    "window of the query alone": lambda: call(1, 2, 1, 13, 13, window=1),
    "window wider than the keys": lambda: call(1, 2, 1, 5, 9, window=40),
    "window, soft-cap and sinks": lambda: call(2, 2, 1, 5, 17, window=3, softcap=1.0, sink=torch.randn(2)),
    "long window": lambda: call(1, 1, 1, 50, 50, window=37),
    "bidirectional": lambda: call(1, 2, 1, 13, 13, causal=False),
    "bidirectional window and sinks": lambda: call(1, 2, 1, 13, 13, causal=False, window=3, sink=torch.randn(2)),
    "cross, more keys": lambda: call(1, 2, 1, 7, 19, causal=False),
    "cross, more queries": lambda: call(1, 2, 1, 19, 7, causal=False),
    "left padding": lambda: call(2, 2, 1, 11, 11, padding=padded(11, 11, 0, 4)),
    "left padding, positions from the first real token": lambda: call(
        2, 2, 1, 11, 11, **with_padded_positions(11, 11, 0, 4)
    ),
    "left padding, window and sinks": lambda: call(
        2, 2, 1, 6, 11, window=4, sink=torch.randn(2), **with_padded_positions(6, 11, 7, 2)
    ),
    "padding of a cross attention": lambda: call(2, 2, 1, 5, 12, causal=False, padding=~padded(5, 12, 9, 12)),
    "nothing but padding": lambda: call(2, 2, 1, 5, 5, padding=padded(5, 5, 0, 5)),
    "bool mask": lambda: blinded("bool"),
    "mask of minus infinity": lambda: blinded("infinity"),
    "mask of the lowest number": lambda: blinded("lowest"),
    "mask of the lowest half": lambda: blinded("half"),
    "mask of the lowest bfloat": lambda: blinded("bfloat"),
    "mask of the lowest number and sinks": lambda: blinded("lowest", sink=torch.randn(1)),
    "mask in float64": lambda: call(1, 2, 1, 5, 5, mask=torch.randn(1, 1, 5, 5, dtype=torch.float64)),
    "mask over a bidirectional map": lambda: call(1, 2, 1, 9, 12, causal=False, mask=torch.rand(1, 1, 9, 12) > 0.5),
    "mask, padding and window at once": lambda: call(
        2, 2, 1, 9, 9, mask=torch.rand(2, 1, 9, 9) > 0.3, window=5, padding=padded(9, 9, 0, 2)
    ),
    "bias after the soft-cap": lambda: call(2, 2, 1, 7, 9, softcap=1.5, mask=torch.randn(1, 2, 7, 9)),
    "mask of each head and prompt": per_head_mask,
    "cache that evicts": lambda: evicted(1, 9, 48),
    "cache that evicts, chunk": lambda: evicted(5, 9, 48),
    "positions far out": lambda: evicted(3, 6, 120_000),
    "positions that repeat": lambda: call(
        1, 2, 1, 9, 9, query_positions=torch.arange(9)[None] // 2, key_positions=torch.arange(9)[None] // 2
    ),
    "positions in int32": lambda: call(
        1, 2, 1, 5, 7, query_positions=torch.arange(2, 7).int()[None], key_positions=torch.arange(7).int()[None]
    ),
    "bfloat16": lambda: half(torch.bfloat16),
    "float16": lambda: half(torch.float16),
    "strided views": seen_through_views,
}


@pytest.mark.parametrize("case", CASES)
def test_every_statistic_equals_the_plain_one(
    case: str, implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = CASES[case]()
    skip_what_cannot_be_interpreted(implementation, q)
    found = measure(q, k, wanted=STATISTICS, implementation=implementation, **options)
    expected = plain(q, k, **options)
    assert set(found) == set(expected.values) | {"top_key", "top_keys"}
    assert_same(found, expected)


@pytest.mark.parametrize(
    "case",
    ["square", "chunk after a cache", "more queries than keys", "no power of two", "window, soft-cap and sinks",
     "cross, more keys", "left padding, positions from the first real token", "mask of each head and prompt",
     "cache that evicts, chunk", "positions that repeat"],
)  # fmt: skip
def test_a_statistic_per_key_counts_the_queries_of_each_window(
    case: str, implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = CASES[case]()
    skip_what_cannot_be_interpreted(implementation, q)
    options["windows"] = WINDOWS
    found = measure(q, k, wanted=[*PER_KEY, "entropy"], implementation=implementation, **options)
    assert set(found) == {f"{name}:{window}" for name in PER_KEY for window in WINDOWS} | {"entropy"}
    assert_same(found, plain(q, k, **options))


GIVEN = ("chunk after a cache", "decode", "more queries than keys", "learned sinks, decode", "left padding",
         "window, soft-cap and sinks", "mask of the lowest number", "bias after the soft-cap", "bfloat16")  # fmt: skip


@pytest.mark.parametrize(
    ("case", "kept"),
    [*((case, torch.float32) for case in GIVEN), ("left padding", torch.float64)],
    ids=str,
)
def test_a_given_log_sum_exp_changes_nothing(
    case: str, kept: torch.dtype, implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = CASES[case]()
    skip_what_cannot_be_interpreted(implementation, q)
    lse = measure(q.double(), k.double(), wanted=["lse"], implementation="reference", **options)["lse"].to(kept)
    found = measure(q, k, wanted=STATISTICS, implementation=implementation, lse=lse, **options)
    assert_same(found, plain(q, k, **options))


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_asked_for_alone_is_the_same_as_among_all(
    name: str, implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 2, 1, 9, 13, window=7, sink=torch.randn(2))
    found = measure(q, k, wanted=[name], implementation=implementation, **options)
    assert set(found) == ({f"mass:{span}" for span in options["spans"]} if name == "mass" else {name})
    assert_same(found, plain(q, k, **options))


@pytest.mark.parametrize(
    ("cells", "queries", "keys"),
    [(1, (0, 13), (0, 17)), (2, (0, 13), (0, 17)), (6, (0, 13), (0, 17)), (512, (8, 13), (5, 12)), (2, (3, 4), (5, 6)),
     (4, (2, 13), (11, 17))],
)  # fmt: skip
def test_a_tile_is_pooled_to_at_most_so_many_cells_a_side_and_the_last_takes_what_is_left(
    cells: int,
    queries: tuple[int, int],
    keys: tuple[int, int],
    implementation: str,
    measure: Measure,
    plain: Plain,
    assert_same: Same,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if implementation == "triton":
        monkeypatch.setattr("kernels.statistics.triton.SMALLEST_CELL", 1)  # smaller cells are left to others
    q, k, options = call(1, 2 if cells < 6 else 1, 1, 13, 17)
    options["tile"] = Tile(queries, keys, cells)
    found = measure(q, k, wanted=["tile_mean", "tile_max"], implementation=implementation, **options)
    assert max(found["tile_mean"].shape[2:]) <= cells
    assert_same(found, plain(q, k, **options))


@pytest.mark.parametrize("top", [1, 3, 8, 16, 17])
def test_the_strongest_keys_are_named_from_the_strongest_down(
    top: int, implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 2, 1, 13, 17)
    options["top"] = top
    found = measure(q, k, wanted=["top_keys", "top_weights"], implementation=implementation, **options)
    assert (found["top_weights"].diff(dim=-1) <= 0).all()
    assert_same(found, plain(q, k, **options))


@pytest.mark.usefixtures("small_patches")
@pytest.mark.parametrize("threads", [1, 3])
def test_patches_shared_out_over_threads_give_the_plain_numbers_and_always_the_same(
    threads: int, measure: Measure, plain: Plain, assert_same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.statistics.patches.WORTH_THREADS", 0)
    q, k, options = call(2, 4, 2, 33, 37, window=19, sink=torch.randn(4), padding=padded(33, 37, 0, 6))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        runs = [measure(q, k, wanted=STATISTICS, implementation="blocked", **options) for _ in range(3)]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same(runs[0], plain(q, k, **options))
    for again in runs[1:]:
        assert all(torch.equal(again[name], value) for name, value in runs[0].items())


@pytest.mark.parametrize("m", [4097, 1025])
def test_a_long_map_by_blocks_equals_the_whole(m: int, measure: Measure) -> None:
    n = 173 if m == 4097 else m
    q, k = 2 * torch.randn(1, 1, n, 8, dtype=torch.float64), torch.randn(1, 1, m, 8, dtype=torch.float64)
    options = {"scale": 0.4, "wanted": STATISTICS, "spans": halves(1, m), "tile": Tile((0, n), (0, m), 500)}
    assert_close(
        measure(q.float(), k.float(), implementation="blocked", **options),
        measure(q, k, implementation="reference", **options),
    )


def test_a_map_of_many_blocks_a_side_equals_the_whole(measure: Measure) -> None:
    n = 2049
    q, k = 2 * torch.randn(1, 1, n, 8, dtype=torch.float64), torch.randn(1, 1, n, 8, dtype=torch.float64)
    wanted = ["lse", "entropy", "distance", "mass", "received", "received_max", "mean_query", "tile_mean"]
    options = {"scale": 0.4, "wanted": wanted, "spans": halves(1, n), "tile": Tile((0, n), (0, n))}
    assert_close(
        measure(q.float(), k.float(), implementation="blocked", **options),
        measure(q, k, implementation="reference", **options),
    )


def assert_close(found: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert set(found) == set(exact)
    for name, value in found.items():
        if name == "top_key":
            assert (value == exact[name]).double().mean() > 0.999, name
        elif name != "top_keys":
            assert torch.allclose(value.double(), exact[name], atol=2e-5, rtol=2e-5), name


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self.size = max(self.size, each.numel())
        return made


@pytest.mark.parametrize("cells", [512, 3])
def test_twice_the_length_never_takes_the_blocked_path_more_than_twice_as_large_a_tensor(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.statistics.patches.WORTH_THREADS", 2**40)  # what other threads make isn't seen
    own, given = blocked.statistics, []
    monkeypatch.setattr(blocked, "statistics", lambda *asked: given.append(asked) or own(*asked))
    sizes = []
    for n in (1000, 2000):
        q, k, options = call(1, 1, 1, n, n, d=8, windows=WINDOWS, tile=Tile((0, n), (0, n), cells))
        statistics(q, k, wanted=STATISTICS, implementation="blocked", **options)
        with Largest() as seen:
            own(*given[-1])
        sizes.append(seen.size)
    assert 1000 <= sizes[0] <= sizes[1] <= 2 * sizes[0]
    assert sizes[1] < 2000 * 2000


@pytest.mark.parametrize(("n", "m"), [(67, 70), (1, 10), (13, 13)])
def test_triton_in_tiles_of_its_own_size_equals_the_plain_one(
    n: int, m: int, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 2, 1, n, m, sink=torch.tensor([-4.0, 1.5]))
    found = measure(q, k, wanted=STATISTICS, implementation="triton", **options)
    assert_same(found, plain(q, k, **options))


@dataclass(frozen=True)
class Shape:
    """A call in words, so that a failing one can be read."""

    b: int
    g: int
    group: int
    n: int
    m: int
    d: int
    causal: bool
    window: int | None
    softcap: float | None
    sink: bool
    padding: int | None
    mask: str | None
    positions: str
    dtype: torch.dtype
    sharpness: float
    seed: int

    def build(self) -> Call:
        torch.manual_seed(self.seed)
        b, h, n, m = self.b, self.g * self.group, self.n, self.m
        q, k, options = call(b, h, self.g, n, m, self.d)
        options |= {"causal": self.causal, "window": self.window, "softcap": self.softcap}
        if self.sink:
            options["sink"] = torch.randn(h)
        starts = [(self.padding or 0) * batch for batch in range(b)]
        if self.padding is not None:
            options["padding"] = padded(n, m, *starts)
        if self.mask is not None:
            options["mask"] = hidden(torch.rand(b, h if self.seed % 2 else 1, n, m) > 0.3, self.mask)
        if self.positions != "slots":
            # Unbroken to the last slot either way, so that queries beyond the first key stay in order.
            key = torch.arange(m).expand(b, m) - torch.tensor(starts)[:, None]
            query = torch.arange(m - n, m).expand(b, n) - torch.tensor(starts)[:, None]
            if self.positions == "jump":
                key, query = (torch.where(at > 3, at + 40, at) for at in (key, query))
            options |= {"key_positions": key, "query_positions": query}
        return (self.sharpness * q).to(self.dtype), k.to(self.dtype), options


@st.composite
def shapes(draw: st.DrawFn, *, sharpness: tuple[float, ...] = (1.0,), sink: bool = True) -> Shape:
    return Shape(
        b=draw(st.integers(1, 2)),
        g=draw(st.integers(1, 2)),
        group=draw(st.integers(1, 3)),
        n=draw(st.integers(1, 20)),
        m=draw(st.integers(1, 24)),
        d=draw(st.sampled_from([1, 4, 8, 20])),
        causal=draw(st.sampled_from([True, True, False])),
        window=draw(st.none() | st.integers(1, 12)),
        softcap=draw(st.none() | st.sampled_from([1.0, 30.0])),
        sink=sink and draw(st.booleans()),
        padding=draw(st.none() | st.integers(0, 9)),
        mask=draw(st.none() | st.sampled_from(["bool", "infinity", "lowest", "half", "bfloat"])),
        positions=draw(st.sampled_from(["slots", "offset", "jump"])),
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])),
        sharpness=draw(st.sampled_from(sharpness)),
        seed=draw(st.integers(0, 999)),
    )


def hold(implementation: str, shape: st.SearchStrategy[Shape], check: Callable[[Shape], None]) -> None:
    """Runs `check` on shapes of every kind; on few where the interpreter of Triton answers, which is slow."""
    slow = implementation == "triton" and not torch.cuda.is_available()
    shape = shape.filter(lambda each: not (slow and each.dtype == torch.bfloat16))
    phases = [phase for phase in Phase if not (slow and phase is Phase.shrink)]
    settings(max_examples=2 if slow else 25, deadline=None, phases=phases)(given(shape)(check))()


def test_every_statistic_equals_the_plain_one_at_any_shape(
    implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    def check(shape: Shape) -> None:
        q, k, options = shape.build()
        found = measure(q, k, wanted=STATISTICS, implementation=implementation, **options)
        assert_same(found, plain(q, k, **options))

    hold(implementation, shapes(), check)


def visible_count(plain_of_it: Any) -> Tensor:
    return torch.from_numpy(plain_of_it.visible.sum(-1))


def test_what_each_query_reads_keeps_within_its_bounds(implementation: str, measure: Measure, plain: Plain) -> None:
    def check(shape: Shape) -> None:
        q, k, options = shape.build()
        found = measure(q, k, wanted=STATISTICS, implementation=implementation, **options)
        count = visible_count(plain(q, k, **options))
        seeing = count > 0
        assert (found["entropy"] >= -2e-5).all()
        assert (found["entropy"] <= (count + shape.sink).clamp_min(1).log() + 2e-5).all()
        assert (found["distance"] >= found["clipped_distance"] - 1e-5).all()
        assert (found["clipped_distance"] <= options["clip"] + 1e-4).all()
        assert (found["participation"] <= count * (1 + 1e-5)).all()
        assert torch.allclose(found["top_weight"], found["top_weights"][..., 0], atol=1e-6)
        assert (found["top_weights"].diff(dim=-1) <= 0).all()
        assert (found["top_weights"].sum(-1) <= 1 + 1e-4).all()
        assert found["lse"].isneginf().eq(~seeing).all() or shape.sink
        whole = found["mass:first"] + found["mass:rest"]
        assert ((found["participation"] >= 1 - 1e-4) | (whole < FAINT)).all()
        assert (whole <= seeing.float() + 1e-4).all()
        if not shape.sink:
            assert torch.allclose(whole, seeing.float(), atol=1e-4)
            assert (found["top_weight"] * count >= seeing.float() - 1e-4).all()
        assert found["mass:none"].eq(0).all()
        for name in ("entropy", "distance", "clipped_distance", "top_weight", "self_mass", "participation"):
            assert found[name][~seeing].eq(0).all(), name
        assert found["top_key"][~seeing].eq(-1).all()
        assert found["top_keys"][~seeing].eq(-1).all()
        assert found["top_weights"][~seeing].eq(0).all()

    hold(implementation, shapes(sharpness=(0.1, 1.0, 20.0)), check)


def test_what_the_keys_receive_is_what_the_queries_give(implementation: str, measure: Measure, plain: Plain) -> None:
    def check(shape: Shape) -> None:
        q, k, options = shape.build()
        wanted = ["mass", "self_mass", *PER_KEY]
        found = measure(q, k, wanted=wanted, implementation=implementation, **options)
        rows = visible_count(plain(q, k, **options)).gt(0).sum(-1).float()
        given = (found["mass:first"] + found["mass:rest"]).sum(-1)
        assert torch.allclose(found["received_sum"].sum(-1), given, atol=1e-4)
        assert shape.sink or torch.allclose(given, rows, atol=1e-3)
        by_itself = found["received_sum"] - found["received_sum_by_others"]
        assert torch.allclose(by_itself.sum(-1), found["self_mass"].sum(-1), atol=1e-4)
        assert (by_itself >= -1e-5).all()
        assert (found["received_max"] <= 1 + 1e-4).all()
        assert (found["received_max"] >= found["received"] - 1e-5).all()
        assert (found["received_max"] <= found["received_sum"] + 1e-5).all()

    hold(implementation, shapes(sharpness=(0.1, 1.0, 20.0)), check)


def test_windows_that_part_the_queries_add_up(implementation: str, measure: Measure) -> None:
    def check(shape: Shape) -> None:
        q, k, options = shape.build()
        parts = {"early": QueryWindow(stop=6), "late": QueryWindow(start=6)}
        lags = {"behind": QueryWindow(farthest=-1), "near": QueryWindow(nearest=0, farthest=4)}
        lags["far"] = QueryWindow(nearest=5)
        asked = {"wanted": PER_KEY, "implementation": implementation}
        whole = measure(q, k, **asked, **options)
        for windows in (parts, lags):
            found = measure(q, k, windows=windows, **asked, **options)
            of = {name: torch.stack([found[f"{name}:{window}"] for window in windows]) for name in PER_KEY}
            for name in ("received_sum", "received_sum_by_others"):
                assert torch.allclose(of[name].sum(0), whole[name], atol=1e-5)
            assert torch.allclose(of["received_max"].amax(0), whole["received_max"], atol=1e-6)

    hold(implementation, shapes(), check)


def test_a_tile_holds_the_attention_inside_its_window(implementation: str, measure: Measure, plain: Plain) -> None:
    def check(shape: Shape) -> None:
        q, k, options = shape.build()
        n, m, cells = shape.n, shape.m, 1 + shape.seed % 7
        inside = torch.arange(m) >= m // 2
        options |= {"spans": {"inside": inside.expand(shape.b, m)}, "implementation": implementation}
        for tile in (Tile((0, n), (0, m), cells), Tile((n // 2, n), (m // 2, m), cells)):
            found = measure(q, k, wanted=["tile_mean", "tile_max", "mass"], **options | {"tile": tile})
            (top, bottom), (left, right) = tile.queries, tile.keys
            tall = torch.full((bottom - top,), 1.0).split(math.ceil((bottom - top) / cells))
            wide = torch.full((right - left,), 1.0).split(math.ceil((right - left) / cells))
            pairs = torch.tensor([[float(len(a) * len(b)) for b in wide] for a in tall])
            held = (found["tile_mean"] * pairs).sum((-2, -1))
            if left > 0:
                assert torch.allclose(held, found["mass:inside"][..., top:].sum(-1), atol=1e-4)
            elif top == 0 and not shape.sink:
                rows = visible_count(plain(q, k, **options)).gt(0).sum(-1).float()
                assert torch.allclose(held, rows, atol=1e-3)
            assert (found["tile_max"] >= found["tile_mean"] - 1e-6).all()
            assert (found["tile_max"] <= 1 + 1e-4).all()

    hold(implementation, shapes(), check)


def test_the_distance_histogram_shares_out_all_the_attention(
    implementation: str, measure: Measure, plain: Plain
) -> None:
    def check(shape: Shape) -> None:
        q, k, options = shape.build()
        found = measure(q, k, wanted=["distance_histogram", "self_mass"], implementation=implementation, **options)
        share = found["distance_histogram"]
        anyone = visible_count(plain(q, k, **options)).gt(0).any(-1)
        assert (share >= 0).all()
        assert torch.allclose(share.sum(-1), anyone.float(), atol=1e-4)
        if not shape.sink:
            rows = visible_count(plain(q, k, **options)).gt(0).sum(-1).clamp_min(1)
            assert torch.allclose(share[..., 0], found["self_mass"].sum(-1) / rows, atol=1e-4)  # bin 0 is distance 0

    hold(implementation, shapes(), check)


def test_heads_in_another_order_give_their_numbers_in_that_order(implementation: str, measure: Measure) -> None:
    q, k, options = call(1, 4, 2, 9, 13, sink=torch.randn(4), mask=torch.randn(1, 4, 9, 13))
    asked = {"wanted": STATISTICS, "implementation": implementation, "windows": {"late": QueryWindow(start=5)}}
    groups = torch.tensor([1, 0])
    heads = torch.tensor([3, 2, 0, 1])  # by whole groups, and within a group
    before = measure(q, k, **asked, **options)
    options |= {"sink": options["sink"][heads], "mask": options["mask"][:, heads]}
    after = measure(q[:, heads], k[:, groups], **asked, **options)
    for name, value in before.items():
        assert torch.allclose(after[name].double(), value[:, heads].double(), atol=1e-5, rtol=1e-5), name


def test_grouped_heads_are_read_one_by_one_not_averaged_over_the_group(implementation: str, measure: Measure) -> None:
    q, k, options = call(1, 4, 2, 9, 9)
    asked = {"wanted": STATISTICS, "implementation": implementation, **options}
    together = measure(q, k, **asked)
    for head in range(4):
        alone = measure(q[:, head, None], k[:, head // 2, None], **asked)
        for name, value in alone.items():
            assert torch.allclose(together[name][:, head].double(), value[:, 0].double(), atol=1e-5), name
    assert (together["entropy"][:, 0] - together["entropy"][:, 1]).abs().max() > 1e-3


def test_prompts_of_a_batch_do_not_meet(implementation: str, measure: Measure) -> None:
    q, k, options = call(2, 2, 1, 9, 11, padding=padded(9, 11, 0, 3))
    asked = {"wanted": STATISTICS, "implementation": implementation, **options}
    together = measure(q, k, **asked)
    alone = asked | {"padding": options["padding"][1:], "spans": {n: s[1:] for n, s in options["spans"].items()}}
    for name, value in measure(q[1:], k[1:], **alone).items():
        assert torch.allclose(together[name][1:].double(), value.double(), atol=1e-5), name


def test_left_padding_gives_the_numbers_of_the_prompt_without_it(implementation: str, measure: Measure) -> None:
    q, k, options = call(1, 2, 1, 11, 11, **with_padded_positions(11, 11, 4))
    wanted = [name for name in STATISTICS if not name.startswith("tile")]
    asked = {"wanted": wanted, "implementation": implementation, "scale": 0.5, "top": 4}
    spans = {"start": torch.arange(7)[None] < 2}
    bare = measure(q[:, :, 4:], k[:, :, 4:], spans=spans, **asked)
    where = {name: options[name] for name in ("padding", "query_positions", "key_positions")}
    found = measure(q, k, spans={"start": options["key_positions"] < 2}, **where, **asked)
    for name, value in found.items():
        if name != "distance_histogram":
            value = value[:, :, 4:]
        assert torch.allclose(value.double(), bare[name].double(), atol=1e-5), name


def test_a_row_that_sees_no_key_reads_zero_and_names_none(implementation: str, measure: Measure) -> None:
    mask = lower(4, 4)[None, None].clone()
    mask[..., 2, :] = False
    q, k = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    asked = {"scale": 1.0, "mask": mask, "spans": halves(1, 4), "top": 3, "tile": Tile((0, 4), (0, 4))}
    found = measure(q, k, wanted=STATISTICS, implementation=implementation, **asked)
    assert found["lse"][..., 2].isneginf().all()
    for name in ("entropy", "distance", "clipped_distance", "top_weight", "top_weights", "mass:first", "mass:rest",
                 "self_mass", "participation", "tile_mean", "tile_max"):  # fmt: skip
        assert found[name][:, :, 2].eq(0).all(), name
    assert found["top_key"][:, :, 2].eq(-1).all()
    assert found["top_keys"][:, :, 2].eq(-1).all()
    assert torch.allclose(found["received_sum"].sum(-1), torch.tensor(3.0))


@pytest.mark.parametrize("sink", [None, 2.0])
def test_a_map_in_which_nobody_sees_anything_reads_zero(
    sink: float | None, implementation: str, measure: Measure
) -> None:
    q, k = torch.randn(1, 2, 4, 4), torch.randn(1, 1, 5, 4)
    asked = {"scale": 1.0, "spans": halves(1, 5), "top": 3, "tile": Tile((0, 4), (0, 5))}
    asked |= {"padding": torch.zeros(1, 5, dtype=torch.bool), "sink": None if sink is None else torch.full((2,), sink)}
    found = measure(q, k, wanted=STATISTICS, implementation=implementation, **asked)
    assert found["lse"].eq(-math.inf if sink is None else sink).all()
    for name, value in found.items():
        if name != "lse":
            nothing = -1 if name in ("top_key", "top_keys", "mean_query") else 0
            assert value.eq(nothing).all(), name


def test_queries_before_the_first_key_see_nothing_and_are_not_counted(implementation: str, measure: Measure) -> None:
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 3, 4)
    wanted = ["entropy", "top_key", "received"]
    found = measure(q, k, scale=1.0, wanted=wanted, implementation=implementation)
    assert found["entropy"][..., :3].eq(0).all()
    assert found["top_key"][..., :3].eq(-1).all()
    assert torch.allclose((found["received"] * torch.tensor([3.0, 2.0, 1.0])).sum(-1), torch.tensor(3.0))


def test_uniform_attention_has_known_numbers(implementation: str, measure: Measure) -> None:
    q, k = torch.zeros(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    asked = {"scale": 1.0, "spans": halves(1, 4), "clip": 2, "top": 2, "tile": Tile((0, 4), (0, 4), 2)}
    asked |= {"edges": (0, 1, 2, 8), "implementation": implementation}
    found = {name: value[0, 0] for name, value in measure(q, k, wanted=STATISTICS, **asked).items()}
    count = torch.arange(1, 5).float()
    known = {
        "lse": count.log(),
        "entropy": count.log(),
        "distance": (count - 1) / 2,
        "clipped_distance": torch.tensor([0, 1 / 2, (2 + 1) / 3, (2 + 2 + 1) / 4]),
        "top_weight": 1 / count,
        "top_weights": torch.tensor([[1, 0], [1 / 2, 1 / 2], [1 / 3, 1 / 3], [1 / 4, 1 / 4]]),
        "self_mass": 1 / count,
        "participation": count,
        "mass:first": torch.tensor([1, 1, 2 / 3, 1 / 2]),
        "received_sum": torch.tensor([1 + 1 / 2 + 1 / 3 + 1 / 4, 1 / 2 + 1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4]),
        "received": torch.tensor([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, (1 / 2 + 1 / 3 + 1 / 4) / 3, 7 / 24, 1 / 4]),
        "received_by_others": torch.tensor([(1 / 2 + 1 / 3 + 1 / 4) / 3, (1 / 3 + 1 / 4) / 2, 1 / 4, 0]),
        "received_max": 1 / count,
        "mean_query": torch.tensor(
            [(1 / 2 + 2 / 3 + 3 / 4) / (25 / 12), (1 / 2 + 2 / 3 + 3 / 4) / (13 / 12), (2 / 3 + 3 / 4) / (7 / 12), 3]
        ),
        "tile_mean": torch.tensor([[2 / 4, 0], [(2 / 3 + 2 / 4) / 4, (1 / 3 + 2 / 4) / 4]]),
        "tile_max": torch.tensor([[1, 0], [1 / 3, 1 / 3]]),
        "distance_histogram": torch.tensor([25 / 12, 13 / 12, 7 / 12 + 1 / 4, 0]) / 4,
    }
    # Distances 2 and 3 share the third bin, [2, 8); the fourth is empty.
    for name, value in known.items():
        assert torch.allclose(found[name], value.float(), atol=1e-6), name
    assert found["top_key"].tolist() == [0, 0, 0, 0]
    assert found["top_keys"].tolist() == [[0, -1], [0, 1], [0, 1], [0, 1]]


def test_a_learned_sink_takes_its_share_and_counts_as_one_more_key_of_the_entropy(
    implementation: str, measure: Measure
) -> None:
    q, k = torch.zeros(1, 1, 3, 2), torch.randn(1, 1, 3, 2)
    wanted = ["lse", "entropy", "distance", "top_weight", "participation", "received_sum", "distance_histogram"]
    asked = {"scale": 1.0, "sink": torch.zeros(1), "edges": (0, 1, 2), "implementation": implementation}
    found = measure(q, k, wanted=wanted, **asked)
    assert torch.allclose(found["lse"][0, 0], torch.tensor([2.0, 3.0, 4.0]).log(), atol=1e-6)
    assert torch.allclose(found["entropy"][0, 0], torch.tensor([2.0, 3.0, 4.0]).log(), atol=1e-6)
    assert torch.allclose(found["distance"][0, 0], torch.tensor([0, 1 / 3, 3 / 4]), atol=1e-6)
    assert torch.allclose(found["top_weight"][0, 0], torch.tensor([1 / 2, 1 / 3, 1 / 4]), atol=1e-6)
    assert torch.allclose(found["participation"][0, 0], torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)
    assert found["received_sum"].sum().item() == pytest.approx(1 / 2 + 2 / 3 + 3 / 4, abs=1e-6)
    shares = torch.tensor([13 / 12, 7 / 12, 1 / 4])
    assert torch.allclose(found["distance_histogram"][0, 0], shares / shares.sum(), atol=1e-6)


def test_a_sink_of_minus_infinity_is_none(
    implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 2, 1, 5, 7)
    found = measure(
        q, k, wanted=STATISTICS, sink=torch.full((2,), -math.inf), implementation=implementation, **options
    )  # fmt: skip
    assert_same(found, plain(q, k, **options))


def test_a_sink_that_takes_almost_everything_leaves_the_participation_of_the_rest(
    implementation: str, measure: Measure
) -> None:
    q, k = torch.zeros(1, 1, 3, 2), torch.randn(1, 1, 3, 2)
    asked = {"scale": 1.0, "wanted": ["participation"], "implementation": implementation}
    found = measure(q, k, sink=torch.tensor([50.0]), **asked)
    assert torch.allclose(found["participation"][0, 0], torch.tensor([1.0, 2.0, 3.0]), atol=1e-3)


def test_a_tie_names_the_first_key(implementation: str, measure: Measure) -> None:
    q, k = torch.zeros(1, 1, 5, 2), torch.randn(1, 1, 5, 2)
    found = measure(q, k, scale=1.0, wanted=["top_key", "top_keys"], top=3, implementation=implementation)
    assert found["top_key"].eq(0).all()
    assert found["top_keys"][0, 0].tolist() == [[0, -1, -1], [0, 1, -1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("m", [6, 70])
def test_a_tie_between_keys_far_apart_names_the_first_of_them(m: int, implementation: str, measure: Measure) -> None:
    k = torch.zeros(1, 1, m, 2)
    k[:, :, [2, m - 1]] = 1.0
    asked = {"scale": 1.0, "wanted": ["top_key", "top_keys"], "top": 3, "implementation": implementation}
    found = measure(torch.ones(1, 1, 1, 2), k, **asked)
    assert found["top_key"].item() == 2
    assert found["top_keys"].flatten().tolist() == [2, m - 1, 0]


def test_keys_are_named_and_distances_measured_by_position_not_by_slot(implementation: str, measure: Measure) -> None:
    k = torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, 1.0], [-60.0, -60.0]]).view(1, 1, 4, 2)
    places = {"query_positions": torch.tensor([[99]]), "key_positions": torch.tensor([[0, 1, 98, 99]])}
    wanted = ["top_key", "top_keys", "distance", "clipped_distance", "self_mass", "mean_query", "distance_histogram"]
    asked = {"scale": 10.0, "top": 2, "clip": 5, "edges": (0, 90), "implementation": implementation, **places}
    found = measure(torch.ones(1, 1, 1, 2), k, wanted=wanted, **asked)
    assert found["top_key"].item() == 1
    assert found["top_keys"].flatten().tolist() == [1, 98]
    assert found["distance"].item() == pytest.approx(98)
    assert found["clipped_distance"].item() == pytest.approx(5)
    assert found["self_mass"].item() == 0
    assert found["mean_query"][0, 0, 1].item() == pytest.approx(99)
    assert found["distance_histogram"].flatten().tolist() == pytest.approx([0, 1])


def test_windows_are_of_positions_not_of_slots(implementation: str, measure: Measure) -> None:
    q, k = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 2)
    places = {"query_positions": torch.tensor([[50, 51]]), "key_positions": torch.tensor([[0, 1, 50, 51]])}
    windows = {"at 51": QueryWindow(start=51, stop=52), "slots": QueryWindow(start=2, stop=4)}
    windows["lag 50"] = QueryWindow(nearest=50, farthest=50)
    asked = {"scale": 1.0, "wanted": ["received_sum", "mean_query"], "implementation": implementation}
    found = measure(q, k, windows=windows, **asked, **places)
    assert found["received_sum:at 51"].flatten().tolist() == pytest.approx([1 / 4] * 4)
    assert found["mean_query:at 51"].flatten().tolist() == pytest.approx([51] * 4)
    assert found["received_sum:slots"].eq(0).all()
    assert found["mean_query:slots"].eq(-1).all()
    assert found["received_sum:lag 50"].flatten().tolist() == pytest.approx([1 / 3, 1 / 4, 0, 0])


def test_future_attention_influence_is_received_over_a_window_of_lags(implementation: str, measure: Measure) -> None:
    q, k = torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2)
    windows = {"next two": QueryWindow(nearest=1, farthest=2)}
    found = measure(q, k, scale=1.0, wanted=["received"], windows=windows, implementation=implementation)
    expected = [(1 / 2 + 1 / 3) / 2, (1 / 3 + 1 / 4) / 2, (1 / 4 + 1 / 5) / 2, 1 / 5, 0]
    assert found["received:next two"].flatten().tolist() == pytest.approx(expected)


def test_more_spans_than_an_integer_has_bits_are_told_apart(
    implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 1, 1, 16, 67)
    options["spans"] = {str(at): torch.arange(67)[None] == at for at in range(67)}
    found = measure(q, k, wanted=["mass"], implementation=implementation, **options)
    assert_same(found, plain(q, k, **options))


def test_a_bias_moves_attention_after_the_soft_cap(implementation: str, measure: Measure) -> None:
    q, k = torch.full((1, 1, 1, 1), 100.0), torch.tensor([1.0, 1.0]).view(1, 1, 2, 1)
    bias = torch.tensor([math.log(3), 0.0]).view(1, 1, 1, 2)
    asked = {"scale": 1.0, "softcap": 2.0, "wanted": ["top_weight", "lse"], "implementation": implementation}
    found = measure(q, k, mask=bias, **asked)
    assert found["top_weight"].item() == pytest.approx(3 / 4)
    assert found["lse"].item() == pytest.approx(2 + math.log(4))


@pytest.mark.parametrize("size", [200.0, -200.0])
def test_large_logits_neither_overflow_nor_vanish(size: float, implementation: str, measure: Measure) -> None:
    q, k = torch.full((1, 1, 3, 1), 1.0), torch.full((1, 1, 3, 1), size)
    found = measure(q, k, scale=1.0, wanted=["lse", "entropy", "top_weight"], implementation=implementation)
    count = torch.arange(1, 4).float()
    assert torch.allclose(found["lse"][0, 0], size + count.log(), atol=1e-4)
    assert torch.allclose(found["entropy"][0, 0], count.log(), atol=1e-4)
    assert torch.allclose(found["top_weight"][0, 0], 1 / count, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_read_in_float32(
    dtype: torch.dtype, implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 2, 1, 19, 19, d=16)
    q, k = q.to(dtype), k.to(dtype)
    skip_what_cannot_be_interpreted(implementation, q)
    wanted = [name for name in STATISTICS if name not in ("top_key", "top_keys")]
    found = measure(q, k, wanted=wanted, implementation=implementation, **options)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert_same(found, plain(q.double(), k.double(), **options))


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_float64_inputs_are_computed_in_float64(
    implementation: str, measure: Measure, plain: Plain, assert_same: Same
) -> None:
    q, k, options = call(1, 4, 2, 13, 17, sink=torch.randn(4), softcap=3.0)
    q, k = q.double(), k.double()
    found = measure(q, k, wanted=STATISTICS, implementation=implementation, **options)
    assert_same(found, plain(q, k, **options), tolerance=1e-11)


def test_what_goes_in_comes_out_unchanged(implementation: str) -> None:
    q, k, options = call(
        2, 2, 1, 9, 11, sink=torch.randn(2), mask=torch.randn(2, 1, 9, 11), padding=padded(9, 11, 0, 3)
    )
    options["lse"] = statistics(q, k, wanted=["lse"], implementation="reference", **options)["lse"]
    tensors = [q, k, *(value for value in options.values() if isinstance(value, Tensor)), *options["spans"].values()]
    before = [tensor.clone() for tensor in tensors]
    statistics(q, k, wanted=STATISTICS, implementation=implementation, **options)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
