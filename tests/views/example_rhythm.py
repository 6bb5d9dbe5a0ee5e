"""A small run of headscope rhythm. Every number in it is invented.

python tests/views/example_rhythm.py <folder>
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.rhythm.kept_arrays import keep
from analysis.rhythm.peaks import PeakRule
from analysis.rhythm.perturbation import perturbation_test
from analysis.rhythm.rhythm_summary import head_table, summarise
from analysis.rhythm.settings import Setting
from analysis.runs import OpenRun, Run

LAYERS, HEADS, WINDOW = 6, 4, 10
MODEL = {"name": "invented", "dtype": "float32", "device": "cpu", "layers": LAYERS, "heads": HEADS}
HORIZONS: dict[str, list[int | None]] = {"analysis": [0, None], "v1": [10, 50], "v2": [10, 100]}
PROMPT = 30  # tokens before the response
HOSTILE = [" <b>", "`*", "\n\n", '"', " **bold**", "</a>", " $x$"]
SENTENCE = "First , Anna has three apples . Then she buys 4 more at the market and gives two of them to Tom .\n"
TOKENS = [*(f" {word}" if i else word for i, word in enumerate(SENTENCE.split(" "))), *HOSTILE] * 2
PHRASE = 6  # tokens of each phrase: WAAD rises at its first, FAI at its second
SETTING = Setting(WINDOW, "analysis", 0.25, "all", exclude_sink=False)


def curves(number: int) -> dict[str, NDArray[np.float32]]:
    """Heads of even number look near and draw phrases; the odd ones mark the token after each phrase begins."""
    draw = np.random.default_rng(number)
    at = np.arange(len(TOKENS))
    waad = draw.uniform(0, 1, (LAYERS, HEADS, len(TOKENS))) + 0.2
    waad[:, ::2] += np.where(at % PHRASE == 0, 6.0, 4 - 0.6 * (at % PHRASE))
    fai = draw.uniform(0, 0.004, (len(HORIZONS), LAYERS, HEADS, len(TOKENS)))
    fai[:, :, 1::2] += np.where(at % PHRASE == 1, 0.04, 0.005)
    fai[1:, ..., -10:] = np.nan
    return {"waad": waad.astype(np.float32), "fai": fai.astype(np.float32)}


def record(number: int) -> dict[str, Any]:
    """What a run keeps of a trace."""
    draw = np.random.default_rng(100 + number)
    at = np.arange(len(TOKENS))
    distance = np.tile([3.0, 40.0], HEADS // 2) + draw.uniform(0, 1, (LAYERS, HEADS))
    entropy = draw.uniform(0.1, 0.6, len(TOKENS)) + np.where(at % PHRASE == 0, 0.8, 0)
    per_head = {
        "distance": distance,
        "distance_without_sink": distance[:, ::-1],
        "sink_mass": draw.uniform(0, 0.6, (LAYERS, HEADS)),
        "receiver_kurtosis": np.tile([0.5, 9.0], HEADS // 2) + draw.uniform(0, 1, (LAYERS, HEADS)),
    }
    return {
        "case": f"shop-{number}", "question": f"Anna has {number} apples\nand <i>buys</i> some. How many?",
        "answer": "9", "correct": number % 2 == 0, "prompt_tokens": PROMPT, "tokens": TOKENS,
        "entropy": entropy.tolist(),
        "next_entropy": [*entropy[1:].tolist(), None], "log_probability": (-entropy).tolist(),
        "per_head": {name: values.tolist() for name, values in per_head.items()}, "arrays": f"{number:04d}.safetensors",
    }  # fmt: skip


def perturbed(traces: int) -> dict[str, Any]:
    """Less survives at high FAI, in every trace but the first; so where positions match in depth."""
    lower = [{"high": 0.5 if number else 0.9, "low": 0.6} for number in range(traces)]
    plain = [{"survival": each, "unforced": {"high": 0.7, "low": 0.7}} for each in lower]
    return perturbation_test([{"plain": each, "matched": each} for each in plain], seed=0)


def varied(couplings: dict[str, Any]) -> list[dict[str, Any]]:
    """As asked, with a coupling that can't be judged, and with too few heads."""
    names = ("entropy", "receiver", "lag")
    found = {name: {**couplings[name], "gaps_kept": couplings[name]["nulls"]["shift"]["lift"]} for name in names}
    row = {"varied": "share", "value": 0.25, "chosen": True, "why_not": None, **found}
    no_lag = {**row, "varied": "exclude_sink", "value": True, "chosen": False, "lag": None}
    return [row, no_lag, {"varied": "layers", "value": [1, 2], "chosen": False, "why_not": "Too few heads."}]


def write_rhythm(folder: Path, *, traces: int = 4) -> Run:
    """A finished run."""
    with OpenRun.start(folder, "rhythm", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=traces)
        arrays = run.run.path / "arrays"
        records = [record(number) for number in range(traces)]
        for number, each in enumerate(records):
            keep(arrays / each["arrays"], curves(number))
            run.add_case(each)
        summary = summarise(records, arrays, SETTING, PeakRule(), horizons=list(HORIZONS), vary=False, seed=0)
        summary["perturbation"] = perturbed(traces)
        summary["sensitivity"] = varied(summary["couplings"])
        short = [{"case": "shop-99", "tokens": 3}]
        run.finish(
            heads=head_table(records, seed=0),
            summary={**summary, "horizons": HORIZONS, "left_out": short, "written": None},
        )
    return run.run


if __name__ == "__main__":
    write_rhythm(Path(sys.argv[1]))
