"""One trace of a run: its tokens, what every head did on them, and what forcing other tokens changes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarray import DataArray

from analysis.rhythm.cross_fit import choose
from analysis.rhythm.head_sets import averaged
from analysis.rhythm.kept_arrays import keep
from analysis.rhythm.perturbation import perturb
from analysis.rhythm.reading import Horizon, read_rhythm
from analysis.rhythm.receivers import receiver_kurtosis
from analysis.rhythm.settings import Setting
from analysis.rhythm.traces import Tokens, Trace, tokenise
from analysis.rhythm.windows import windowed_distances
from analysis.runs import rounded
from probes.subject import Subject

PER_TOKEN = ("entropy", "next_entropy", "log_probability")
PER_HEAD = ("distance", "distance_without_sink", "sink_mass")


@dataclass(frozen=True)
class Tracing:
    """One piece of a run's work. perturbed: whether other tokens are forced on it."""

    number: int
    trace: Trace
    perturbed: bool

    @property
    def id(self) -> str:
        return self.trace.id


def examine(
    subject: Subject,
    case: Tracing,
    *,
    setting: Setting,
    horizons: Mapping[str, Horizon],
    windows: Sequence[int],
    arrays: Path,
) -> dict[str, Any]:
    """A trace's record; what every head did on every token goes to `arrays`. windows: further ones, for WAAD."""
    tokens = tokenise(subject, case.trace)
    found = read_rhythm(subject, tokens.ids, tokens.response, window=setting.window, horizons=horizons)
    kept = {"waad": found["waad"].values, "fai": found["fai"].values}
    if windows:
        kept["waad_windows"] = windowed_distances(subject, tokens.ids, tokens.response, windows).values
    name = f"{case.number:04d}.safetensors"
    keep(arrays / name, kept)
    record = {
        "case": case.id,
        "question": case.trace.question,
        "answer": case.trace.answer,
        "correct": case.trace.correct,
        "prompt_tokens": tokens.response.start,
        "tokens": list(tokens.texts),
        **{measure: found[measure].values.tolist() for measure in PER_TOKEN},
        "per_head": {measure: found[measure].values.tolist() for measure in PER_HEAD}
        | {"receiver_kurtosis": receiver_kurtosis(subject, tokens.ids, tokens.response, tokens.texts).values.tolist()},
        "arrays": name,
    }
    if case.perturbed:
        record["perturbation"] = perturbed(subject, tokens, found["fai"], record, setting)
    return {name: _plain(rounded(value)) for name, value in record.items()}


def perturbed(
    subject: Subject, tokens: Tokens, fai: DataArray, record: Mapping[str, Any], setting: Setting
) -> dict[str, Any] | None:
    """What survives of the trace behind forced tokens; None where it is too short.

    The global heads are those of this trace alone: their spans know nothing of what the model would write instead.
    """
    heads = choose([record], setting).sets.global_
    influence = averaged(fai.sel(horizon=setting.horizon), heads).values.astype(float)
    return perturb(subject, tokens, influence)


def _plain(found: Any) -> Any:
    """None in place of a number that there is not, as JSON has no word for it."""
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    if isinstance(found, list):
        return [_plain(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
