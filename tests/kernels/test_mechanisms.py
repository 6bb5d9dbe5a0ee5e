"""Every Mechanism's forward against its dense map, and each formula against a second writing and by hand."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import kernels.mechanisms
from kernels.attention import attend
from kernels.mechanisms import Call, Mechanism, mechanism, mechanisms

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mechanisms.md"
HIDDEN, HEAD, VALUE = 12, 4, 3
Dense = Callable[..., tuple[Tensor, Tensor]]
every_entry = pytest.mark.parametrize("entry", mechanisms(), ids=lambda found: found.name)


def choices(found: Mechanism, h: int) -> list[dict[str, Any]]:
    """Settings that show something on a dozen tokens; an entry that is not named here is tried with its defaults."""
    return {
        "sliding_window": [{"window": 1}, {"window": 4}],
        "sink_window": [{"sink": 0, "window": 3}, {"sink": 2, "window": 2}],
        "clipped_softmax": [{"gamma": -0.2, "zeta": 1.1}, {"alpha": 0.4}],
        "output_gate": [
            {"gate": 0.3},
            {"gate": torch.rand(h)},
            {"bias": torch.randn(h)},
            {"weight": torch.randn(HIDDEN, h), "bias": torch.randn(h)},
            {"weight": torch.randn(HIDDEN, h * VALUE)},
        ],
        "frozen": [{"pattern": torch.rand(h, 6, 8)}, {"pattern": torch.rand(1, 20, 20).tril()}],
    }.get(found.name, [{}])


def required(found: Mechanism) -> dict[str, Tensor]:
    """The least that an entry asks for."""
    return {
        name: torch.ones([1] * len(parameter.tensor.split()))
        for name, parameter in found.parameters.items()
        if parameter.required
    }


def a_call(n: int = 5, m: int = 5, *, h: int = 4, g: int = 2, b: int = 1, d: int = HEAD, **options: Any) -> Call:
    """Random tensors, the last query on the last key."""
    call = Call(
        q=torch.randn(b, h, n, d),
        k=torch.randn(b, g, m, d),
        v=torch.randn(b, g, m, VALUE),
        scale=0.7,
        visible=None,
        causal=True,
        query_positions=torch.arange(m - n, m).expand(b, n),
        key_positions=torch.arange(m).expand(b, m),
        inputs=torch.randn(b, n, HIDDEN),
    )
    return replace(call, **options)


def with_logits(logits: list[float], **options: Any) -> Call:
    """One query of one head, whose logits are these."""
    key = torch.tensor(logits)[None, None, :, None]
    return replace(a_call(1, len(logits), h=1, g=1, d=1), q=torch.ones(1, 1, 1, 1), k=key, scale=1.0, **options)


def agree(entry: Mechanism, call: Call, chosen: dict[str, Any]) -> None:
    """forward == gate * (effective_map @ v), and what must be zero is."""
    values = entry.settings(chosen)
    p, out = entry.effective_map(call, values), entry.forward(call, values)
    assert p.shape == (*call.q.shape[:3], call.k.shape[2])
    assert out.dtype == call.q.dtype
    expected = p @ call.v.repeat_interleave(call.q.shape[1] // call.v.shape[1], dim=1)
    if entry.gate is not None:
        expected = expected * entry.gate(call, values)
    assert (out - expected).abs().max() <= 1e-5
    visible = call.sees().expand_as(p)
    assert p[~visible].eq(0).all()
    assert out[~visible.any(-1)].eq(0).all()


@every_entry
@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 3),
    g=st.integers(1, 2),
    n=st.integers(1, 9),
    past=st.integers(0, 7),
    causal=st.booleans(),
    mask=st.sampled_from(["none", "per head", "padding"]),
    softcap=st.none() | st.just(1.5),
    with_sink=st.booleans(),
    host_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_forward_is_the_gate_times_the_map_times_the_values(
    entry: Mechanism, group: int, g: int, n: int, past: int, causal: bool, mask: str, softcap: float | None,
    with_sink: bool, host_first: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    h, m = g * group, n + past
    sink = torch.randn(h) if with_sink else None
    call = a_call(n, m, h=h, g=g, b=2, causal=causal, softcap=softcap, sink=sink)
    if mask == "per head":
        visible = torch.rand(1, h, n, m) > 0.4
        visible[:, :, 0] = False
        call = replace(call, visible=visible)
    elif mask == "padding":
        empty = torch.tensor([[0], [min(2, m - 1)]])  # the second prompt begins later
        call = replace(
            call,
            visible=call.sees() & (call.key_positions >= empty)[:, None, None, :],
            query_positions=call.query_positions - empty,
            key_positions=call.key_positions - empty,
        )
    if host_first:
        call = replace(
            call, output=attend(call.q, call.k, call.v, scale=0.7, mask=call.sees(), softcap=softcap, sink=sink)
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "kernels.mechanisms.call.QUERIES_PER_BLOCK", 4
        )  # short prompts then have several, ragged ones too
        for chosen in choices(entry, h):
            agree(entry, call, chosen)


@every_entry
def test_keys_need_not_lie_in_the_order_of_their_positions(entry: Mechanism) -> None:
    call = a_call(5, 9)
    order = torch.randperm(9)
    shuffled = replace(call.keys(order), output=None)
    for chosen in choices(entry, 4):
        values = entry.settings(chosen)
        assert torch.allclose(entry.forward(shuffled, values), entry.forward(call, values), atol=1e-5)
        # What clipping leaves is a difference of near equals, so that rounding shows in absolute terms.
    found, expected = entry.effective_map(shuffled, values), entry.effective_map(call, values)[..., order]
    assert torch.allclose(found, expected, atol=1e-6)


@every_entry
def test_a_query_none_of_whose_keys_are_left_gives_zero_not_nan(entry: Mechanism) -> None:
    far = a_call(2, 3, key_positions=torch.tensor([[90, 91, 92]]))
    for chosen in choices(entry, 4):
        assert entry.forward(far, entry.settings(chosen)).eq(0).all()


@every_entry
def test_half_precision_is_computed_in_float32_and_given_back_as_it_came(entry: Mechanism) -> None:
    exact = a_call(33, 33, d=16)
    half = replace(exact, **{name: getattr(exact, name).bfloat16() for name in ("q", "k", "v", "inputs")})
    double = replace(half, **{name: getattr(half, name).double() for name in ("q", "k", "v", "inputs")})
    for chosen in choices(entry, 4):
        values = entry.settings(chosen)
        found, expected = entry.forward(half, values), entry.forward(double, values)
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).abs().max() <= 2**-8 * expected.abs().max()  # bfloat16 keeps eight bits


@every_entry
@pytest.mark.parametrize("host_first", [False, True])
def test_a_call_for_some_queries_gives_their_rows_of_the_whole(entry: Mechanism, host_first: bool) -> None:
    call = a_call(6, 9, visible=torch.rand(1, 4, 6, 9) > 0.3)
    if host_first:
        call = replace(call, output=attend(call.q, call.k, call.v, scale=0.7, mask=call.visible))
    for chosen in choices(entry, 4):
        values = entry.settings(chosen)
        some, whole = entry.forward(call.rows(slice(2, 4)), values), entry.forward(call, values)
        assert torch.allclose(some, whole[:, :, 2:4], atol=1e-5)


def test_a_call_for_some_keys_forgets_the_output_that_saw_them_all() -> None:
    call = a_call(output=torch.zeros(1, 4, 5, VALUE))
    assert call.keys(torch.arange(3)).output is None


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor made inside."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.found = max(self.found, made.untyped_storage().nbytes())
        return made


@every_entry
def test_the_map_of_a_long_prompt_is_never_held(entry: Mechanism) -> None:
    n, h = 3072, 2
    call, values = a_call(n, n, h=h, g=1), entry.settings(choices(entry, h)[0])
    with LargestTensor() as largest:
        entry.forward(call, values)
    assert largest.found <= h * n * n * 4 / 10


@pytest.mark.parametrize("name", ["sliding_window", "sink_window"])
def test_the_work_of_a_window_grows_with_the_length_and_not_with_its_square(name: str) -> None:
    entry = mechanism(name)
    work = []
    for n in (1024, 2048):
        call = a_call(n, n, h=2, g=1)
        with FlopCounterMode(display=False) as counted:
            entry.forward(call, entry.settings({"window": 64}))
        work.append(counted.get_total_flops())
    assert work[1] <= 2.2 * work[0]


# Each formula


def every_pair(call: Call) -> Tensor:
    return call.sees().expand(*call.q.shape[:3], call.k.shape[2])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("sink", "window"), [(0, 3), (2, 3), (1, 1)])
def test_windows_are_the_softmax_of_the_keys_they_leave(dense: Dense, causal: bool, sink: int, window: int) -> None:
    call = a_call(6, 8, causal=causal)
    left = torch.zeros(6, 8, dtype=torch.bool)
    for query, key in ((i, j) for i in range(6) for j in range(8)):
        behind = query + 2 - key
        left[query, key] = (abs(behind) < window or key < sink) and (behind >= 0 or not causal)
    expected, _ = dense(call.q, call.k, scale=0.7, visible=left.expand(1, 4, 6, 8))
    sinks = mechanism("sink_window")
    found = sinks.effective_map(call, sinks.settings({"sink": sink, "window": window}))
    assert torch.allclose(found.double(), expected, atol=1e-6)
    if sink == 0:
        plain = mechanism("sliding_window")
        assert torch.equal(plain.effective_map(call, plain.settings({"window": window})), found)


def test_a_window_counts_positions_of_the_text_where_keys_have_been_dropped() -> None:
    call = with_logits([0.0] * 4, query_positions=torch.tensor([[20]]), key_positions=torch.tensor([[0, 16, 18, 20]]))
    entry = mechanism("sink_window")
    p = entry.effective_map(call, entry.settings({"sink": 1, "window": 3}))
    assert torch.allclose(p.flatten(), torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]))


def test_sinks_begin_at_the_first_token_of_the_text_and_not_at_its_padding() -> None:
    call = with_logits(
        [0.0] * 6, query_positions=torch.tensor([[3]]), key_positions=torch.tensor([[-2, -1, 0, 1, 2, 3]])
    )
    entry = mechanism("sink_window")
    p = entry.effective_map(call, entry.settings({"sink": 1, "window": 1}))
    assert p.flatten().nonzero().flatten().tolist() == [2, 5]


def test_clipped_softmax_by_hand() -> None:
    entry, call = mechanism("clipped_softmax"), with_logits(torch.tensor([0.7, 0.2, 0.1]).log().tolist())
    p = entry.effective_map(call, entry.settings({"gamma": -0.25, "zeta": 1.25}))
    assert torch.allclose(p.flatten(), torch.tensor([0.8, 0.05, 0.0]), atol=1e-6)
    p = entry.effective_map(call, entry.settings({"gamma": 0, "zeta": 2}))
    assert torch.allclose(p.flatten(), torch.tensor([1.0, 0.4, 0.2]), atol=1e-6)


def test_clipped_softmaxs_alpha_is_shared_out_among_the_keys_that_are_seen() -> None:
    seen = torch.tensor([True, True, True, False])[None, None, None]
    call = with_logits([*torch.tensor([0.7, 0.2, 0.1]).log().tolist(), 5.0], visible=seen)
    entry = mechanism("clipped_softmax")
    p = entry.effective_map(call, entry.settings({"alpha": 0.3}))  # gamma = -0.1
    assert torch.allclose(p.flatten(), torch.tensor([0.67, 0.12, 0.01, 0.0]), atol=1e-6)


def test_clipped_softmax_that_stretches_nothing_is_softmax(dense: Dense) -> None:
    entry, call = mechanism("clipped_softmax"), a_call(5, 7, softcap=1.5, sink=torch.randn(4))
    p = entry.effective_map(call, entry.settings({"gamma": 0, "zeta": 1}))
    expected, _ = dense(call.q, call.k, scale=0.7, visible=every_pair(call), softcap=1.5, sink=call.sink)
    assert torch.allclose(p.double(), expected, atol=1e-6)


def test_off_by_one_adds_one_to_the_denominator_beside_the_hosts_own_sink() -> None:
    entry, logits = mechanism("off_by_one"), torch.tensor([1.0, 2.0]).log().tolist()
    p = entry.effective_map(with_logits(logits), {})
    assert torch.allclose(p.flatten(), torch.tensor([1 / 4, 2 / 4]), atol=1e-6)
    p = entry.effective_map(with_logits(logits, sink=torch.tensor([4.0]).log()), {})
    assert torch.allclose(p.flatten(), torch.tensor([1 / 8, 2 / 8]), atol=1e-6)


@pytest.mark.parametrize("elementwise", [False, True])
def test_the_output_gate_reads_the_layers_inputs_head_by_head(dense: Dense, elementwise: bool) -> None:
    call, entry = a_call(5, 7), mechanism("output_gate")
    size = VALUE if elementwise else 1
    weight, bias = torch.randn(HIDDEN, 4 * size), torch.randn(4 * size)
    p, _ = dense(call.q, call.k, scale=0.7, visible=every_pair(call))
    expected = p @ call.v.repeat_interleave(2, dim=1).double()
    for head in range(4):
        mine = slice(head * size, (head + 1) * size)
        expected[0, head] *= torch.sigmoid(call.inputs[0] @ weight[:, mine] + bias[mine]).double()
    found = entry.forward(call, entry.settings({"weight": weight, "bias": bias}))
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_a_gate_of_one_number_per_head_is_part_of_the_map_and_one_per_element_is_not() -> None:
    call, entry = a_call(), mechanism("output_gate")
    values = entry.settings({"gate": torch.tensor([0.0, 0.25, 0.5, 1.0])})
    assert torch.allclose(entry.effective_map(call, values).sum(-1)[0, :, 0], torch.tensor([0.0, 0.25, 0.5, 1.0]))
    values = entry.settings({"bias": torch.randn(4 * VALUE)})
    assert torch.allclose(entry.effective_map(call, values).sum(-1), torch.ones(()))


def test_the_output_gate_takes_the_output_that_the_host_has_computed() -> None:
    entry, done = mechanism("output_gate"), torch.randn(1, 4, 5, VALUE)
    assert torch.equal(entry.forward(a_call(output=done), entry.settings({"gate": 0.25})), done / 4)


def test_uniform_shares_a_row_out_among_the_keys_that_it_sees_whatever_their_logits() -> None:
    seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)[None, None]
    call = a_call(3, 4, visible=seen, sink=torch.randn(4))
    expected = torch.tensor([[1, 0, 0, 0], [1 / 3, 1 / 3, 0, 1 / 3], [0, 0, 0, 0]])
    assert torch.allclose(mechanism("uniform").effective_map(call, {}), expected.expand(1, 4, 3, 4))


def looked_at(name: str, call: Call) -> list[list[int]]:
    """Positions of the keys that each query of the first head looks at; one that looks at any spends 1 on it."""
    p = mechanism(name).effective_map(call, {})[0, 0]
    assert torch.isin(p, torch.tensor([0.0, 1.0])).all()
    return [call.key_positions[0, row.nonzero()[:, 0]].tolist() for row in p]


def a_window_and_padding() -> Call:
    """Positions -2 to 4, of which a query sees itself and two before it; position 2 is hidden from all but itself."""
    position = torch.arange(-2, 5)
    behind = position[:, None] - position[None, :]
    seen = (behind >= 0) & (behind < 3) & ((position != 2) | (behind == 0))
    return a_call(7, 7, visible=seen[None, None], query_positions=position[None], key_positions=position[None])


def test_first_token_is_the_start_of_the_text_or_of_what_a_window_leaves_and_never_padding() -> None:
    assert looked_at("first_token", a_call(3, 5)) == [[0], [0], [0]]
    assert looked_at("first_token", a_window_and_padding()) == [[], [], [0], [0], [0], [1], [3]]


def test_previous_token_steps_over_what_is_hidden_and_falls_back_on_the_query_itself() -> None:
    assert looked_at("previous_token", a_call(3, 3)) == [[0], [0], [1]]
    assert looked_at("previous_token", a_call(2, 3, causal=False)) == [[0], [1]]
    assert looked_at("previous_token", a_window_and_padding()) == [[-2], [-1], [0], [0], [1], [1], [3]]
    evicted = {"query_positions": torch.tensor([[9]]), "key_positions": torch.tensor([[9, 0, 7, 4]])}
    assert looked_at("previous_token", with_logits([0.0] * 4, **evicted)) == [[7]]
    blind = torch.tensor([[False, True]])[None, None]
    assert looked_at("previous_token", with_logits([0.0] * 2, visible=blind, query_positions=torch.zeros(1, 1))) == [[]]


def test_a_frozen_row_gives_the_weights_of_hidden_keys_to_the_others_and_keeps_its_sum() -> None:
    rows = [[1.0, 0, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.5]]  # the last parks 0.1 on a learned sink
    seen = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)[None, None]
    call, entry = a_call(4, 4, visible=seen), mechanism("frozen")
    p = entry.effective_map(call, entry.settings({"pattern": torch.tensor([rows])}))
    expected = torch.tensor([[0.0, 0, 0, 0], [0.2, 0.8, 0, 0], [0, 0.3 * 9 / 8, 0.5 * 9 / 8, 0]])
    assert torch.allclose(p[:, :, :3], expected.expand(1, 4, 3, 4))


def test_queries_beyond_a_frozen_pattern_follow_the_hosts_softmax(dense: Dense) -> None:
    call, entry = a_call(3, 6, softcap=1.5, sink=torch.randn(4)), mechanism("frozen")
    p = entry.effective_map(call, entry.settings({"pattern": torch.rand(4, 4, 4)}))
    expected, _ = dense(call.q, call.k, scale=0.7, visible=every_pair(call), softcap=1.5, sink=call.sink)
    same = [torch.allclose(p[:, :, row].double(), expected[:, :, row], atol=1e-6) for row in range(3)]
    assert same == [False, True, True]  # the queries are at positions 3, 4 and 5


def test_a_frozen_pattern_for_another_number_of_heads_is_refused() -> None:
    entry = mechanism("frozen")
    with pytest.raises(ValueError, match="pattern holds 3 maps, and there are 4 heads"):
        entry.forward(a_call(), entry.settings({"pattern": torch.ones(3, 2, 2)}))


# Settings


def test_some_heads_take_their_own_part_of_a_tensor_that_is_for_all_heads_of_a_layer() -> None:
    gate, some = mechanism("output_gate"), torch.tensor([1, 3])
    weight, bias = torch.randn(HIDDEN, 4 * VALUE), torch.randn(4)
    parts = gate.part({"gate": 0.5, "weight": weight, "bias": bias}, some, 4)
    assert parts["gate"] == 0.5
    assert torch.equal(parts["weight"], torch.cat([weight[:, 3:6], weight[:, 9:12]], dim=1))
    assert torch.equal(parts["bias"], bias[some])
    for_all = torch.rand(1, 5, 5)
    assert mechanism("frozen").part({"pattern": for_all}, some, 4)["pattern"] is for_all
    with pytest.raises(ValueError, match=r"^gate holds 2 parts, and the layer has 4 heads$"):
        gate.part({"gate": torch.rand(2)}, some, 4)


def test_settings_that_are_not_given_take_their_defaults_and_whole_numbers_become_ints() -> None:
    values = mechanism("sink_window").settings({"window": 7.0})
    assert values == {"sink": 4, "window": 7}
    assert isinstance(values["window"], int)
    assert "alpha" not in mechanism("clipped_softmax").settings({})


WINDOW = "window must be a whole number of at least 1"
SHARE = "a number of at least 0 and at most 1"


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        ("sliding_window", {"window": 0}, f"{WINDOW}, not 0"),
        ("sliding_window", {"window": 2.5}, f"{WINDOW}, not 2.5"),
        ("sliding_window", {"window": True}, f"{WINDOW}, not True"),
        ("sliding_window", {"window": "wide"}, f"{WINDOW}, not 'wide'"),
        ("sliding_window", {"window": torch.ones(3)}, f"{WINDOW}, not a tensor of shape (3,)"),
        ("sliding_window", {"sink": 4}, "sliding_window has no setting 'sink'; it has window"),
        ("off_by_one", {"one": 2}, "off_by_one has no setting 'one'; it has no settings"),
        ("clipped_softmax", {"gamma": 0.1}, "gamma must be a number of at most 0, not 0.1"),
        ("clipped_softmax", {"zeta": float("nan")}, "zeta must be a number of at least 1, not nan"),
        ("clipped_softmax", {"zeta": float("inf")}, "zeta must be a number of at least 1, not inf"),
        ("output_gate", {"gate": 1.5}, f"gate must be {SHARE}, or a tensor (h) of such numbers, not 1.5"),
        ("output_gate", {"gate": torch.tensor([0.5, 1.5])}, f"gate must hold {SHARE} in every place, and one is 1.5"),
        (
            "output_gate",
            {"gate": torch.tensor([float("nan")])},
            f"gate must hold {SHARE} in every place, and one is nan",
        ),
        ("frozen", {}, "frozen needs pattern, a tensor (h, n, m)"),
        ("frozen", {"pattern": torch.ones(2, 2)}, "pattern must be a tensor (h, n, m), not a tensor of shape (2, 2)"),
        (
            "frozen",
            {"pattern": torch.tensor([[[1.0, -0.5]]])},
            "pattern must hold a number of at least 0 in every place, and one is -0.5",
        ),
        ("output_gate", {"weight": 1.0}, "weight must be a tensor (hidden, gates), not 1.0"),
        ("output_gate", {"bias": torch.ones(2, 2)}, "bias must be a tensor (gates), not a tensor of shape (2, 2)"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_sentence(name: str, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mechanism(name).settings(wrong)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"gate": torch.rand(3)}, "gate holds 3 numbers, and there are 4 heads"),
        ({"weight": torch.randn(HIDDEN, 5)}, "weight is for 5 gates; 4 heads of size 3 take 4 or 12"),
        ({"weight": torch.randn(HIDDEN, 4), "bias": torch.randn(12)}, "bias is for 12 gates"),
        ({"weight": torch.randn(HIDDEN + 1, 4)}, "weight reads layer inputs of size 13"),
    ],
)
def test_a_gate_that_does_not_fit_the_heads_is_refused(chosen: dict[str, Any], sentence: str) -> None:
    entry = mechanism("output_gate")
    with pytest.raises(ValueError, match=sentence):
        entry.forward(a_call(), entry.settings(chosen))


# The registry


def test_an_unknown_mechanism_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="unknown mechanism 'windows'; there are clipped_softmax, first_token, "):
        mechanism("windows")


@every_entry
def test_an_entry_is_named_as_its_file_so_that_no_two_share_a_name(entry: Mechanism) -> None:
    assert sys.modules[f"kernels.mechanisms.{entry.name}"].MECHANISM is entry


@every_entry
def test_every_default_is_a_setting_that_would_be_accepted(entry: Mechanism) -> None:
    with_defaults = entry.settings(required(entry))
    assert entry.settings(with_defaults) == with_defaults
    assert all(parameter.meaning for parameter in entry.parameters.values())


@pytest.fixture
def as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's example, as a file beside the entries."""
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    (tmp_path / "every_other.py").write_text(block[1], encoding="utf-8")
    monkeypatch.setattr(kernels.mechanisms, "__path__", [*kernels.mechanisms.__path__, str(tmp_path)])
    yield "every_other"
    sys.modules.pop("kernels.mechanisms.every_other", None)


def test_one_new_file_in_the_folder_is_a_new_entry(as_the_page_says: str) -> None:
    entry = mechanism(as_the_page_says)
    assert entry in mechanisms()
    agree(entry, a_call(5, 9), {})
    agree(entry, a_call(4, 4, visible=torch.rand(1, 1, 4, 4) > 0.7), {})


def test_the_page_lists_every_entry_with_its_settings_and_no_other() -> None:
    rows = []
    for found in mechanisms():
        kept = ", ".join(
            f"`{name}`" + ("" if parameter.default is None else f" {parameter.default:g}")
            for name, parameter in found.parameters.items()
        )
        trained = "yes" if found.needs_training else "no"
        rows.append(f"| `{found.name}` | {found.title} | {found.paper} | {kept} | {trained} |")
    listed = PAGE.read_text(encoding="utf-8").split("| --- | --- | --- | --- | --- |\n")[1].split("\n\n")[0]
    assert listed.splitlines() == rows
