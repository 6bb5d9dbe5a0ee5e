"""Keys that the same sets of a Change hold weigh alike: what is changed is one weight per row and class of keys.

Renormalising Weights give the log weights themselves. Moves and Weights that do not renormalise are algebra on the
mass M_c that each class then holds: a Move multiplies the source's by 1 - share and the target's by 1 + share a / t, a
Weight multiplies what it names. With f_c the product of these, the softmax with log f_c added to the logits is the
changed row but for its sum, sum_c f_c M_c, which multiplies the output.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from kernels.attention.reference import visible_in
from kernels.reweight.change import Call, Change, Move
from kernels.reweight.columns import append_columns
from kernels.reweight.reference import FAINT, per_head
from kernels.statistics import statistics

MOST_SETS = 62
"""Which sets hold a key is written in the bits of one integer."""


@dataclass(frozen=True)
class Classes:
    """of_key: every key's class, from 0, which is that of the keys in no set. Class 0 is there without any keys, too.

    weights, sources, targets: which classes each Weight, and the source and target of each Move, holds.
    """

    of_key: Int[Tensor, "#b m"]
    count: int
    weights: list[Bool[Tensor, " classes"]]
    sources: list[Bool[Tensor, " classes"]]
    targets: list[Bool[Tensor, " classes"]]


@dataclass(frozen=True)
class ClassWeights:
    """What a Change comes to: softmax with log_weights[..., class of j] added to s_ij, times row_sums.

    -inf hides a class's keys. Rows that are not `alive` see no key: their output is zero whatever comes out. row_sums
    is None where all rows sum to 1.
    """

    classes: Classes
    log_weights: Float[Tensor, "#b h #n classes"]
    row_sums: Float[Tensor, "b h n"] | None
    alive: Bool[Tensor, "#b h n"]
    rows_without_key: Tensor
    rows_without_target: Tensor

    def finish(self, output: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        """The changed output, from that of the softmax with the log weights."""
        if self.row_sums is not None:
            output = (output * self.row_sums[..., None]).to(output.dtype)
        return torch.where(self.alive[..., None], output, 0)


def class_weights(call: Call, change: Change, measure: "Measure | None" = None) -> ClassWeights:
    """Without Streams, soft-caps and learned sinks. Where masses are needed, `measure` passes over q.k."""
    classes = classify(call, change)
    seen = seen_classes(call, classes)
    log_weights = shifts(change, classes)
    left = seen & ~log_weights.isneginf()
    emptied = (seen.any(-1) & ~left.any(-1)).expand(call.q.shape[:3])
    row_sums, stuck = None, torch.zeros((), dtype=torch.int64, device=call.q.device)
    if change.moves or not all(weight.renormalise for weight in change.weights):
        mass = torch.where(left, (measure or masses)(call, classes, log_weights), 0)
        # They sum to 1 but for what they, or the log-sum-exp, were rounded by.
        mass = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
        for move, source, target in zip(change.moves, classes.sources, classes.targets, strict=True):
            factors, missed = moving(move, source, target, mass)
            mass, log_weights, stuck = mass * factors, log_weights + factors.log(), stuck + missed
        for weight, held in zip(change.weights, classes.weights, strict=True):
            if not weight.renormalise:
                factors = torch.where(weight.queries[:, None, :, None] & held, per_head(weight.factor.float()), 1)
                mass, log_weights = mass * factors, log_weights + factors.log()
        left = seen & ~log_weights.isneginf()
        row_sums = mass.sum(-1)
    return ClassWeights(classes, log_weights, row_sums, left.any(-1), emptied.sum(), stuck)


Measure = Callable[[Call, Classes, Tensor], Tensor]
"""How `masses` may be had."""


def classify(call: Call, change: Change) -> Classes:
    """Sorts the keys by which of the sets hold them."""
    sets = [
        *(weight.keys for weight in change.weights),
        *(move.source for move in change.moves),
        *(move.target for move in change.moves),
    ]
    code = torch.zeros(1, call.m, dtype=torch.int64, device=call.q.device)
    for place, held in enumerate(sets):
        code = code | held.long() << place
    present, place_of = pad(code.flatten(), (1, 0)).unique(return_inverse=True)  # 0 is there in any case, and first
    held_by = [(present >> place & 1).bool() for place in range(len(sets))]
    weights, moves = len(change.weights), len(change.moves)
    return Classes(
        place_of[1:].view_as(code),
        len(present),
        held_by[:weights],
        held_by[weights : weights + moves],
        held_by[weights + moves :],
    )


def seen_classes(call: Call, classes: Classes) -> Bool[Tensor, "#b #h #n classes"]:
    """Whether the row sees any key of the class."""
    numbers = torch.arange(classes.count, device=call.q.device)
    if call.mask is not None:
        visible, of_key = visible_in(call.mask), classes.of_key[:, None, None, :]
        return torch.stack([(visible & (of_key == number)).any(-1) for number in range(classes.count)], -1)
    key = torch.arange(call.m, device=call.q.device)[None, :, None]
    first = key.where(classes.of_key[..., None] == numbers, call.m).amin(1)[:, None, None, :]
    last = torch.arange(call.m - call.n, call.m, device=call.q.device) if call.causal else key.new_tensor([call.m - 1])
    return first <= last[:, None]


def shifts(change: Change, classes: Classes) -> Float[Tensor, "#b h #n classes"]:
    """Sum of log factor over the renormalising Weights; one row of it where all queries are treated alike."""
    total = torch.zeros(1, 1, 1, classes.count, device=classes.of_key.device)
    for weight, held in zip(change.weights, classes.weights, strict=True):
        if weight.renormalise:
            inside = held if bool(weight.queries.all()) else held & weight.queries[:, None, :, None]
            total = total + torch.where(inside, per_head(weight.factor.float().log()), 0)
    return total


def masses(
    call: Call, classes: Classes, log_weights: Float[Tensor, "#b h #n classes"]
) -> Float[Tensor, "b h n classes"]:
    """Share of each row's attention that the class holds, the log weights included."""
    q, k, lse = call.q, call.k, call.lse
    if bool(log_weights.any()):
        q, k = append_columns(q, k, classes.of_key, log_weights, scale=call.scale)
        lse = None
    of_key = classes.of_key.expand(q.shape[0], -1)
    found = statistics(
        q,
        k,
        scale=call.scale,
        wanted=["mass"],
        causal=call.causal and call.mask is None,
        mask=call.mask,
        lse=lse,
        spans={str(number): of_key == number for number in range(classes.count)},
    )
    return torch.stack([found[f"mass:{number}"] for number in range(classes.count)], -1)


def moving(
    move: Move, source: Tensor, target: Tensor, mass: Float[Tensor, "b h n classes"]
) -> tuple[Float[Tensor, "b h n classes"], Tensor]:
    """What a Move multiplies each class by, and how many rows have mass to give and nowhere to put it."""
    share = per_head(move.share.to(mass))
    a, t = ((mass * held).sum(-1, keepdim=True) for held in (source, target))
    queries = move.queries[:, None, :, None]
    gives, takes = torch.where(source, 1 - share, 1), torch.where(target, 1 + share * a / t, 1)
    factors = torch.where(queries & (t > FAINT), gives * takes, 1)
    return factors, (queries & (share > 0) & (a > FAINT) & (t <= FAINT)).sum()
