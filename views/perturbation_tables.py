"""What survives of a trace as other tokens are forced, at positions of high and of low FAI, as rows."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis import uncertainty

CHOICES = {"plain": "highest and lowest FAI", "matched": "the same, matched for depth"}
MEASURES = {"survival": "other tokens forced", "unforced": "own token kept"}
SHORT = {
    ("plain", "survival"): "forced",
    ("plain", "unforced"): "own token",
    ("matched", "survival"): "forced, matched",
    ("matched", "unforced"): "own, matched",
}
SIDES = {"high": "high FAI", "low": "low FAI"}
PAPER = "the paper's"


def paired_table(found: Mapping[str, Any], paper: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each choice of positions, with and without forcing, and one of the paper."""
    rows = [
        {
            "positions": CHOICES[choice],
            "tokens": MEASURES[measure],
            **{words: uncertainty.interval(test[side]) for side, words in SIDES.items()},
            "high − low": uncertainty.interval(test["difference"]),
            "traces where high is lower": f"{uncertainty.interval(test['lower'])}, {test['ties']} ties",
            "p (Wilcoxon)": f"{test['p']:.2g}",
            "n": test["high"]["n"],
        }
        for choice, measure, test in _tests(found)
    ]
    printed = {
        "positions": PAPER,
        "tokens": MEASURES["survival"],
        **{words: f"{paper[side]:.3f}" for side, words in SIDES.items()},
        "high − low": f"{paper['high'] - paper['low']:.3f}",
        "traces where high is lower": f"{paper['lower']:.2%}",
        "p (Wilcoxon)": "",
        "n": paper["n"],
    }
    return pd.DataFrame([*rows, printed])


def side_rows(found: Mapping[str, Any], paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An estimate for each side of each test, and those of the paper, which prints no intervals."""
    rows = [
        {"positions": SHORT[choice, measure], "side": SIDES[side], "survives": test[side]}
        for choice, measure, test in _tests(found)
        for side in SIDES
    ]
    return rows + [{"positions": PAPER, "side": SIDES[side], "survives": {"value": paper[side]}} for side in SIDES]


def _tests(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for choice in CHOICES:
        for measure in MEASURES:
            if found.get(choice):
                yield choice, measure, found[choice][measure]
