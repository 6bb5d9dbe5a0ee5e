"""Rows of a run of `headscope vision`, sorted and named for reading."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from views import tables

CHAIR = {
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "tokens": "tokens",
    "objects": "objects named",
}
MASSES = {
    "image_mass": "the image",
    "system_mass": "what comes before it",
    "question_mass": "the question",
    "generated_mass": "the caption so far",
}
DETECTORS = {
    "divergence_of_heads": "VHD of chosen heads",
    "token_divergence": "T-VHD",
    "image_mass_of_heads": "attention on the image, chosen heads",
    "summed_ratio": "attention on the image, middle layers (SVAR)",
    "log_probability": "log-probability of the token",
    "step": "said early",
}
STRUCK = {"chair_i": "CHAIR_i", "recall": "recall", "f1": "F1"}
SINKS = {"dimension": "by dimensions of the residual stream", "attention": "by attention alone"}
POINTING = {"ratio": "attention in the box by its area", "hit": "pointing", "inside": "attention in the box"}
MAPS = {
    "elsewhere_": "another picture's map, all heads",
    "centre_": "a map of the centre",
    "even_": "an even map",
    "rollout_": "attention rollout through all layers",
    "relevancy_": "gradient relevancy through all layers (Chefer)",
}
COMPANY = {
    "theme": "objects of the theme that the caption names",
    "likely": "objects that keep company with those in the picture",
}
RANKED = {"divergence": "VHD", "image_mass": "attention on the image", "ratio": "grounding"}


def detector_rows(detectors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each detector that could be judged."""
    return [
        {"detector": words, "auroc": detectors[name], "words": detectors[name]["n"]}
        for name, words in DETECTORS.items()
        if "value" in detectors.get(name, {})
    ]


def not_judged(detectors: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason why a detector could not be judged."""
    return list(dict.fromkeys(detectors[name]["why_not"] for name in DETECTORS if "why_not" in detectors.get(name, {})))


def detector_table(detectors: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"detector": row["detector"], "AUROC": tables.interval(row["auroc"]), "captions": row["auroc"]["captions"],
             "heads": ", ".join(tables.head_name(*head) for head in row["auroc"].get("heads", ())) or "all"}
            for row in detector_rows(detectors)
        ]
    )  # fmt: skip


def struck_table(detectors: Mapping[str, Any]) -> pd.DataFrame:
    """What striking out the suspects of each detector takes from the captions."""
    found = {words: detectors.get(name, {}).get("struck", {}) for name, words in DETECTORS.items()}
    return pd.DataFrame(
        [
            {"detector": words, "of the invented": tables.estimate(each["invented"]),
             "of the true": tables.estimate(each["true"])}
            | {f"{STRUCK[name]}, change": tables.estimate(each["difference"][name]) for name in STRUCK}
            | {"captions": each["invented"]["n"], "verdict": each["verdict"]}
            for words, each in found.items()
            if "verdict" in each
        ]
    )  # fmt: skip


def sink_table(sinks: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "found": SINKS.get(rule, rule),
                "share of the image's tokens": tables.estimate(found["share"]),
                "of them in the background": tables.estimate(found["background"]),
                "base rate: background's share of the picture": tables.estimate(found["base"]),
                "pictures with one": f"{found['pictures_with']} of {found['share']['n']}",
            }
            for rule, found in sinks.items()
        ]
    )


def pointing_table(grounding: Mapping[str, Any]) -> pd.DataFrame:
    """The best head and all heads, beside what maps score that do not look."""
    lines = [("all heads, mean", grounding["mean"], "")]
    if best := grounding["best"]:
        lines.insert(0, (f"{best['head']}, the best of one half on the other", best, ""))
    controls = {**grounding["controls"], **grounding["mean"], **grounding.get("baselines", {})}
    lines += [(words, controls, start) for start, words in MAPS.items()]
    return pd.DataFrame(
        [
            {"map": words}
            | {title: tables.estimate(found[start + name]) for name, title in POINTING.items() if start + name in found}
            | {"n": found[f"{start}ratio"]["n"]}
            for words, found, start in lines
            if f"{start}ratio" in found
        ]
    )


def company_table(company: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "invented objects that are": words,
                "share": tables.estimate(company[kind]["share"]),
                "expected of absent objects by luck": tables.estimate(company[kind]["expected"]),
                "invented": company[kind]["invented"],
                "captions": company[kind]["n"],
            }
            for kind, words in COMPANY.items()
            if kind in company and company[kind]["invented"]
        ]
    )


def agreement_table(heads: Mapping[str, Any], beside: Mapping[str, Any] | None) -> pd.DataFrame:
    """How alike halves of the pictures rank the heads, and another run, if one was compared with."""
    rows = [_agreeing(name, "halves of the pictures", found) for name, found in heads["halves"].items()]
    if beside:
        words = f"{beside['model']}, run {beside['run']}"
        rows += [_agreeing(name, words, found) for name, found in beside.items() if isinstance(found, Mapping)]
    return pd.DataFrame(rows)


def _agreeing(name: str, between: str, found: Mapping[str, Any]) -> dict[str, Any]:
    shared = found["overlap"]
    return {
        "ranked by": RANKED.get(name, name),
        "this run beside": between,
        "Spearman": tables.interval(found["correlation"]),
        "first heads shared": tables.estimate(shared),
        "by luck": f"{shared['chance']:.2f}, {shared['chance_low']:.2f} to {shared['chance_high']:.2f}",
        "first heads": shared["top"],
    }
