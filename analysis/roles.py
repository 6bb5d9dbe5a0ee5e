"""What is every head for? Roles from evidence, chosen on one half of the cases and judged on the other.

    headscope heads --model smollm2-135m        # or python -m analysis.role_run --model smollm2-135m

A head carries a role where the mean of the role's evidence over cases reaches the role's threshold, and it may carry
several. Roles are chosen on the even cases of each kind; a role is confirmed where the odd cases, which had no say in
the choice, agree. A head without a confirmed role is unexplained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from analysis.retrieval import RETRIEVAL_THRESHOLD
from analysis.uncertainty import bootstrap_means, estimate, paired_difference, wilson
from probes.heads import Head

SINK_PROMPTS = 0.5  # share of prompts on which a sink head parks its attention
DO_NOTHING = 0.025  # norm written / norm of the residual stream: half of what the default model's median head writes
LOCAL_SHARE = 0.5  # of the attention that is on no sink
PREVIOUS = 0.4
INDUCTION = 0.3
DUPLICATE = 0.3

Evidence = Mapping[str, Float[np.ndarray, "case layer head"]]
Carried = Mapping[str, Bool[np.ndarray, "layer head"]]


@dataclass(frozen=True)
class Role:
    """A name for what a head does, the evidence for it, and how much of that is enough.

    above: the evidence must be at least the threshold, or else below it.
    """

    name: str
    metric: str
    threshold: float
    about: str
    source: str
    above: bool = True

    def held(self, evidence: NDArray[np.float64]) -> Bool[np.ndarray, "layer head"]:
        """Which heads carry the role. evidence: (case, layer, head)."""
        mean = evidence.mean(0)
        return mean >= self.threshold if self.above else mean < self.threshold


ROLES = (
    Role(
        "sink",
        "sink_rate",
        SINK_PROMPTS,
        "Share of natural prompts on which a sink receives more than 0.3 of the head's attention.",
        "Gu et al., When Attention Sink Emerges in Language Models, ICLR 2025",
    ),
    Role(
        "do-nothing",
        "write",
        DO_NOTHING,
        "Norm of what the head writes as a share of the norm of the residual stream that its block reads.",
        "Bondarenko et al., Quantizable Transformers, NeurIPS 2023; the threshold is ours",
        above=False,
    ),
    Role(
        "local",
        "local",
        LOCAL_SHARE,
        "Attention on the 8 nearest keys as a share of all that is on no sink.",
        "ours, after the local heads of Li et al., Attention Illuminates LLM Reasoning, 2025",
    ),
    Role(
        "previous-token",
        "previous",
        PREVIOUS,
        "Attention on the token before the query, in natural prompts.",
        "Elhage et al., A Mathematical Framework for Transformer Circuits, 2021; the threshold is ours",
    ),
    Role(
        "induction",
        "induction",
        INDUCTION,
        "In random tokens said twice: attention from the second copy on what followed the query's token before.",
        "Olsson et al., In-context Learning and Induction Heads, 2022; the threshold is ours",
    ),
    Role(
        "duplicate-token",
        "duplicate",
        DUPLICATE,
        "In random tokens said twice: attention from the second copy on the query's token in the first.",
        "Wang et al., Interpretability in the Wild, ICLR 2023; the threshold is ours",
    ),
    Role(
        "retrieval",
        "retrieval_score",
        RETRIEVAL_THRESHOLD,
        "Share of the needle's answer that the head copies, in needle cases that were answered.",
        "Wu et al., Retrieval Head Mechanistically Explains Long-Context Factuality, 2024",
    ),
)


def members(held: Bool[np.ndarray, "layer head"]) -> list[Head]:
    """The heads that are True, in order."""
    return [Head(int(layer), int(head)) for layer, head in np.argwhere(held)]


def halves(evidence: Evidence) -> tuple[Evidence, Evidence]:
    """The even and the odd cases of each metric; a metric of fewer than two cases has no halves and is left out."""
    measured = {metric: values for metric, values in evidence.items() if len(values) > 1}
    even, odd = ({metric: values[start::2] for metric, values in measured.items()} for start in (0, 1))
    return even, odd


def carried(evidence: Evidence, roles: Sequence[Role] = ROLES) -> dict[str, Bool[np.ndarray, "layer head"]]:
    """Role to the heads that carry it, for every role whose evidence was measured."""
    return {role.name: role.held(evidence[role.metric]) for role in roles if role.metric in evidence}


def confirmed(chosen: Carried, judged: Carried) -> dict[str, Bool[np.ndarray, "layer head"]]:
    """Role to the heads that were chosen for it and carry it on the other half too."""
    return {name: chosen[name] & judged[name] for name in chosen}


def summarise(evidence: Evidence, roles: Sequence[Role] = ROLES, *, seed: int) -> dict[str, Any]:
    """Roles, heads, overlap and what is unexplained, as plain data."""
    first, second = halves(evidence)
    chosen = carried(first, roles)
    both = confirmed(chosen, carried(second, roles))
    return {
        "role_names": [role.name for role in roles],  # in order, which a run's JSON does not keep
        "roles": {role.name: _role(role, second, chosen, both) for role in roles},
        "heads": _heads(first, second, chosen, both, seed),
        "overlap": overlap(both),
        "unexplained": unexplained(both),
    }


def _role(role: Role, second: Evidence, chosen: Carried, both: Carried) -> dict[str, Any]:
    facts = {"metric": role.metric, "threshold": role.threshold, "above": role.above, "about": role.about,
             "source": role.source}  # fmt: skip
    if role.name not in chosen:
        return {**facts, "chosen": None, "confirmed": None, "confirmed_heads": []}
    count, kept = int(chosen[role.name].sum()), int(both[role.name].sum())
    strength = second[role.metric].mean(0) * (-1 if role.above else 1)
    strongest = sorted(members(both[role.name]), key=lambda head: (strength[head.layer, head.head], head))
    return {
        **facts,
        "chosen": count,
        "confirmed": share(kept, count) if count else None,
        "confirmed_heads": [str(head) for head in strongest],
    }


def _heads(first: Evidence, second: Evidence, chosen: Carried, both: Carried, seed: int) -> list[dict[str, Any]]:
    bounds = {metric: bootstrap_means(values, seed=seed) for metric, values in second.items()}
    layers, heads = next(iter(chosen.values())).shape
    return [
        {
            "head": str(Head(*at)),
            "roles": [name for name, held in chosen.items() if held[at]],
            "confirmed": [name for name, held in both.items() if held[at]],
            "evidence": {
                metric: {
                    "chosen": float(values[:, *at].mean()),
                    "judged": float(second[metric][:, *at].mean()),
                    "low": float(bounds[metric][0][at]),
                    "high": float(bounds[metric][1][at]),
                }
                for metric, values in first.items()
            },
        }
        for at in np.ndindex(layers, heads)
    ]


def overlap(roles: Carried) -> dict[str, Any]:
    """How many heads two roles share; what independence would give, count x count / heads; and |both| / |either|."""
    table = np.array([held.ravel() for held in roles.values()]).astype(int)
    counts = table @ table.T
    sizes = counts.diagonal()
    expected = np.outer(sizes, sizes) / table.shape[1]
    np.fill_diagonal(expected, sizes)
    either = sizes[:, None] + sizes - counts
    return {
        "roles": list(roles),
        "counts": counts.tolist(),
        "expected": expected.tolist(),
        "jaccard": [
            [both / union if union else None for both, union in zip(*rows, strict=True)]
            for rows in zip(counts.tolist(), either.tolist(), strict=True)
        ],
    }


def unexplained(roles: Carried) -> dict[str, Any]:
    """Heads without any of the roles; expected: their share if the same roles fell on heads independently."""
    nothing = ~np.any(list(roles.values()), axis=0)
    expected = np.prod([1 - held.mean() for held in roles.values()])
    heads = [str(head) for head in members(nothing)]
    return {**share(len(heads), nothing.size), "expected": float(expected), "heads": heads}


def share(count: int, n: int) -> dict[str, Any]:
    """A share with Wilson's interval."""
    low, high = wilson(count / n, n)
    return {"value": count / n, "low": low, "high": high, "n": n}


def needle_absent(
    present: Float[np.ndarray, "case layer head"],
    absent: Float[np.ndarray, "case layer head"],
    retrieval: Bool[np.ndarray, "layer head"],
    *,
    seed: int,
) -> dict[str, Any]:
    """Attention on sinks while the model answers, with the needle in its text and without, paired over cases.

    Wu et al.: a model that hallucinates has its retrieval heads on the first token. retrieval: heads that
    other cases chose. None for a group without heads.
    """
    groups = {"retrieval": retrieval, "others": ~retrieval}
    return {
        "n": len(present),
        **{
            name: _sink_shares(present[:, heads].mean(-1), absent[:, heads].mean(-1), int(heads.sum()), seed)
            if heads.any()
            else None
            for name, heads in groups.items()
        },
    }


def _sink_shares(present: NDArray[np.float64], absent: NDArray[np.float64], heads: int, seed: int) -> dict[str, Any]:
    n = len(present)
    estimates = {"present": estimate(present, seed=seed), "absent": estimate(absent, seed=seed)}
    value, bottom, top = paired_difference(absent, present, seed=seed)
    return {"heads": heads, **estimates, "difference": {"value": value, "low": bottom, "high": top, "n": n}}
