"""What came out of bench/train_credit.py: mean and spread over seeds of every arm, and its gain on plain GRPO."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import altair as alt
import pandas as pd
from scipy import stats

ARMS = {"none": "plain GRPO", "random": "random tokens", "local": "local", "global": "global", "coupled": "coupled"}
COLOURS = ["#888888", "#000000", "#009e73", "#d55e00", "#3d8fc4"]
POINTS = 6  # columns of the curve


def finished(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every arm that is there, by seed."""
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for path in sorted(folder.glob("*-*.json")):
        run = json.loads(path.read_text())
        runs[run["arm"]].append(run)
    return {arm: some for arm, some in runs.items() if some}


def table(folder: Path) -> str:
    """Accuracy of drawn answers to held-out problems over the steps, its mean over all of them, that of greedy answers
    at the end, and the share of a step that reading the attention takes. Mean and standard deviation over seeds.
    """
    found = finished(folder)
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


def differences(folder: Path) -> str:
    """Every arm minus plain GRPO of the same seed, which share their supervised model and problems: percentage points
    with 95 % t intervals over seeds, of the mean of the curve and of its end.
    """
    found = finished(folder)
    plain = {run["seed"]: run for run in found.pop("none", [])}
    heads = ["minus plain GRPO", "seeds", "mean of the curve", "last step", "greedy, last step"]
    lines = [heads, ["---"] * len(heads)]
    measures: list[Callable[[dict[str, Any]], float]] = [
        lambda run: mean(point["accuracy"] for point in run["curve"]),
        lambda run: float(run["curve"][-1]["accuracy"]),
        lambda run: float(run["curve"][-1]["greedy"]),
    ]
    for arm, some in found.items():
        pairs = [(run, plain[run["seed"]]) for run in some if run["seed"] in plain and run["curve"]]
        apart = [[100 * (measure(run) - measure(other)) for run, other in pairs] for measure in measures]
        lines.append([ARMS[arm], str(len(pairs)), *(_interval(values) for values in apart)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return "-"
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean(values), scale=stats.sem(values))
    return f"{mean(values):+.2f} [{low:+.2f}, {high:+.2f}]"


def picture(folder: Path, file: Path) -> None:
    """The learning curves: their mean over seeds, and beside it what every arm gains on plain GRPO, with its 95 %."""
    rows = [
        {"credit": ARMS[arm], "seed": run["seed"], "step": point["step"], "accuracy": 100 * point["accuracy"]}
        for arm, some in finished(folder).items()
        for run in some
        for point in run["curve"]
    ]
    frame = pd.DataFrame(rows)
    plain = frame[frame["credit"] == ARMS["none"]].set_index(["seed", "step"])["accuracy"]
    frame["gain"] = frame["accuracy"] - plain.reindex(pd.MultiIndex.from_frame(frame[["seed", "step"]])).to_numpy()
    seeds = frame["seed"].nunique()
    gains = (
        frame[frame["credit"] != ARMS["none"]].groupby(["credit", "step"])["gain"].agg(["mean", "sem"]).reset_index()
    )
    reach = float(stats.t.ppf(0.975, seeds - 1)) * gains["sem"]
    gains = gains.assign(low=gains["mean"] - reach, high=gains["mean"] + reach)
    colour = alt.Color("credit:N", scale=alt.Scale(domain=list(ARMS.values()), range=COLOURS), title=None)
    step = alt.X("step:Q", title="step")
    left = alt.Chart(frame).mark_line().encode(
        x=step, y=alt.Y("mean(accuracy):Q", title="accuracy of drawn answers, %", scale=alt.Scale(zero=False)),
        color=colour,
    )  # fmt: skip
    beside = alt.Chart(gains).encode(x=step, color=colour)
    band = beside.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title="minus plain GRPO, percentage points"), y2="high:Q", fill=colour
    )
    line = beside.mark_line().encode(y="mean:Q")
    size = {"width": 330, "height": 230}
    (left.properties(**size) | (band + line).properties(**size)).save(file, scale_factor=1.2)


def _spread(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1%}" if len(values) > 1 else ""
    return f"{mean(values):.1%}{spread}"


def _overhead(some: list[dict[str, Any]]) -> str:
    shares = [entry.get("credit/attention_share", 0.0) for run in some for entry in run["log"][1:]]
    return f"{mean(shares):.1%}" if shares else "-"
