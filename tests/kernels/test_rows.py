"""Rewritten rows: the reference against a writing in float64, row by row, few rows against both, and the papers."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.attention import attend, visible_in, visible_pairs
from kernels.rows import Boost, Redistribution, Rewritten, attend_rows, few, reference

MASKS = ("causal", "bidirectional", "window", "padding", "added", "lowest")
SHAPES = {"a decode step": (1, 11), "a few queries": (5, 11), "a prefill": (21, 21), "a chunk": (18, 23)}
WAYS = [pytest.param(reference.attend_rows, id="reference"), pytest.param(attend_rows, id="few rows")]
Way = Callable[..., Rewritten]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts even of small shapes."""
    monkeypatch.setattr(few, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(few, "KEYS_AT_ONCE", 4)


def among(size: int, *places: int) -> Tensor:
    return torch.isin(torch.arange(size), torch.tensor(places).remainder(size))[None]


def everything(size: int) -> Tensor:
    return torch.ones(1, size, dtype=torch.bool)


@dataclass(frozen=True)
class Case:
    """Two rows of a batch, four heads that share two KV heads."""

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor
    options: dict[str, Any]

    def run(self, way: Way, *parts: Boost | Redistribution) -> Rewritten:
        boosts = [part for part in parts if isinstance(part, Boost)]
        redistributions = [part for part in parts if isinstance(part, Redistribution)]
        given = {"boosts": boosts, "redistributions": redistributions}
        return way(self.q, self.k, self.v, self.output, **given, **self.options)

    @property
    def mask(self) -> Tensor:
        """What is visible, (2, 4, n, m)."""
        n, m = self.q.shape[2], self.k.shape[2]
        given = self.options["mask"]
        visible = visible_pairs(n, m, causal=self.options["causal"]) if given is None else visible_in(given)
        return visible.expand(2, 4, n, m)


def case_of(n: int, m: int, mask: str = "causal", dtype: torch.dtype = torch.float32, **more: Any) -> Case:
    q, k, v = torch.randn(2, 4, n, 8) * 2, torch.randn(2, 2, m, 8), torch.randn(2, 2, m, 6)
    given: Tensor | None = None
    match mask:
        case "window":
            given = visible_pairs(n, m, window=4)
        case "padding":
            given = visible_pairs(n, m)[None, None] & (torch.arange(m) >= torch.tensor([[3], [0]]))[:, None, None]
        case "added":
            given = torch.randn(2, 4, n, m).masked_fill(~visible_pairs(n, m), -math.inf)
        case "lowest":
            given = torch.zeros(n, m).masked_fill(~visible_pairs(n, m, window=5), torch.finfo(torch.float32).min)
    options = {"scale": 0.6, "mask": given, "causal": mask != "bidirectional", "softcap": None, "sink": None} | more
    q, k, v, output = (x.to(dtype) for x in (q, k, v, torch.randn(2, 4, n, 6)))
    return Case(q, k, v, output, options)


def parts_of(n: int, m: int) -> list[Boost | Redistribution]:
    """One of each, on other keys, queries, heads and rows of the batch."""
    strength = torch.tensor([[0.7, 0.0, -0.4, 1.5], [0.0, 0.3, 0.2, 0.0]])
    rows = torch.cat([among(n, -1), among(n, -1, -2, 0)])
    image, sinks = among(m, 1, 2, 3, 5, 6, -3, -4), torch.cat([among(m, 0, 2, -2), among(m, 0, 3, -3)])
    heads = torch.tensor([[True, True, False, True], [False, True, True, True]])
    return [
        Boost(image, rows, strength, "absolute"),
        Boost(among(m, 0, 1), everything(n), torch.tensor([[1.3, 0.5, 1.0, 1.0]]), "multiply"),
        Boost(torch.cat([image, ~image]), among(n, -1, -3), strength / 2, "across heads"),
        Redistribution(sinks, image, among(n, -1, -2, -3), heads, give=0.6, ratio=0.3, floor=0.1),
        Redistribution(sinks, image, rows, everything(4), give=0.9, ratio=0.5, floor=0.0),
    ]


@dataclass
class Row:
    """One query of one row of the batch, in plain numbers: s[head][key], and p[head][key] of the keys that it sees."""

    case: Case
    batch: int
    i: int
    centric: int = 0
    without: int = 0

    def __post_init__(self) -> None:
        case, m = self.case, self.case.k.shape[2]
        q, k = case.q[self.batch, :, self.i].double(), case.k[self.batch].double()
        self.s = [[case.options["scale"] * float(q[h] @ k[h // 2, j]) for j in range(m)] for h in range(4)]
        self.touched = [False] * 4

    def own(self, tensor: Tensor) -> list[Any]:
        return tensor[self.batch % len(tensor)].tolist()

    def boost(self, part: Boost) -> None:
        if not self.own(part.queries)[self.i]:
            return
        mean = [sum(abs(self.s[h][j]) for h in range(4)) / 4 for j in range(len(self.s[0]))]
        for h, by in enumerate(self.own(part.strength)):
            self.touched[h] |= by != (1 if part.kind == "multiply" else 0)
            for j in (j for j, inside in enumerate(self.own(part.keys)) if inside):
                old = self.s[h][j]
                new = {"absolute": old + by * abs(old), "multiply": old * by, "across heads": old + by * mean[j]}
                self.s[h][j] = new[part.kind]

    def normalise(self) -> None:
        softcap, sink, mask = (self.case.options[name] for name in ("softcap", "sink", "mask"))
        self.p = []
        for h in range(4):
            seen = self.case.mask[self.batch, h, self.i].nonzero()[:, 0].tolist()
            s = {j: softcap * math.tanh(self.s[h][j] / softcap) if softcap else self.s[h][j] for j in seen}
            if mask is not None and mask.dtype != torch.bool:
                s = {j: x + float(mask.expand(*self.case.mask.shape)[self.batch, h, self.i, j]) for j, x in s.items()}
            below = sum(math.exp(x) for x in s.values()) + (0 if sink is None else math.exp(float(sink[h])))
            self.p.append({j: math.exp(x) / below for j, x in s.items()})

    def redistribute(self, part: Redistribution) -> None:
        if not self.own(part.queries)[self.i]:
            return
        for h in (h for h, chosen in enumerate(self.own(part.heads)) if chosen):
            p = self.p[h]
            sinks, image = ({j for j in p if self.own(set_)[j]} for set_ in (part.sinks, part.image))
            total, held, target = (sum(p[j] for j in some) for some in (image, sinks, image - sinks))
            if total == 0 or total < part.floor:
                continue
            self.without += held > 0 and target == 0
            if target / total >= part.ratio:
                self.centric += 1
                if held > 0 and target > 0:
                    self.touched[h] = True
                    times = dict.fromkeys(image, 1 + part.give * held / target) | dict.fromkeys(sinks, 1 - part.give)
                    self.p[h] = {j: x * times.get(j, 1) for j, x in p.items()}


def by_hand(case: Case, parts: Sequence[Boost | Redistribution]) -> tuple[Tensor, int, int]:
    """Row by row, number by number, in float64."""
    output, centric, without = case.output.double(), 0, 0
    for batch, i in itertools.product(range(2), range(case.q.shape[2])):
        row = Row(case, batch, i)
        for part in parts:
            if isinstance(part, Boost):
                row.boost(part)
        row.normalise()
        for part in parts:
            if isinstance(part, Redistribution):
                row.redistribute(part)
        for h in (h for h in range(4) if row.touched[h]):
            v = case.v[batch, h // 2].double()
            output[batch, h, i] = sum((x * v[j] for j, x in row.p[h].items()), torch.zeros(6).double())
        centric, without = centric + row.centric, without + row.without
    return output, centric, without


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", MASKS)
def test_rewritten_rows_are_those_of_the_formulas(way: Way, shape: str, mask: str, small: None) -> None:
    case = case_of(*SHAPES[shape], mask)
    parts = parts_of(*SHAPES[shape])
    found, (expected, centric, without) = case.run(way, *parts), by_hand(case, parts)
    assert (found.output - expected).abs().max() <= 1e-5
    assert (int(found.rows_image_centric), int(found.rows_without_target)) == (centric, without)
    assert centric > 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", ["a decode step", "a prefill"])
@pytest.mark.parametrize("more", [{"softcap": 1.5}, {"sink": torch.tensor([0.5, -1, 2, 3])}], ids=["softcap", "sink"])
def test_soft_caps_come_after_a_boost_and_learned_sinks_join_the_normaliser(
    way: Way, shape: str, more: dict[str, Any], small: None
) -> None:
    case = case_of(*SHAPES[shape], "padding", **more)
    parts = parts_of(*SHAPES[shape])
    found, (expected, centric, without) = case.run(way, *parts), by_hand(case, parts)
    assert (found.output - expected).abs().max() <= 1e-5
    assert (int(found.rows_image_centric), int(found.rows_without_target)) == (centric, without)


@pytest.mark.parametrize("shape", ["a decode step", "a prefill"])
def test_half_precision_is_rounded_at_the_end_alone(shape: str, small: None) -> None:
    case = case_of(*SHAPES[shape], dtype=torch.bfloat16)
    found, (expected, _, _) = case.run(attend_rows, *parts_of(*SHAPES[shape])), by_hand(case, parts_of(*SHAPES[shape]))
    assert found.output.dtype == torch.bfloat16
    assert torch.equal(found.output, expected.float().bfloat16())


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_nothing_rewrites_keep_their_output_bit_for_bit(shape: str) -> None:
    n, m = SHAPES[shape]
    case = case_of(n, m)
    strength = torch.tensor([[0.5, 0.0, 0.0, -0.5]])
    found = case.run(attend_rows, Boost(among(m, 1, 2), among(n, -1), strength, "absolute")).output
    changed = (found != case.output).any(-1)
    assert torch.equal(changed, (among(n, -1)[:, None, :] & (strength != 0)[:, :, None]).expand(2, 4, n))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "neutral"), [("absolute", 0.0), ("multiply", 1.0), ("across heads", 0.0)])
def test_a_neutral_boost_is_the_identity(way: Way, kind: Any, neutral: float) -> None:
    case = case_of(21, 21)
    boost = Boost(among(21, 1, 2), everything(21), torch.full((1, 4), neutral), kind)
    assert torch.equal(case.run(way, boost).output, case.output)
    assert boost.neutral == neutral


def test_boosted_logits_never_fall_where_multiplied_ones_do() -> None:
    s = torch.randn(1, 4, 3, 7)
    of = {"keys": everything(7), "queries": everything(3)}
    for kind in ("absolute", "across heads"):
        assert (reference.boosted(s, Boost(**of, strength=torch.full((1, 4), 0.7), kind=kind)) >= s).all()
    multiplied = reference.boosted(s, Boost(**of, strength=torch.full((1, 4), 1.15), kind="multiply"))
    assert torch.equal(multiplied < s, s < 0)


def test_across_heads_every_head_gets_the_same_boost() -> None:
    s = torch.randn(1, 4, 3, 7)
    boost = Boost(everything(7), everything(3), torch.full((1, 4), 0.5), "across heads")
    added = reference.boosted(s, boost) - s
    assert torch.allclose(added, 0.5 * s.abs().mean(1, keepdim=True).expand_as(s), atol=1e-6)


def weights_of(*rows: Sequence[float]) -> Tensor:
    """Attention of a head each, one query: (1, heads, 1, keys)."""
    return torch.tensor(rows)[None, :, None]


def var(p: Tensor, sinks: Sequence[int], image: Sequence[int], **more: Any) -> reference.Redistributed:
    m = p.shape[-1]
    given = {"give": 0.6, "ratio": 0.8, "floor": 0.2} | more
    every = torch.ones(1, p.shape[1], dtype=torch.bool)
    return reference.redistributed(p, Redistribution(among(m, *sinks), among(m, *image), everything(1), every, **given))


def test_every_sink_gives_and_the_image_receives_in_proportion_so_that_rows_sum_to_one() -> None:
    p = weights_of([0.4, 0.05, 0.3, 0.1, 0.15])  # a sink in the text, one in the image, two receivers, a question
    found = var(p, sinks=[0, 1], image=[1, 2, 3])
    given = 0.6 * 0.45
    expected = weights_of([0.16, 0.02, 0.3 + given * 0.75, 0.1 + given * 0.25, 0.15])
    assert torch.allclose(found.p, expected, atol=1e-7)
    assert torch.allclose(found.p.sum(-1), torch.ones(1), atol=1e-6)


def test_random_rows_keep_their_sums() -> None:
    p = torch.randn(2, 6, 9, 30).mul(2).softmax(-1)
    every = Redistribution(among(30, 0, 5, 9), among(30, *range(4, 20)), everything(9), everything(6), 0.7, 0.5, 0.2)
    found = reference.redistributed(p, every)
    assert found.changed.any()
    assert not found.changed.all()
    assert (found.p.sum(-1) - 1).abs().max() <= 1e-5
    assert torch.equal(found.p[~found.changed], p[~found.changed])


@pytest.mark.parametrize("more", [{"give": 0.0}, {"sinks": []}])
def test_nothing_given_or_no_sink_to_give_changes_nothing(more: dict[str, Any]) -> None:
    p = weights_of([0.4, 0.05, 0.3, 0.1, 0.15])
    found = var(p, **({"sinks": [0, 1], "image": [1, 2, 3]} | more))
    assert torch.equal(found.p, p)
    assert not found.changed.any()
    assert int(found.rows_without_target) == 0


def test_the_ratio_is_the_least_share_of_the_image_that_its_other_tokens_hold() -> None:
    p = weights_of([0.5, 0.05, 0.2, 0.25], [0.5, 0.15, 0.1, 0.25], [0.8, 0.01, 0.1, 0.09])
    # Of the image the two tokens that are no sink hold 0.8 and 0.4; the third head hardly looks at it.
    assert var(p, [0, 1], [1, 2], ratio=0.75).changed[0, :, 0].tolist() == [True, False, False]
    assert var(p, [0, 1], [1, 2], ratio=0.3).changed[0, :, 0].tolist() == [True, True, False]
    assert var(p, [0, 1], [1, 2], ratio=0.85).changed[0, :, 0].tolist() == [False, False, False]
    assert var(p, [0, 1], [1, 2], ratio=0.3, floor=0.1).changed[0, :, 0].tolist() == [True, True, True]


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.8])
def test_the_released_codes_rho_is_one_minus_the_ratio(rho: float) -> None:
    p = torch.randn(1, 64, 1, 12).softmax(-1)
    sinks_hold = p[..., [1, 2]].sum(-1) / p[..., 1:6].sum(-1)
    expected = (sinks_hold <= rho) & (p[..., 1:6].sum(-1) >= 0.2)
    assert torch.equal(var(p, [1, 2], range(1, 6), ratio=1 - rho).changed, expected)


@pytest.mark.parametrize("ratio", [0.0, 0.8])
def test_an_image_of_sinks_alone_leaves_the_row_as_it_is_and_counts_it(ratio: float) -> None:
    p = weights_of([0.4, 0.2, 0.3, 0.1], [0.9, 0.05, 0.04, 0.01])
    found = var(p, sinks=[0, 1, 2], image=[1, 2], ratio=ratio)
    assert torch.equal(found.p, p)
    assert int(found.rows_without_target) == 1  # the second head hardly looks at the image


def test_an_image_that_a_row_can_not_see_gives_no_nan() -> None:
    p = weights_of([1.0, 0, 0, 0])
    found = var(p, sinks=[0, 1], image=[1, 2], ratio=0.0, floor=0.0)
    assert torch.equal(found.p, p)
    assert int(found.rows_image_centric) == 0


def test_shuffled_heads_are_as_many_and_each_takes_the_rows_of_another() -> None:
    gate = torch.rand(3, 8, 5) < 0.5
    heads = torch.tensor([[True] * 8, [True, False] * 4, [False] * 7 + [True]])
    for seed in range(5):
        found = reference.of_another_head(gate, heads, seed)
        assert torch.equal(found.sum(1), gate.sum(1))
        assert torch.equal(found[~heads], gate[~heads])
        assert torch.equal(found[2], gate[2])
    names = torch.eye(8, dtype=torch.bool)[None].expand(3, 8, 8)
    taken = reference.of_another_head(names, heads, seed=3).int().argmax(-1)
    assert (taken[0] != torch.arange(8)).all()
    assert (taken[1, ::2] != torch.arange(0, 8, 2)).all()
    assert not torch.equal(taken[0], reference.of_another_head(names, heads, seed=4).int().argmax(-1)[0])


def test_a_shuffled_redistribution_rewrites_as_many_heads_and_the_same_ones_each_time() -> None:
    p = weights_of(*[[0.3, 0.1, 0.4, 0.2]] * 3, *[[0.9, 0.02, 0.05, 0.03]] * 5)
    plain, shuffled = var(p, [0], [1, 2]), var(p, [0], [1, 2], shuffle=1)
    assert plain.changed.sum() == shuffled.changed.sum() == 3
    assert not torch.equal(plain.changed, shuffled.changed)
    assert torch.equal(shuffled.p, var(p, [0], [1, 2], shuffle=1).p)
    assert torch.allclose(shuffled.p.sum(-1), torch.ones(1), atol=1e-6)


def test_a_row_without_keys_puts_out_zero() -> None:
    case = case_of(5, 5, "padding")
    boost = Boost(among(5, 1), everything(5), torch.ones(1, 4), "absolute")
    for way in (reference.attend_rows, attend_rows):
        assert torch.equal(case.run(way, boost).output[0, :, :3], torch.zeros(4, 3, 6))


def test_only_the_named_rows_of_a_prefill_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = case_of(300, 300), []

    def watched(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(q.shape[2])
        return scores(q, *rest, **options)

    scores = few.scores
    monkeypatch.setattr(few, "scores", watched)
    case.run(attend_rows, Boost(among(300, 1), among(300, -1, 7), torch.ones(1, 4), "absolute"))
    assert seen == [2]
    plain = attend(case.q, case.k, case.v, scale=0.6, mask=visible_pairs(300, 300))
    nothing = Boost(~everything(300), everything(300), torch.ones(1, 4), "absolute")
    assert torch.allclose(case.run(attend_rows, nothing).output, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"keys": torch.ones(1, 7, dtype=torch.bool)}, r"keys of a Boost has the shape \(1, 7\).* \(2 or 1, 11\)"),
        ({"queries": torch.ones(3, 5, dtype=torch.bool)}, "queries of a Boost has the shape"),
        ({"strength": torch.ones(1, 2)}, "strength of a Boost has the shape"),
        ({"keys": torch.ones(1, 11)}, "keys of a Boost must be bool"),
        ({"kind": "loud"}, "kind of a Boost is 'loud'"),
    ],
)
def test_a_boost_that_does_not_fit_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {
        "keys": everything(11),
        "queries": everything(5),
        "strength": torch.ones(1, 4),
        "kind": "absolute",
    }
    with pytest.raises(ValueError, match=sentence):
        case_of(5, 11).run(attend_rows, Boost(**(given | wrong)))


@pytest.mark.parametrize("field", ["give", "ratio", "floor"])
def test_a_redistribution_out_of_range_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} of a Redistribution is 1.5"):
        var(weights_of([0.5, 0.5]), [0], [1], **{field: 1.5})
    with pytest.raises(ValueError, match="nothing is rewritten"):
        case_of(5, 11).run(attend_rows)
