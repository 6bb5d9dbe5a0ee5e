"""Massive activations: a few numbers of the residual stream that are thousands of times larger than the others.

    |x| > 100  and  |x| >= 1000 median |x|      over one prompt's hidden state, tokens times coordinates

    found = summarise([activation_record(subject, prompt) for prompt in prompts], seed=0)
    removing(found["massive"])                  # the interventions that set them to zero

Sun et al., "Massive Activations in Large Language Models", COLM 2024. Beside them what makes activations hard to
quantise, Bondarenko et al., "Quantizable Transformers", NeurIPS 2023: infinity norm and kurtosis; and M-Act of Qiu et
al., "Gated Attention for Large Language Models", NeurIPS 2025: the mean over layers of the largest |x|.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from analysis.interventions import Intervention, Overwrite
from analysis.uncertainty import bootstrap_means, wilson
from probes.activation_reader import ActivationReader, Extremes
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

MASSIVE_SIZE = 100.0
MASSIVE_RATIO = 1000.0  # to the median |x| of the hidden state
MOST = 0.5  # of the prompts
WHERE = "residual"  # after a block, where Sun et al. look
LISTED = 10  # positions and tokens of a massive coordinate

Record = Sequence[Mapping[str, Any]]


@torch.inference_mode()
def activation_record(subject: Subject, prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt's record for `summarise`: one forward. Raises HeadscopeError for a prompt of one token."""
    reader = ActivationReader()
    with Tap(subject, readers=[reader]):
        subject.model(input_ids=prompt.ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    return record(reader, [subject.tokenizer.decode([token]) for token in prompt.ids.tolist()])


def record(reader: ActivationReader, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """What a reader has found over one prompt as plain data, a row for each layer and activation.

    {"layer", "activation", "largest", "median", "kurtosis", "beyond_first": the same three without the first token},
    and for the residual stream "entries", the largest: {"value", "position", "coordinate", "token"}.
    """
    found = sorted((layer, name, extremes) for (name, layer), extremes in reader.found.items())
    return [_row(*each, tokens) for each in found]


def _row(layer: int, name: str, found: Extremes, tokens: Sequence[str]) -> dict[str, Any]:
    row = {"layer": layer, "activation": name, **asdict(found.spread), "beyond_first": asdict(found.beyond_first)}
    if name == WHERE:
        row["entries"] = [{**asdict(entry), "token": tokens[entry.position]} for entry in found.entries]
    return row


def summarise(
    records: Sequence[Record], *, size: float = MASSIVE_SIZE, ratio: float = MASSIVE_RATIO, seed: int
) -> dict[str, Any]:
    """Over prompts: the massive coordinates, every layer's spread, and the figures of the papers.

    {"n", "criterion", "massive": `massive`'s rows, "layers": `spreads`' rows, "overall": `overall`}.
    """
    if not records:
        raise HeadscopeError("Massive activations are summed up over at least one prompt.")
    return {
        "n": len(records),
        "criterion": {"size": size, "ratio": ratio},
        "massive": massive(records, size=size, ratio=ratio),
        "layers": spreads(records, seed=seed),
        "overall": overall(records, seed=seed),
    }


def massive(
    records: Sequence[Record], *, size: float = MASSIVE_SIZE, ratio: float = MASSIVE_RATIO
) -> list[dict[str, Any]]:
    """Every (layer, coordinate) of the residual stream that is massive in some prompt, in order.

    share: of the prompts, with Wilson's interval. Over its massive entries: value, their mean; smallest, the smallest
    |x|; times_median, the mean of |x| over the hidden state's median; positions and tokens, the commonest first.
    Raises HeadscopeError where a record keeps too few entries to tell all that are massive.
    """
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for prompt, rows in enumerate(records):
        for row in rows:
            if row["activation"] != WHERE:
                continue
            own = [each for each in row["entries"] if _is_massive(each["value"], row["median"], size, ratio)]
            if len(own) == len(row["entries"]):
                raise HeadscopeError(
                    f"All {len(own)} entries that were kept of layer {row['layer']} are massive, and more may be: "
                    "raise the criterion or keep more."
                )
            for each in own:
                about = {"prompt": prompt, "times_median": abs(each["value"]) / row["median"]}
                found.setdefault((row["layer"], each["coordinate"]), []).append({**each, **about})
    return [_massive_row(*place, entries, len(records)) for place, entries in sorted(found.items())]


def _is_massive(value: float, median: float, size: float, ratio: float) -> bool:
    return abs(value) > size and abs(value) >= ratio * median


def _massive_row(layer: int, coordinate: int, entries: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    share = len({each["prompt"] for each in entries}) / n
    low, high = wilson(share, n)
    return {
        "layer": layer,
        "coordinate": coordinate,
        "share": {"value": share, "low": low, "high": high},
        "value": float(np.mean([each["value"] for each in entries])),
        "smallest": min(abs(each["value"]) for each in entries),
        "times_median": float(np.mean([each["times_median"] for each in entries])),
        "positions": _commonest(entries, "position"),
        "tokens": _commonest(entries, "token"),
    }


def _commonest(entries: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    counted = Counter(each[name] for each in entries)
    return [{name: what, "times": times} for what, times in counted.most_common(LISTED)]


def removing(rows: Sequence[Mapping[str, Any]], *, mean: bool = False) -> tuple[Intervention, ...]:
    """Interventions that take massive activations (rows of `massive`) away: to zero, or to their mean.

    As Sun et al. do, each coordinate is overwritten behind one layer, which the stream carries on: the first where it
    is massive in at least half of the prompts. What reaches half the smallest massive |x| there is overwritten, so that
    no token that is merely large becomes a massive one when they are set to the mean.
    """
    first: dict[int, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["layer"]):
        if row["share"]["value"] >= MOST:
            first.setdefault(row["coordinate"], row)
    return tuple(
        Intervention(
            Overwrite(coordinate, _rounded(row["value"]) if mean else 0.0, _rounded(row["smallest"] / 2)),
            f"L{row['layer']}",
        )
        for coordinate, row in first.items()
    )


def _rounded(number: float) -> float:
    """To digits that a person can copy."""
    return float(f"{number:.6g}")


def spreads(records: Sequence[Record], *, seed: int) -> list[dict[str, Any]]:
    """Every layer and activation: largest (the infinity norm), median and kurtosis, means over prompts with intervals.

    beyond_first has the same without the first token: what is left where that token alone carries them.
    """
    return [
        {
            "layer": layer,
            "activation": name,
            **_means(rows, seed),
            "beyond_first": _means([row["beyond_first"] for row in rows], seed),
        }
        for (layer, name), rows in _by_place(records).items()
    ]


def overall(records: Sequence[Record], *, seed: int) -> dict[str, Any]:
    """The papers' figures for a whole model.

    max_activation: M-Act. max_infinity_norm and max_kurtosis: of the activation whose mean over prompts is largest,
    and which one it is. mean_kurtosis: over activations and prompts.
    """
    stream = [[row["largest"] for row in rows if row["activation"] == WHERE] for rows in records]
    tails = [[row["kurtosis"] for row in rows] for rows in records]
    found = spreads(records, seed=seed)

    def strongest(name: str) -> dict[str, Any]:
        row = max(found, key=lambda row: row[name]["value"])
        return {**row[name], "layer": row["layer"], "activation": row["activation"]}

    return {
        "max_activation": _mean([float(np.mean(values)) for values in stream], seed),
        "max_infinity_norm": strongest("largest"),
        "mean_kurtosis": _mean([float(np.mean(values)) for values in tails], seed),
        "max_kurtosis": strongest("kurtosis"),
    }


def _by_place(records: Sequence[Record]) -> dict[tuple[int, str], list[Mapping[str, Any]]]:
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for rows in records:
        for row in rows:
            found.setdefault((row["layer"], row["activation"]), []).append(row)
    return found


def _means(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    return {name: _mean([row[name] for row in rows], seed) for name in ("largest", "median", "kurtosis")}


def _mean(values: Sequence[float], seed: int) -> dict[str, float]:
    low, high = bootstrap_means(np.array(values), seed=seed)
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high)}
