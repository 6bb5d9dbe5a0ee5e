"""Small runs of headscope heads and of headscope pairs, summed up from invented evidence.

python tests/views/example_sinks.py <folder>
"""

import sys
from pathlib import Path

import numpy as np

from analysis import pairs, roles
from analysis.retrieval import head_frame
from analysis.runs import OpenRun

LAYERS, HEADS, CASES = 3, 4, 8
MODEL = {"name": "invented", "dtype": "float32", "device": "cpu", "layers": LAYERS, "heads": HEADS}


def evidence() -> dict[str, np.ndarray]:
    """Every head sinks but those of layer 0; L1H2 also retrieves."""
    draw = np.random.default_rng(0)
    found = {role.metric: draw.uniform(0, 0.05, (CASES, LAYERS, HEADS)) for role in roles.ROLES}
    found["write"] += 1.0
    found["sink_rate"][:, 1:] = 1.0
    found["retrieval_score"][:, 1, 2] = 0.9
    return found


def write_heads(folder: Path) -> None:
    found = evidence()
    present = found["sink_rate"][1::2] * 0.4
    absent = roles.needle_absent(present, present + 0.1, found["retrieval_score"].mean(0) > 0.1, seed=0)
    summary = {
        "n_cases": 3 * CASES, "counts": {"natural": CASES, "repeated": CASES, "needle": CASES, "answered": CASES},
        "confidence": 0.95, "correction": "intervals are over prompts", "n_heads": LAYERS * HEADS,
        "retrieval_from": None, **roles.summarise(found, seed=0), "needle_absent": absent,
    }  # fmt: skip
    with OpenRun.start(folder, "heads", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=0)
        run.finish(heads=head_frame(found, seed=0), summary=summary)


def write_pairs(folder: Path) -> None:
    draw = np.random.default_rng(0)
    records = [
        {"case": f"pair-{rule.replace('_', '-')}", "rule": rule, "parameters": 1000, "tokens": 512,
         "each": {name: draw.uniform(1, 2, 5).tolist() for name in pairs.MEASURES}}
        for rule in ("softmax", "headwise_gate")
    ]  # fmt: skip
    with OpenRun.start(folder, "pairs", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=0)
        run.finish(heads=None, summary=pairs.summarise(records, seed=0))


if __name__ == "__main__":
    write_heads(Path(sys.argv[1]))
    write_pairs(Path(sys.argv[1]))
