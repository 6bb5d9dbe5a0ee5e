"""Do the heads cause it? Silence the strongest, silence random ones, and ask again.

    headscope ablate --heads-from last        # or python -m analysis.ablation --heads-from last

Cases with other needles and other haystacks than those that chose the heads. The control draws random heads, with the
ablated ones and every head at or above the retrieval threshold really excluded, the same number in each layer where
the layer has that many left. Decode-phase ablation (what Wu et al. do) reuses one unablated prefill for all
conditions, which then decode side by side.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.compiling import compile_plan
from analysis.interventions import Meaning, When, ablation
from analysis.needles import PASS_RECALL, Case, answer_recall, build
from analysis.retrieval import by_cell
from analysis.selection import matched_control
from analysis.study import case_record
from analysis.tasks.task import answers
from analysis.uncertainty import CONFIDENCE, paired_difference, wilson
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.plan import Plan
from probes.subject import Subject

BASELINE = "baseline"


@dataclass(frozen=True)
class Condition:
    """Heads to silence, under a name such as query_zero/decode/top/5 or query_zero/decode/random/5/0."""

    name: str
    heads: tuple[Head, ...]
    meaning: Meaning
    phase: When

    def plan(self, anatomy: Anatomy, means: Mapping[int, Tensor] | None, device: torch.device) -> Plan:
        done = [ablation(self.heads, self.meaning, self.phase)]
        return compile_plan(anatomy, done, means=means, device=device)


def conditions(
    ranked: Sequence[Head],
    protected: frozenset[Head],
    *,
    ks: Sequence[int],
    seeds: int,
    meanings: Sequence[Meaning],
    phases: Sequence[When],
    seed: int,
) -> list[Condition]:
    """Top-K and `seeds` matched random sets for every K, the same sets for every meaning and phase.

    ranked: every head of the model, strongest first. protected: heads no control may hold, beside the ablated ones.
    Raises HeadscopeError for a K beyond the model's heads, or beyond those left for a control.
    """
    found = []
    for k in ks:
        if not 1 <= k <= len(ranked):
            raise HeadscopeError(f"--top {k}: this model has {len(ranked)} heads, so K goes from 1 to {len(ranked)}.")
        top = tuple(ranked[:k])
        controls = [
            matched_control(top, ranked, protected, draw=random.Random(f"{seed}/{k}/{i}")) for i in range(seeds)
        ]
        for meaning in meanings:
            for phase in phases:
                found.append(Condition(f"{meaning}/{phase}/top/{k}", top, meaning, phase))
                for i, control in enumerate(controls):
                    found.append(Condition(f"{meaning}/{phase}/random/{k}/{i}", control, meaning, phase))
    return found


@torch.inference_mode()
def examine(
    subject: Subject,
    case: Case,
    *,
    tests: Sequence[Condition],
    means: Mapping[int, Tensor] | None,
    new_tokens: int,
) -> dict[str, Any]:
    """Answer one case as the model is, and under every condition."""
    prompt = build(subject, case)
    plans = {test.name: test.plan(subject.anatomy, means, subject.device) for test in tests}
    said = answers(subject, prompt, {BASELINE: Plan(), **plans}, new_tokens)
    judged = {name: _judged(response, case) for name, response in said.items()}
    return {
        **case_record(subject, case, len(prompt), prompt.spans["needle"]),
        BASELINE: judged.pop(BASELINE),
        "conditions": judged,
    }


def _judged(response: str, case: Case) -> dict[str, Any]:
    recall = answer_recall(response, case.triple.answer)
    return {"response": response, "recall": round(recall, 6), "correct": recall > PASS_RECALL}


def summarise(records: Sequence[Mapping[str, Any]], tests: Sequence[Condition], *, seed: int) -> dict[str, Any]:
    """Accuracy at baseline, ablated and in control, with intervals, and the paired difference control - ablated."""
    correct = {
        test.name: np.array([float(record["conditions"][test.name]["correct"]) for record in records]) for test in tests
    }
    heads = {test.name: test.heads for test in tests}
    curve = []
    for name in (test.name for test in tests if "/top/" in test.name):
        meaning, phase, _, k = name.split("/")
        controls = [other for other in correct if other.startswith(f"{meaning}/{phase}/random/{k}/")]
        control = np.mean([correct[other] for other in controls], axis=0)
        gap, gap_low, gap_high = paired_difference(control, correct[name], seed=seed)
        curve.append(
            {
                "meaning": meaning,
                "phase": phase,
                "k": int(k),
                "ablated": _accuracy(correct[name]),
                "control": {
                    **_accuracy(control),
                    "seeds": len(controls),
                    "each": [float(correct[other].mean()) for other in controls],
                },
                "difference": {"value": gap, "low": gap_low, "high": gap_high},
                "heads": [str(head) for head in heads[name]],
            }
        )
    flat = [{**record, "correct": record["baseline"]["correct"]} for record in records]
    return {
        "n_cases": len(records),
        "confidence": CONFIDENCE,
        "correction": "intervals are over cases, for each row alone: not over needles or control sets, not corrected",
        "baseline": _accuracy(np.array([float(record["correct"]) for record in flat])),
        "curve": curve,
        "by_cell": by_cell(flat, "correct"),
    }


def _accuracy(correct: np.ndarray) -> dict[str, Any]:
    value = float(correct.mean())
    low, high = wilson(value, len(correct))
    return {"value": value, "low": low, "high": high, "n": len(correct)}


if __name__ == "__main__":
    from analysis.cli import main

    main(["ablate", *sys.argv[1:]])
