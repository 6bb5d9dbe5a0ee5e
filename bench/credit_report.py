"""The table of bench/train_credit.py: mean and spread over seeds of every arm, in Markdown."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ARMS = {"none": "plain GRPO", "random": "random tokens", "local": "local", "global": "global", "coupled": "coupled"}
POINTS = 6  # columns of the curve


def table(folder: Path) -> str:
    """Accuracy of drawn answers to held-out problems over the steps, its mean over all of them, that of greedy answers
    at the end, and the share of a step that reading the attention takes. Mean and standard deviation over seeds.
    """
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text())
        runs[run["arm"]].append(run)
    found = {arm: some for arm, some in runs.items() if some}
    if not found:
        return f"{folder} holds no finished arm."
    steps = sorted(set.intersection(*({p["step"] for p in run["curve"]} for some in found.values() for run in some)))
    shown = [steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)] if len(steps) > 1 else steps
    shown = list(dict.fromkeys(shown))
    heads = [
        "credit",
        "seeds",
        *(f"step {step}" for step in shown),
        "mean of the curve",
        "greedy, last step",
        "reading, share of a step",
    ]
    lines = [heads, ["---"] * len(heads)]
    for arm, some in found.items():
        curves = [{p["step"]: p["accuracy"] for p in run["curve"]} for run in some]
        row = [_spread([curve[step] for curve in curves]) for step in shown]
        whole = _spread([mean(curve[step] for step in steps) for curve in curves]) if steps else "-"
        last = _spread([run["curve"][-1]["greedy"] for run in some]) if steps else "-"
        lines.append([ARMS[arm], str(len(some)), *row, whole, last, _overhead(some)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1%}" if len(values) > 1 else ""
    return f"{mean(values):.1%}{spread}"


def _overhead(some: list[dict[str, Any]]) -> str:
    shares = [entry.get("credit/attention_share", 0.0) for run in some for entry in run["log"][1:]]
    return f"{mean(shares):.1%}" if shares else "-"
