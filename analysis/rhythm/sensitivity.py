"""How much do the couplings hang on our choices? Each choice is varied alone around those that were asked for.

Everything is computed from the kept arrays, without the model; only further windows had to be read with the traces.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.rhythm.couplings import couplings
from analysis.rhythm.cross_fit import Chosen, chosen_without
from analysis.rhythm.curves import curves_of
from analysis.rhythm.peaks import PeakRule
from analysis.rhythm.settings import Setting
from analysis.rhythm.verdicts import COUPLINGS
from probes.errors import HeadscopeError

Record = Mapping[str, Any]

WINDOWS = (5, 10, 20)
SHARES = (0.1, 0.2, 0.3, 0.5)
LAYERS = ("all", "lower", "middle", "upper")
DRAWS = 1  # of each trace: p alone hangs on draws, and no row shows it


def further_windows(window: int) -> tuple[int, ...]:
    """The windows that are read beside the one asked for."""
    return tuple(each for each in WINDOWS if each != window)


def variations(setting: Setting, horizons: Sequence[str]) -> list[tuple[str, Setting]]:
    """Settings that differ from the one asked for in the choice named, itself among them once for each choice."""
    choices: dict[str, Sequence[object]] = {
        "window": sorted({setting.window, *WINDOWS}),
        "horizon": list(horizons),
        "share": sorted({setting.share, *SHARES}),
        "layers": list(dict.fromkeys((*LAYERS, setting.layers))),
        "exclude_sink": [False, True],
    }
    return [(name, setting.with_one(name, value)) for name, values in choices.items() for value in values]


def sensitivity(
    records: Sequence[Record],
    folder: Path,
    setting: Setting,
    rule: PeakRule,
    *,
    horizons: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each variation: what is varied, its value, whether it is the one asked for, and of every coupling the
    observed number, what chance gives and the lift, and the lift against chance that keeps the gaps between peaks; None
    in place of a coupling that can't be judged.

    why_not says why a row has no couplings at all, such as a part of the model with too few heads.
    """
    varied = variations(setting, horizons)
    chosen, why_not = _chosen(records, dict.fromkeys(each for _, each in varied), seed=seed)
    windows = (setting.window, *further_windows(setting.window))
    curves = curves_of(records, folder, list(chosen.items()), horizons=horizons, windows=windows)
    judged = {
        each: _lifts(couplings(own, rule, draws=DRAWS, seed=seed)) for each, own in zip(chosen, curves, strict=True)
    }
    return [
        {"varied": name, "value": _plain(getattr(each, name)), "chosen": each == setting}
        | {"why_not": why_not.get(each)}
        | judged.get(each, dict.fromkeys(COUPLINGS))
        for name, each in varied
    ]


def _chosen(
    records: Sequence[Record], settings: Iterable[Setting], *, seed: int
) -> tuple[dict[Setting, list[Chosen]], dict[Setting, str]]:
    """The heads that judge each trace under each setting, and why some settings have none."""
    chosen: dict[Setting, list[Chosen]] = {}
    why_not: dict[Setting, str] = {}
    for setting in settings:
        try:
            chosen[setting] = chosen_without(records, setting, seed=seed)
        except HeadscopeError as error:
            why_not[setting] = str(error)
    return chosen, why_not


def _lifts(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] and _lift(found[name]) for name in COUPLINGS}


def _lift(coupling: Mapping[str, Any]) -> dict[str, Any]:
    parts = {part: coupling[part] for part in ("observed", "null", "lift")}
    return {**parts, "gaps_kept": coupling["nulls"]["shift"]["lift"]}


def _plain(value: object) -> Any:
    return list(value) if isinstance(value, tuple) else value
