"""Changed attention: the reference against a row-by-row numpy writing, and every path against the reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.attention import attend, visible_in, visible_pairs
from kernels.reweight import Change, Changed, Move, Stream, Weight, attend_changed, blocks, paths, reference
from kernels.reweight.change import Call

Dense = Callable[..., tuple[Tensor, Tensor]]
MASKS = (None, "bidirectional", "window", "padding", "added", "lowest")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory asked for and not yet written reads as NaN."""
    new_empty = Tensor.new_empty

    def poisoned(*size: Any, **options: Any) -> Tensor:
        fresh = new_empty(*size, **options)
        return fresh.fill_(math.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


def everything(n: int) -> Tensor:
    return torch.ones(1, n, dtype=torch.bool)


def chosen(n: int, *places: int) -> Tensor:
    return torch.isin(torch.arange(n), torch.tensor(places))[None]


@dataclass(frozen=True)
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    change: Change
    options: dict[str, Any]

    def call(self) -> Call:
        plain = {"mask": None, "causal": True, "softcap": None, "sink": None, "lse": None}
        at = {"query_positions": None, "key_positions": None}
        return Call(self.q, self.k, self.v, **(plain | at | self.options))

    def run(self, path: str | None = None) -> Changed:
        return attend_changed(self.q, self.k, self.v, change=self.change, path=path, **self.options)

    def double(self) -> "Case":
        options = {
            name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.options.items()
        }
        if (mask := self.options.get("mask")) is not None and mask.dtype.is_floating_point:
            options["mask"] = mask.double().masked_fill(~visible_in(mask), -math.inf)
        return replace(self, q=self.q.double(), k=self.k.double(), v=self.v.double(), options=options)

    def exact(self) -> Changed:
        case = self.double()
        return reference.attend_changed(case.call(), case.change)


def random_mask(kind: str | None, b: int, h: int, n: int, m: int) -> Tensor | None:
    if kind is None or kind == "bidirectional":
        return None
    if kind == "window":
        return visible_pairs(n, m, window=5)
    if kind == "padding":
        real = torch.arange(m) >= torch.randint(0, max(1, m // 2), (b, 1))
        return visible_pairs(n, m) & real[:, None, None, :]
    hidden = torch.rand(b, h, n, m) < 0.4
    hidden[:, :, n // 2] = True  # a row that sees nothing, with or without a change
    lowest = torch.finfo(torch.float32).min if kind == "lowest" else -math.inf
    return torch.randn(b, h, n, m).masked_fill(hidden, lowest)


def random_change(b: int, h: int, n: int, m: int, d: int, weights: int, moves: int, streams: int) -> Change:
    """Heads differ, some are left as they are, and sets overlap."""

    def keys() -> Tensor:
        return torch.rand(b if torch.rand(()) < 0.5 else 1, m) < 0.3

    def queries() -> Tensor:
        return everything(n) if torch.rand(()) < 0.5 else torch.rand(b, n) < 0.6

    def factor() -> Tensor:
        usual = (5 * torch.randn(b, h)).exp()
        return usual.masked_fill(torch.rand(b, h) < 0.3, 1.0).masked_fill(torch.rand(b, h) < 0.2, 0.0)

    def move() -> Move:
        sources, others = keys(), keys()
        return Move(sources, others & ~sources, queries(), torch.rand(b, h).masked_fill(torch.rand(b, h) < 0.3, 0.0))

    def stream(place: int) -> Stream:
        heads = torch.rand(b, h) < 0.5
        return Stream(heads, 1 + place, 3 + place, torch.randn(b, h, n, d) if torch.rand(()) < 0.5 else None)

    return Change(
        tuple(Weight(keys(), queries(), factor().clamp_max(100), place % 2 == 0) for place in range(weights)),
        tuple(move() for _ in range(moves)),
        tuple(stream(place) for place in range(streams)),
    )


def random_case(
    *,
    b: int = 2,
    group: int = 2,
    g: int = 2,
    n: int = 20,
    past: int = 0,
    d: int = 8,
    e: int | None = None,
    mask: str | None = None,
    softcap: float | None = None,
    sink: bool = False,
    weights: int = 1,
    moves: int = 0,
    streams: int = 0,
    gaps: bool = False,
) -> Case:
    h, m = g * group, n + past
    q, k, v = 2 * torch.randn(b, h, n, d), torch.randn(b, g, m, d), torch.randn(b, g, m, e or d)
    options: dict[str, Any] = {
        "scale": d**-0.5,
        "mask": random_mask(mask, b, h, n, m),
        "causal": mask != "bidirectional",
        "softcap": softcap,
        "sink": torch.randn(h) if sink else None,
    }
    if gaps:
        keys = torch.randint(1, 4, (b, m)).cumsum(-1) - 4  # padding, text, and text with holes
        options |= {"query_positions": keys[:, past:], "key_positions": keys}
    return Case(q, k, v, random_change(b, h, n, m, d, weights, moves, streams), options)


def close(found: Changed, exact: Changed, tolerance: float = 1e-5) -> None:
    assert not found.output.isnan().any(), "an output was never written"
    assert (found.output - exact.output).abs().max() <= tolerance * max(1, exact.output.abs().max()), found.path
    assert int(found.rows_without_key) == int(exact.rows_without_key), found.path
    assert int(found.rows_without_target) == int(exact.rows_without_target), found.path


def capped(logits: Tensor, softcap: float | None) -> np.ndarray:
    return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).numpy()


def row_by_row(case: Case, dense: Dense) -> tuple[np.ndarray, int, int]:
    """The six steps of the specification in numpy, for one row of one head at a time."""
    call, change = case.double().call(), case.change
    (b, h, n, _), m = call.q.shape, call.m
    visible, bias = visible_pairs(n, m, causal=call.causal).expand(b, h, n, m), None
    if call.mask is not None:
        visible = visible_in(call.mask).expand(b, h, n, m)
        bias = None if call.mask.dtype == torch.bool else call.mask.expand(b, h, n, m)
    i, j = (x.expand(b, -1).numpy() for x in call.positions())

    def of(tensor: Tensor, batch: int) -> np.ndarray:
        return tensor.expand(b, -1)[batch].double().numpy()

    group, met = h // call.k.shape[1], np.zeros((b, h, n, m))
    shift, sees = np.zeros((b, h, n, m)), visible.numpy().copy()
    for batch, head, row in np.ndindex(b, h, n):
        for weight in change.weights:
            if weight.renormalise and of(weight.queries, batch)[row]:
                factor, held = of(weight.factor, batch)[head], of(weight.keys, batch) > 0
                if factor == 0:
                    sees[batch, head, row] &= ~held
                else:
                    shift[batch, head, row] += held * math.log(factor)
        for stream in change.streams:
            if of(stream.heads, batch)[head]:
                at, keys = i[batch, row], j[batch]
                near, first = (keys <= at) & (at - keys < stream.window), (keys >= 0) & (keys < stream.sink)
                sees[batch, head, row] &= first | near
                if stream.sink_queries is not None:
                    own, usual = (
                        capped(call.scale * x[batch, head, row].double() @ call.k[batch, head // group].T, call.softcap)
                        for x in (stream.sink_queries, call.q)
                    )
                    met[batch, head, row, first] = (own - usual)[first]
    added = torch.from_numpy(shift + met) if bias is None else torch.from_numpy(shift + met) + bias
    p = dense(
        call.q, call.k, scale=call.scale, visible=torch.from_numpy(sees), bias=added, softcap=call.softcap,
        sink=call.sink,
    )[0].numpy()  # fmt: skip
    emptied, stuck = int((visible.numpy().any(-1) & ~sees.any(-1)).sum()), 0
    output = np.zeros((b, h, n, call.v.shape[-1]))
    for batch, head, row in np.ndindex(b, h, n):
        line = p[batch, head, row]
        for move in change.moves:
            share = of(move.share, batch)[head] * of(move.queries, batch)[row]
            source, target = of(move.source, batch) > 0, of(move.target, batch) > 0
            given, there = share * line[source].sum(), line[target].sum()
            if there > 0:
                line[target] *= 1 + given / there
                line[source] *= 1 - share
            else:
                stuck += given > 0
        for weight in change.weights:
            if not weight.renormalise and of(weight.queries, batch)[row]:
                line[of(weight.keys, batch) > 0] *= of(weight.factor, batch)[head]
        output[batch, head, row] = line @ call.v[batch, head // (h // call.v.shape[1])].numpy()
    return output, emptied, int(stuck)


SHAPES: dict[str, Any] = {
    "b": st.integers(1, 2),
    "group": st.integers(1, 3),
    "g": st.integers(1, 2),
    "past": st.sampled_from([0, 0, 1, 9]),
    "mask": st.sampled_from(MASKS),
    "weights": st.integers(0, 3),
    "moves": st.integers(0, 2),
    "gaps": st.booleans(),
    "seed": st.integers(0, 9999),
}
ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(ANY, max_examples=60)
@given(
    n=st.integers(1, 12), softcap=st.sampled_from([None, 2.0]), sink=st.booleans(), streams=st.integers(0, 2), **SHAPES
)  # fmt: skip
def test_the_reference_is_what_the_steps_say_row_by_row(dense: Dense, seed: int, **shape: Any) -> None:
    torch.manual_seed(seed)
    case = random_case(**shape)
    output, emptied, stuck = row_by_row(case, dense)
    found = case.exact()
    assert np.abs(found.output.numpy() - output).max() < 1e-10
    assert (int(found.rows_without_key), int(found.rows_without_target)) == (emptied, stuck)


@settings(ANY, max_examples=120)
@given(
    n=st.sampled_from([1, 3, 17, 33, 40]), e=st.sampled_from([None, 5, 24]), softcap=st.sampled_from([None, None, 2.0]),
    sink=st.sampled_from([False, False, True]), streams=st.sampled_from([0, 0, 1, 2]), **SHAPES,
)  # fmt: skip
def test_every_path_that_serves_a_call_gives_what_the_reference_gives(
    monkeypatch: pytest.MonkeyPatch, seed: int, **shape: Any
) -> None:
    monkeypatch.setattr(paths, "QUERIES_PER_BLOCK", 7)
    torch.manual_seed(seed)
    if not (shape["weights"] or shape["moves"] or shape["streams"]):
        shape["weights"] = 1
    case = random_case(**shape)
    exact = case.exact()
    close(case.run(), exact)
    for path in ("rows", "columns", "stream", "blocks"):
        if paths.refusal(path, case.call(), case.change) is None:
            close(case.run(path), exact)


def place_of(path: str) -> torch.device:
    """Triton interprets its kernels where there is no GPU."""
    return torch.device("cuda" if path == "triton" and torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("changed", [{"weights": 3}, {"weights": 0, "moves": 2}, {"weights": 2, "moves": 1}])
def test_the_triton_path_gives_what_the_reference_gives(changed: dict[str, int]) -> None:
    with place_of("triton"):
        case = random_case(b=1, n=19, past=4, d=16, **changed)
        close(case.run("triton"), case.exact())


@pytest.mark.parametrize("d", [64, 96, 128, 256])
@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
def test_heads_of_usual_sizes_are_served(path: str, d: int) -> None:
    case = random_case(b=1, n=67, d=d, weights=2, moves=1)
    close(case.run(path), case.exact())


@pytest.mark.parametrize(("n", "past"), [(1, 0), (17, 0), (150, 0), (301, 0), (90, 211), (20, 3)])
@pytest.mark.parametrize(("sink", "window"), [(0, 1), (4, 3), (2, 70), (40, 100), (500, 5), (3, 500)])
def test_streaming_heads_see_sinks_and_window_at_every_length(n: int, past: int, sink: int, window: int) -> None:
    case = random_case(b=1, group=3, g=1, n=n, past=past)
    case = replace(case, change=Change(streams=(Stream(torch.ones(1, 3, dtype=torch.bool), sink, window),)))
    close(case.run("stream"), case.exact())


@pytest.mark.parametrize(("n", "past"), [(1, 30), (150, 0), (90, 211)])
@pytest.mark.parametrize(("sink", "window", "e"), [(0, 3, None), (4, 3, None), (3, 70, 5), (40, 100, 24), (3, 500, 8)])
@pytest.mark.parametrize("special", [{}, {"softcap": 2.0}, {"sink": True}])
def test_sinks_meet_queries_of_their_own_and_the_window_the_usual_ones(
    n: int, past: int, sink: int, window: int, e: int | None, special: dict[str, Any]
) -> None:
    case = random_case(b=2, group=3, g=2, n=n, past=past, e=e, **special)
    everyone = torch.ones(1, 6, dtype=torch.bool)
    stream = Stream(everyone, sink, window, 2 * torch.randn_like(case.q))
    found = replace(case, change=Change(streams=(stream,)))
    for path in ("stream", "blocks"):
        close(found.run(path), found.exact())
    usual = replace(case, change=Change(streams=(Stream(everyone, sink, window),))).exact()
    assert (found.exact().output - usual.output).abs().max() > (1e-2 if sink else -1)


def test_a_query_between_its_sinks_and_its_window_weighs_each_by_its_own_product() -> None:
    """Five keys, one sink, a window of two: query 4 sees keys 0, 3 and 4, and meets key 0 as log 6 instead of log 2."""
    q, own = (torch.tensor([math.log(x)]).expand(1, 1, 5, 1) for x in (2.0, 6.0))
    stream = Stream(torch.ones(1, 1, dtype=torch.bool), 1, 2, own)
    for path in ("rows", "stream", "blocks"):
        found = attend_changed(
            q, torch.ones(1, 1, 5, 1), torch.eye(5)[None, None], scale=1.0, change=Change(streams=(stream,)), path=path
        )
        assert found.output[0, 0, 4].tolist() == pytest.approx([0.6, 0, 0, 0.2, 0.2])


@pytest.mark.parametrize("special", [{"softcap": 2.0}, {"sink": True}])
def test_streaming_heads_may_have_soft_caps_and_learned_sinks(special: dict[str, Any]) -> None:
    case = random_case(n=200, **special)
    case = replace(case, change=Change(streams=(Stream(torch.ones(1, 4, dtype=torch.bool), 4, 20),)))
    found = case.run()
    assert found.path == "stream"
    close(found, case.exact())


def test_streaming_blocks_are_joined_where_not_all_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.reweight.stream.QUERIES_AT_ONCE", 128)
    case = random_case(n=700)
    case = replace(case, change=Change(streams=(Stream(torch.ones(1, 4, dtype=torch.bool), 4, 20),)))
    close(case.run("stream"), case.exact())


@pytest.mark.parametrize("heads", ["100000", "101010", "110110", "111011", "000111"])
def test_heads_of_one_group_that_stream_and_that_do_not_each_go_their_own_way(heads: str) -> None:
    case = random_case(b=2, group=3, g=2, n=90)
    streaming = torch.tensor([[mark == "1" for mark in heads]])
    weight = replace(case.change.weights[0], factor=torch.where(streaming, 1.0, case.change.weights[0].factor))
    case = replace(case, change=Change((weight,), streams=(Stream(streaming, 2, 9),)))
    found = case.run()
    assert found.path == "columns+stream"
    close(found, case.exact())


def test_a_streaming_head_that_is_weighed_too_goes_by_blocks_and_the_others_do_not_follow() -> None:
    case = random_case(b=1, group=2, g=2, n=40, weights=0)
    weight = Weight(chosen(40, 0, 1, 2), everything(40), torch.tensor([[0.1, 1, 0.1, 1]]), True)
    stream = Stream(torch.tensor([[True, True, False, False]]), 4, 6)
    case = replace(case, change=Change((weight,), streams=(stream,)))
    found = case.run()
    assert found.path == "blocks+columns+stream"
    close(found, case.exact())


def test_streams_of_several_kinds_and_rows_of_the_batch_that_differ_are_told_apart() -> None:
    case = random_case(b=2, group=2, g=2, n=40, weights=0)
    alike = Stream(torch.tensor([[True, False, False, False]]), 1, 6)
    other = Stream(torch.tensor([[False, True, False, True], [False, True, False, False]]), 3, 4)
    case = replace(case, change=Change(streams=(alike, other)))
    found = case.run()
    assert found.path == "blocks+columns+stream"
    close(found, case.exact())


def test_an_evicted_keys_place_is_not_taken_by_the_key_in_its_slot() -> None:
    """Slots 0 to 4 hold the tokens 0, 1, 7, 8 and 9: a window of 3 ends at token 7, and only two of four are sinks."""
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 5, 4)
    v = torch.eye(5)[None, None]
    at = {"query_positions": torch.tensor([[9]]), "key_positions": torch.tensor([[0, 1, 7, 8, 9]])}
    change = Change(streams=(Stream(torch.ones(1, 1, dtype=torch.bool), 1, 2),))
    found = attend_changed(q, k, v, scale=1.0, change=change, **at)
    assert torch.allclose(found.output[0, 0, 0], torch.tensor([1, 0, 0, 1, 1]) / 3)


def test_padding_before_the_text_is_no_sink() -> None:
    """Two tokens of padding, then five of text; the last sees text token 0, and the two last."""
    q, k, v = torch.zeros(1, 1, 7, 4), torch.zeros(1, 1, 7, 4), torch.eye(7)[None, None]
    positions = torch.arange(-2, 5)[None]
    mask = visible_pairs(7, 7) & (positions >= 0)
    change = Change(streams=(Stream(torch.ones(1, 1, dtype=torch.bool), 1, 2),))
    for path in ("rows", "blocks"):
        found = attend_changed(
            q, k, v, scale=1.0, change=change, mask=mask, query_positions=positions, key_positions=positions, path=path
        )
        assert torch.allclose(found.output[0, 0, -1], torch.tensor([0, 0, 1, 0, 0, 1, 1]) / 3)
        assert found.output[0, 0, :2].eq(0).all()
        assert int(found.rows_without_key) == 0, "padding saw no key before either"


def even(change: Change, m: int = 4, n: int = 1, path: str | None = None, **options: Any) -> Changed:
    """Attention that is even before the change; what comes out are the attention weights themselves."""
    q, k = torch.zeros(1, 1, n, 8), torch.zeros(1, 1, m, 8)
    return attend_changed(q, k, torch.eye(m)[None, None], scale=1.0, change=change, path=path, **options)


@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
def test_what_each_change_does_to_an_even_row_is_what_a_hand_computes(path: str) -> None:
    one, first, last = everything(1), chosen(4, 0), chosen(4, 2, 3)

    def row(*weights: Weight, moves: tuple[Move, ...] = ()) -> list[float]:
        return even(Change(weights, moves), path=path).output[0, 0, 0].tolist()

    def weight(keys: Tensor, factor: float, renormalise: bool) -> Weight:
        return Weight(keys, one, torch.tensor([[factor]]), renormalise)

    move = Move(first, last, one, torch.tensor([[0.5]]))
    assert row(weight(first, 3, True)) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert row(weight(first, 0, True)) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert row(weight(first, 3, False)) == pytest.approx([3 / 4, 1 / 4, 1 / 4, 1 / 4])
    assert row(weight(first, 0, False)) == pytest.approx([0, 1 / 4, 1 / 4, 1 / 4])
    assert row(moves=(move,)) == pytest.approx([1 / 8, 1 / 4, 5 / 16, 5 / 16])
    # The softmax's weight comes before the Move, the other after it, in whatever order they are given.
    both = row(weight(first, 0.5, False), weight(first, 3, True), moves=(move,))
    assert both == pytest.approx([1 / 8, 1 / 6, 1 / 6 + 1 / 8, 1 / 6 + 1 / 8])


@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
def test_knocked_out_keys_leave_no_trace_however_large_their_values(path: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, k, v = (torch.randn(1, 2, 20, 8).to(dtype) for _ in range(3))
        k[:, :, 3] = 40 * q[:, :, 10]  # a logit of hundreds
        change = Change((Weight(chosen(20, 3), everything(20), torch.zeros(1, 2), True),))
        expected = attend_changed(q, k, v, scale=1.0, change=change, path=path).output
        v[:, :, 3] = torch.finfo(dtype).max / 2
        assert torch.equal(attend_changed(q, k, v, scale=1.0, change=change, path=path).output, expected)


@pytest.mark.parametrize("path", ["rows", "columns", "blocks", "triton"])
def test_rows_left_without_a_key_are_zero_and_counted_and_those_that_had_none_are_not(path: str) -> None:
    """Of five queries two see nothing in any case, and one but the key that two of three heads are denied."""
    with place_of(path):
        change = Change((Weight(chosen(3, 0), everything(5), torch.tensor([[0.0, 1.0, 0.0]]), True),))
        q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 3, 8), torch.randn(2, 3, 3, 8)
        found = attend_changed(q, k, v, scale=1.0, change=change, path=path)
    assert found.output[:, :, :2].eq(0).all()
    assert found.output[:, [0, 2], 2].eq(0).all()
    assert found.output[:, 1, 2].ne(0).all()
    assert found.output[:, :, 3:].ne(0).all()
    assert int(found.rows_without_key) == 4, "two heads in each of two rows of the batch"


@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
def test_a_row_with_mass_to_move_and_no_target_in_sight_stays_as_it_was_and_is_counted(path: str) -> None:
    """The target is the last key: of four queries only the last sees it."""
    move = Move(chosen(4, 0), chosen(4, 3), everything(4), torch.tensor([[1.0]]))
    found = even(Change(moves=(move,)), n=4, path=path)
    assert torch.allclose(found.output[0, 0, 2], torch.tensor([1, 1, 1, 0]) / 3)
    assert torch.allclose(found.output[0, 0, 3], torch.tensor([0, 1, 1, 2]) / 4)
    assert int(found.rows_without_target) == 3


@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
def test_heads_with_factor_1_and_share_0_are_as_without_a_change(path: str) -> None:
    case = random_case(b=1, n=50, past=3, weights=4, moves=2)
    untouched = torch.tensor([[True, False, True, False]])
    weights = tuple(replace(w, factor=w.factor.masked_fill(untouched, 1.0)) for w in case.change.weights)
    moves = tuple(replace(m, share=m.share.masked_fill(untouched, 0.0)) for m in case.change.moves)
    found = replace(case, change=Change(weights, moves)).run(path).output
    plain = attend(case.q, case.k, case.v, scale=case.options["scale"], mask=visible_pairs(50, 53))
    assert (found - plain)[:, untouched[0]].abs().max() < 1e-6


@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
@pytest.mark.parametrize("log_weight", [-30.0, -10.0, -1.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("moved", [False, True])
def test_a_key_that_held_all_the_attention_is_damped_without_loss_of_the_rest(
    path: str, log_weight: float, renormalise: bool, moved: bool
) -> None:
    case = random_case(b=1, n=60)
    case.k[:, :, 0] = 0
    case.k[:, :, 0, 0] = 30.0
    case.q[..., 0] = 4.0  # the first key's logit stands about 40 above all others
    factor = torch.full((1, 4), math.exp(log_weight))
    moves = (Move(chosen(60, 0), chosen(60, 5, 6), everything(60), torch.full((1, 4), 0.3)),) if moved else ()
    weight = Weight(chosen(60, 0), everything(60), factor, renormalise)
    case = replace(case, change=Change((weight,), moves))
    close(case.run(path), case.exact())


def test_what_is_left_behind_a_knocked_out_key_is_moved_though_float32_could_not_hold_its_mass_before() -> None:
    """The first key stands 200 above the others: beside it their probabilities are 0 in float32."""
    case = random_case(b=1, n=60)
    case.k[:, :, 0] = 0
    case.k[:, :, 0, 0] = 150.0
    case.q[..., 0] = 4.0
    knock = Weight(chosen(60, 0), everything(60), torch.zeros(1, 4), True)
    move = Move(chosen(60, 1, 2), chosen(60, 5, 6), everything(60), torch.full((1, 4), 0.5))
    case = replace(case, change=Change((knock,), (move,)))
    close(case.run("columns"), case.exact())


def own_error(case: Case, bias: Tensor, exact: Tensor) -> float:
    """What PyTorch's SDPA is off by on the same weights, written as a dense mask that this type holds exactly."""
    q, k, v = case.q, case.k, case.v
    hidden = ~visible_pairs(case.q.shape[2], case.k.shape[2])
    mask = bias.to(q.dtype).expand(1, 1, *hidden.shape).masked_fill(hidden, -math.inf)
    found = scaled_dot_product_attention(q, k, v, mask, scale=case.options["scale"], enable_gqa=True)
    return float((found - exact).abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
@pytest.mark.parametrize("log_weight", [-30.0, -10.0, -1.0, 1.0, 5.0])
def test_half_precision_is_no_worse_than_twice_pytorchs_own_error(
    log_weight: float, path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "KEYS_AT_ONCE", 50)
    case = random_case(b=1, n=180, d=64)
    held = torch.rand(1, 180) < 0.3
    weight = Weight(held, everything(180), torch.full((1, 4), math.exp(log_weight)), True)
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    case = replace(case, q=q, k=k, v=v, change=Change((weight,)))
    exact = case.exact().output
    found = case.run(path).output
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 2 * own_error(case, held * log_weight, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["rows", "columns", "blocks"])
def test_moves_in_half_precision_are_no_worse_than_twice_pytorchs_own_error(path: str, dtype: torch.dtype) -> None:
    case = random_case(b=1, n=180, d=64, weights=0)
    move = Move(chosen(180, 0, 1), chosen(180, *range(9, 40)), everything(180), torch.full((1, 4), 0.6))
    q, k, v = (x.to(dtype) for x in (case.q, case.k, case.v))
    case = replace(case, q=q, k=k, v=v, change=Change(moves=(move,)))
    plain = reference.attend_changed(case.double().call(), Change()).output
    found = case.run(path).output
    assert (found - case.exact().output).abs().max() <= 2 * own_error(case, torch.zeros(()), plain)


def test_a_log_sum_exp_that_is_known_already_changes_nothing() -> None:
    case = random_case(b=1, n=40, weights=0, moves=2)
    logits = case.options["scale"] * case.q @ case.k.repeat_interleave(2, 1).mT
    lse = logits.masked_fill(~visible_pairs(40, 40), -math.inf).logsumexp(-1)
    close(replace(case, options=case.options | {"lse": lse}).run("columns"), case.exact())


class Largest(TorchDispatchMode):
    """The most numbers that any operation put into memory of its own."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in self.given:
            self.numbers = max(self.numbers, found.numel())
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decode_step_never_copies_its_cache(dtype: torch.dtype) -> None:
    case = random_case(b=1, group=4, g=2, n=1, past=6000, d=16, weights=2, moves=1, streams=1)
    case = replace(case, q=case.q.to(dtype), k=case.k.to(dtype), v=case.v.to(dtype))
    with Largest(case.k, case.v) as largest:
        assert case.run().path == "rows"
    assert largest.numbers < case.k.numel()


@pytest.mark.parametrize("streams", [False, True])
def test_a_long_prompts_map_is_never_formed(streams: bool) -> None:
    case = random_case(b=1, group=2, g=1, n=1500, d=8)
    if streams:
        case = replace(case, change=Change(streams=(Stream(torch.tensor([[True, False]]), 4, 60),)))
    with Largest() as largest:
        assert case.run().path == ("columns+stream" if streams else "columns")
    assert largest.numbers < 1500 * 1500 / 10


@pytest.mark.parametrize(
    ("path", "case"),
    [
        ("rows", {"n": 1, "past": 30}),
        ("columns", {"n": 30}),
        ("columns", {"n": 30, "mask": "window", "moves": 1}),
        ("columns", {"n": 30, "mask": "bidirectional"}),
        ("blocks", {"n": 30, "softcap": 2.0}),
        ("blocks", {"n": 30, "sink": True}),
        ("blocks", {"n": 30, "mask": "padding", "weights": 0, "streams": 1}),
    ],
)
def test_the_path_is_chosen_and_named(path: str, case: dict[str, Any]) -> None:
    assert path in random_case(b=1, **case).run().path.split("+")


@pytest.mark.parametrize(
    ("path", "case", "reason"),
    [
        ("columns", {"softcap": 2.0}, "soft-caps"),
        ("columns", {"streams": 1}, "no Streams"),
        ("columns", {"weights": 63}, "63 sets of keys"),
        ("stream", {}, "without Weights and Moves"),
        ("stream", {"weights": 0, "streams": 2}, "one and the same Stream"),
        ("triton", {"mask": "window"}, "takes no mask"),
        ("triton", {"weights": 6}, "16 are the most"),
        ("fast", {}, "one of rows, columns, triton, stream, blocks"),
    ],
)
def test_a_path_that_can_not_serve_says_why(path: str, case: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=path) as raised:
        random_case(n=40, **case).run(path)
    assert reason in str(raised.value)


def test_more_sets_of_keys_than_columns_can_tell_apart_go_by_blocks() -> None:
    case = random_case(b=1, n=20, weights=63)
    case = replace(case, change=Change(tuple(replace(w, factor=w.factor * 0.1 + 0.9) for w in case.change.weights)))
    found = case.run()
    assert found.path == "blocks"
    close(found, case.exact())


WRONG: dict[str, Callable[[], object]] = {
    "factor": lambda: Weight(chosen(4, 0), everything(4), torch.tensor([[-1.0]]), True),
    "factor ": lambda: Weight(chosen(4, 0), everything(4), torch.tensor([[math.inf]]), True),
    "keys": lambda: Weight(torch.ones(1, 4), everything(4), torch.ones(1, 1), True),
    "share": lambda: Move(chosen(4, 0), chosen(4, 1), everything(4), torch.tensor([[1.1]])),
    "share ": lambda: Move(chosen(4, 0), chosen(4, 1), everything(4), torch.tensor([[math.nan]])),
    "source and target": lambda: Move(chosen(4, 0, 1), chosen(4, 1), everything(4), torch.ones(1, 1)),
    "source of a Move has 5 keys": lambda: Move(chosen(5, 0), chosen(4, 1), everything(4), torch.ones(1, 1)),
    "sink": lambda: Stream(torch.ones(1, 1, dtype=torch.bool), -1, 4),
    "window": lambda: Stream(torch.ones(1, 1, dtype=torch.bool), 1, 0),
    "sink_queries of a Stream": lambda: even(
        Change(streams=(Stream(torch.ones(1, 1, dtype=torch.bool), 1, 1, torch.ones(1, 1, 2, 8)),))
    ),
    "heads of a Stream must be bool": lambda: Stream(torch.ones(1, 1), 1, 1),
    "change is empty": lambda: even(Change()),
    "scale": lambda: attend_changed(
        *(torch.ones(1, 1, 1, 4),) * 3,
        scale=0.0,
        change=Change((Weight(chosen(1, 0), everything(1), torch.ones(1, 1), True),)),
    ),
    r"keys of a Weight has the shape \(1, 5\)": lambda: even(
        Change((Weight(chosen(5, 0), everything(1), torch.ones(1, 1), True),))
    ),
    r"queries of a Move has the shape \(1, 4\)": lambda: even(
        Change(moves=(Move(chosen(4, 0), chosen(4, 1), everything(4), torch.ones(1, 1)),))
    ),
    r"heads of a Stream has the shape \(1, 2\)": lambda: even(
        Change(streams=(Stream(torch.ones(1, 2, dtype=torch.bool), 1, 1),))
    ),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_field_that_does_not_fit_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=field.strip()):
        WRONG[field]()
