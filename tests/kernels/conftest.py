"""A second writing of attention and its statistics, in float64 and plain numpy, that shares no code with kernels/."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

SMALL = {
    # Shapes as small as the tests' then have many tiles, ragged ones among them, and few rows are not left to others.
    "blocked": ("kernels.statistics.patches", {"ROWS": 10, "PAIRS": 40}),
    "triton": ("kernels.statistics.triton", {"QUERIES": 16, "KEYS": 16, "FEWEST_QUERIES": 2}),
}
IMPLEMENTATIONS = [
    pytest.param(("reference", False), id="reference"),
    pytest.param(("blocked", False), id="blocked"),
    pytest.param(("blocked", True), id="blocked small"),
    pytest.param(("triton", True), id="triton small"),
]


@pytest.fixture(scope="session", autouse=True)
def _language_searched_once() -> Iterator[None]:
    """Triton's interpreter searches its language for what to patch at every call of a function: a third of its time."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def builtins_of(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtins(package: Any, builder: Any, scope: Any) -> None:
        for name in builtins_of(package):
            if is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtins)
        yield


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of what answers, in tiles of its own size or in small ones."""
    name, small = request.param
    if small:
        shrink(name, monkeypatch)
    return name


def shrink(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, sizes = SMALL[implementation]
    for size, value in sizes.items():
        monkeypatch.setattr(f"{module}.{size}", value)


@pytest.fixture
def small_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink("blocked", monkeypatch)


def place_of(implementation: str | None) -> str:
    """The device on which an implementation is tested: Triton interprets its kernels where there is no GPU."""
    return "cuda" if implementation == "triton" and torch.cuda.is_available() else "cpu"


@pytest.fixture
def device(implementation: str) -> str:
    return place_of(implementation)


def _row(query: np.ndarray, keys: np.ndarray, scale: float, softcap: float | None) -> np.ndarray:
    logits = np.array([scale * float(query @ key) for key in keys])
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
    queries, keys, sees = q.double().numpy(), k.double().numpy(), visible.numpy()
    added = None if bias is None else bias.double().numpy()
    p = np.zeros((b, h, n, m))
    total = np.full((b, h, n), -math.inf)
    for batch, head, i in np.ndindex(b, h, n):
        allowed = np.flatnonzero(sees[batch, head, i])
        logits = _row(queries[batch, head, i], keys[batch, head // group, allowed], scale, softcap)
        if added is not None:
            logits = logits + added[batch, head, i, allowed]
        extra = [float(sink[head])] if sink is not None else []
        top = max([*logits, *extra], default=-math.inf)
        if top > -math.inf:
            total[batch, head, i] = top + math.log(sum(math.exp(x - top) for x in [*logits, *extra]))
            p[batch, head, i, allowed] = np.exp(logits - total[batch, head, i])
    return torch.from_numpy(p), torch.from_numpy(total)


@pytest.fixture
def dense() -> Callable[..., tuple[Tensor, Tensor]]:
    return plain_map


def plain_visible(
    b: int, h: int, n: int, m: int, *, causal: bool, window: int | None, padding: Tensor | None, mask: Tensor | None
) -> np.ndarray:
    """Which pairs (b, h, n, m) are visible: the last query sits on the last key."""
    place, slot = np.arange(m - n, m)[:, None], np.arange(m)[None, :]
    visible = np.ones((b, h, n, m), dtype=bool)
    if causal:
        visible &= slot <= place
    if window is not None:
        visible &= abs(place - slot) < window
    if padding is not None:
        visible &= padding.numpy()[:, None, None, :]
    if mask is not None:
        visible &= (
            mask.numpy() if mask.dtype == torch.bool else mask.double().numpy() > float(torch.finfo(mask.dtype).min)
        )
    return visible


def of_a_query(
    row: np.ndarray,
    sees: np.ndarray,
    lse: float,
    i: int,
    j: np.ndarray,
    *,
    sink: float | None,
    members: Mapping[str, np.ndarray],
    clip: int,
    top: int,
) -> dict[str, Any]:
    weights, away = row[sees], abs(i - j[sees])
    shares = [*weights] if sink is None else [*weights, math.exp(sink - lse)]
    ranked = sorted(weights, reverse=True)[:top]
    return {
        "lse": lse,
        "entropy": -sum(x * math.log(x) for x in shares if x > 0),
        "distance": sum(weights * away),
        "clipped_distance": sum(weights * np.minimum(away, clip)),
        "top_weight": max(weights, default=0),
        "top_weights": ranked + [0] * (top - len(ranked)),
        "self_mass": sum(weights[away == 0]),
        "participation": sum(weights) ** 2 / sum(weights**2) if len(weights) else 0,
    } | {f"mass:{name}": sum(row[belongs]) for name, belongs in members.items()}


def of_a_key(column: np.ndarray, seen: np.ndarray, i: np.ndarray, j: int) -> dict[str, float]:
    """column, seen and i: of the queries that count."""
    others = i != j
    total = column.sum()
    return {
        "received": total / max(seen.sum(), 1),
        "received_sum": total,
        "received_by_others": column[others].sum() / max(seen[others].sum(), 1),
        "received_sum_by_others": column[others].sum(),
        "received_max": column.max(initial=0),
        "mean_query": (column * i).sum() / total if total > 0 else -1,
    }


def counted(window: Any, i: np.ndarray, j: int) -> np.ndarray:
    """Which of the queries at positions i a window counts for the key at position j."""
    lag = i - j
    return (
        (i >= (-math.inf if window.start is None else window.start))
        & (i < (math.inf if window.stop is None else window.stop))
        & (lag >= (-math.inf if window.nearest is None else window.nearest))
        & (lag <= (math.inf if window.farthest is None else window.farthest))
    )


def of_a_tile(p: np.ndarray, tile: Any) -> dict[str, np.ndarray]:
    """p (n, m) of one head."""
    (top, bottom), (left, right) = tile.queries, tile.keys
    tall, wide = math.ceil((bottom - top) / tile.cells), math.ceil((right - left) / tile.cells)
    cells = [
        [p[row : min(row + tall, bottom), column : min(column + wide, right)] for column in range(left, right, wide)]
        for row in range(top, bottom, tall)
    ]
    return {
        "tile_mean": np.array([[cell.sum() / cell.size for cell in row] for row in cells]),
        "tile_max": np.array([[cell.max() for cell in row] for row in cells]),
    }


def histogram(p: np.ndarray, away: np.ndarray, edges: tuple[int, ...]) -> np.ndarray:
    """p (n, m) of one head; away: the distances |i - j| of its pairs."""
    upper = [*edges[1:], math.inf]
    bins = [p[(away >= low) & (away < high)].sum() for low, high in zip(edges, upper, strict=True)]
    return np.array(bins) / p.sum() if p.sum() > 0 else np.zeros(len(edges))


@dataclass(frozen=True)
class Plain:
    """Every statistic by name, but for the keys named: those are judged by the map p (b, h, n, m) itself."""

    values: dict[str, np.ndarray]
    p: np.ndarray
    visible: np.ndarray
    query: np.ndarray
    key: np.ndarray


def plain_statistics(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    padding: Tensor | None = None,
    mask: Tensor | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    spans: Mapping[str, Tensor] | None = None,
    windows: Mapping[str, Any] | None = None,
    clip: int = 10,
    top: int = 8,
    tile: Any = None,
    edges: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, *(2**x for x in range(7, 18))),
    **ignored: object,
) -> Plain:
    """What `kernels.statistics.statistics` answers to the same arguments, every statistic wanted."""
    b, h, n, _ = q.shape
    m = k.shape[2]
    query = np.tile(np.arange(m - n, m), (b, 1)) if query_positions is None else query_positions.numpy()
    key = np.tile(np.arange(m), (b, 1)) if key_positions is None else key_positions.numpy()
    visible = plain_visible(b, h, n, m, causal=causal, window=window, padding=padding, mask=mask)
    bias = None if mask is None or mask.dtype == torch.bool else mask.expand(b, h, n, m)
    maps, totals = plain_map(
        q, k, scale=scale, visible=torch.from_numpy(visible), bias=bias, softcap=softcap, sink=sink
    )  # fmt: skip
    p, lse = maps.numpy(), totals.numpy()
    rows: list[dict[str, Any]] = [
        of_a_query(
            p[batch, head, i], visible[batch, head, i], lse[batch, head, i], query[batch, i], key[batch],
            sink=None if sink is None else float(sink[head]),
            members={name: span[batch].numpy() for name, span in (spans or {}).items()},
            clip=clip, top=top,
        )
        for batch, head, i in np.ndindex(b, h, n)
    ]  # fmt: skip
    values = {
        name: np.array([row[name] for row in rows]).reshape(b, h, n, *np.shape(rows[0][name])) for name in rows[0]
    }
    for suffix, each in {f":{name}": each for name, each in (windows or {}).items()}.items() or [("", None)]:
        columns: list[dict[str, float]] = []
        for batch, head, j in np.ndindex(b, h, m):
            at = slice(None) if each is None else counted(each, query[batch], key[batch, j])
            column, seen = p[batch, head, at, j], visible[batch, head, at, j]
            columns.append(of_a_key(column, seen, query[batch, at], key[batch, j]))
        values |= {name + suffix: np.array([c[name] for c in columns]).reshape(b, h, m) for name in columns[0]}
    if tile is not None:
        tiles = [of_a_tile(p[batch, head], tile) for batch, head in np.ndindex(b, h)]
        values |= {name: np.array([t[name] for t in tiles]).reshape(b, h, *tiles[0][name].shape) for name in tiles[0]}
    away = abs(query[:, :, None] - key[:, None, :])
    shares = [histogram(p[batch, head], away[batch], tuple(edges)) for batch, head in np.ndindex(b, h)]
    values["distance_histogram"] = np.array(shares).reshape(b, h, len(edges))
    return Plain(values, p, visible, query, key)


@pytest.fixture
def plain() -> Callable[..., Plain]:
    return plain_statistics


def _same_keys(found: np.ndarray, plain: Plain, tolerance: float) -> None:
    """Whether the keys named (b, h, n, top) are the strongest, in order: each has the weight of its rank."""
    distinct = all(len(set(row)) == len(row) for row in plain.key)
    for batch, head, i in np.ndindex(*found.shape[:3]):
        named, sees, row = found[batch, head, i], plain.visible[batch, head, i], plain.p[batch, head, i]
        ranked = sorted(row[sees], reverse=True)
        assert (named[len(ranked) :] == -1).all(), "a key is named where no further one is visible"
        for key, weight in zip(named, ranked, strict=False):
            if key == -1:
                assert weight < 1e-20, "a visible key is not named"
                continue
            near = abs(row[sees & (plain.key[batch] == key)] - weight) <= 10 * tolerance * weight + 1e-12
            assert near.any(), f"key {key} has not the weight {weight} of its rank"
        real = named[named != -1]
        assert not distinct or len(set(real)) == len(real), "a key is named twice"


FAINT = 1e-8
"""Attention too faint to be told from none."""


def same(found: dict[str, Tensor], plain: Plain, *, tolerance: float = 1e-5) -> None:
    for name, value in found.items():
        if name in ("top_key", "top_keys"):
            assert value.shape[:3] == plain.p.shape[:3], name
            _same_keys(value.numpy().reshape(*plain.p.shape[:3], -1), plain, tolerance)
            continue
        expected, got = plain.values[name], value.double().numpy()
        assert got.shape == expected.shape, name
        off = np.where(got == expected, 0, abs(got - expected))  # -inf is equal to itself
        wrong = ~(off <= tolerance * (1 + abs(expected)))
        if name.startswith("mean_query"):
            # A mean over next to nothing is as blurred as the sum that it is divided by; nothing itself is exact.
            total = plain.values[name.replace("mean_query", "received_sum")]
            wrong &= (total == 0) | (off * total > FAINT)
        assert not wrong.any(), f"{name}: {got[wrong][:5]} where {expected[wrong][:5]} is right"


@pytest.fixture
def assert_same() -> Callable[..., None]:
    return same


_UNWRITTEN = {kind: torch.iinfo(kind).max for kind in (torch.int32, torch.int64)}


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory asked for and not yet written reads as NaN, or as the largest integer."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            fresh = make(*args, **options)
            if fresh.is_floating_point():
                return fresh.fill_(math.nan)
            return fresh.fill_(True if fresh.dtype == torch.bool else torch.iinfo(fresh.dtype).max)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
            (Tensor, "new_empty_strided"),
        ):
            patch.setattr(owner, name, filled(getattr(owner, name)))
        yield


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {name: moved(each, device) for name, each in value.items()} if isinstance(value, dict) else value


def all_written(q: Tensor, k: Tensor, **options: Any) -> dict[str, Tensor]:
    """The statistics, computed in poisoned memory: none may leave a number unwritten, nor be of the wrong type."""
    from kernels.statistics import statistics

    device = place_of(options.get("implementation"))
    with poisoned():
        found = statistics(q.to(device), k.to(device), **moved(options, device))
    found = moved(found, "cpu")
    for name, value in found.items():
        if name in ("top_key", "top_keys"):
            assert value.dtype == torch.int64, name
            assert value.ne(_UNWRITTEN[torch.int64]).all(), f"{name} has numbers that were never written"
            assert value.ne(_UNWRITTEN[torch.int32]).all(), f"{name} has numbers that were never written"
        else:
            assert value.dtype == torch.promote_types(q.dtype, torch.float32), name
            assert not value.isnan().any(), f"{name} has numbers that were never written"
    return found


@pytest.fixture
def measure() -> Callable[..., dict[str, Tensor]]:
    return all_written
