"""A run of `headscope vision` on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis.runs import Run
from analysis.uncertainty import interval
from analysis.vision.chair import METRICS

console = Console()
DETECTORS = {
    "token_divergence": "T-VHD",
    "summed_ratio": "SVAR",
    "divergence_of_heads": "VHD of chosen heads",
    "image_mass_of_heads": "image mass of chosen heads",
    "log_probability": "the model's own doubt",
    "step": "being said late",
}
BASELINES = {"rollout": "attention rollout", "relevancy": "gradient relevancy (Chefer)"}
SPANS = {"image": "the image", "system": "what is before it", "question": "the question", "generated": "the caption"}


def show(run: Run) -> None:
    """Per set what is looked at and what is invented; per head which differ most."""
    summary = run.summary()
    console.print(f"{escape(summary['question'])} Each caption was read at every token that it writes.")
    console.print(_sets(summary["sets"]))
    console.print(_captions(summary["sets"]))
    console.print(_detectors(summary["sets"]))
    for name, found in summary["sets"].items():
        console.print(_struck(name, found["detectors"]))
    _heads(summary["heads"])
    for name, found in summary["sets"].items():
        for line in (*_sinks(found), *_grounding(found), *_company(found)):
            console.print(f"[bold]{escape(name)}[/]: {line}")
    if why_not := summary["sink_dimensions"]["why_not"]:
        console.print(f"No sinks by dimension: {escape(why_not)}")
    blank = summary["blank"]
    console.print(f"A grey picture: {len(blank['objects'])} objects named. {escape(repr(blank['caption'][:160]))}")
    if summary["beside"]:
        _beside(summary["beside"])


def _sets(sets: Mapping[str, Any]) -> Table:
    """A row for each number, a column for each set of pictures."""
    looked = {name: found for name, found in sets.items() if "masses" in found}
    table = Table("", *map(escape, looked))
    table.add_row("pictures", *(str(found["n"]) for found in looked.values()))
    table.add_row("VHD", *(_shown(found["divergence"]) for found in looked.values()))
    for span, words in SPANS.items():
        table.add_row(f"attention on {words}", *(_shown(found["masses"][span]) for found in looked.values()))
    table.add_row("image-centric rows (VAR)", *(_shown(found["image_centric"]) for found in looked.values()))
    table.caption = "means over heads and over the tokens of each caption"
    return table


def _captions(sets: Mapping[str, Any]) -> Table:
    names = {"chair_i": "CHAIR_i", "chair_s": "CHAIR_s"}
    table = Table("the captions", *map(escape, sets))
    for metric in METRICS:
        table.add_row(names.get(metric, metric), *(_shown(found["chair"][metric]) for found in sets.values()))
    return table


def _detectors(sets: Mapping[str, Any]) -> Table:
    table = Table("invented objects betrayed by", *map(escape, sets))
    own = [found["detectors"] for found in sets.values()]
    table.add_row("invented / words", *(f"{each['invented']} / {each['words']}" for each in own))
    for key, words in DETECTORS.items():
        judged = [each.get(key, {}) for each in own]
        table.add_row(words, *(_shown(each) if "value" in each else "not judged" for each in judged))
    table.caption = "AUROC, of a low number but for the last, at the first token of an object's name: 0.5 is blind"
    return table


def _struck(name: str, detectors: Mapping[str, Any]) -> Table:
    """What is left where a detector's suspects are struck out."""
    changes = {"chair_i": "CHAIR_i", "recall": "recall", "f1": "F1"}
    table = Table(f"{escape(name)}: suspects struck", "of invented", "of true", *changes.values(), "verdict")
    for key, words in DETECTORS.items():
        found = detectors.get(key, {}).get("struck", {})
        if "verdict" in found:
            shares = (_shown(found[kind]) for kind in ("invented", "true"))
            table.add_row(words, *shares, *(_shown(found["difference"][one]) for one in changes), found["verdict"])
    table.caption = "threshold: loses at most 1 in 100 true words on one half of the captions; judged on the other half"
    return table


def _heads(heads: Mapping[str, Any]) -> None:
    for name, words in (("divergence", "VHD"), ("image_mass", "image mass"), ("ratio", "grounding")):
        rows = heads["top"].get(name, [])
        if rows:
            listed = ", ".join(f"{row['head']} {_shown(row)}" for row in rows[:5])
            console.print(f"Highest {words}: {listed}")
    console.print(
        f"The first {heads['few']} of {heads['count']} heads hold {heads['divergence_share_of_few']:.0%} of the VHD."
    )
    for name, found in heads["halves"].items():
        console.print(
            f"{name.replace('_', ' ')}: two halves of the pictures rank heads alike by "
            f"{_shown(found['correlation'])} (Spearman) and share {found['overlap']['value']:.0%} of the first "
            f"{heads['few']}; {found['overlap']['chance']:.0%} by luck."
        )


def _sinks(found: Mapping[str, Any]) -> list[str]:
    return [
        f"image tokens that are sinks by {rule}: {_shown(each['share'])}, {_shown(each['background'])} of them in the "
        f"background, which is {_shown(each['base'])} of the picture"
        for rule, each in found.get("sinks", {}).items()
    ]


def _grounding(found: Mapping[str, Any]) -> list[str]:
    grounding = found.get("grounding")
    if not grounding:
        return []
    controls, best = grounding["controls"], grounding["best"]
    said = [
        f"attention inside the box by its area: {_shown(grounding['mean']['ratio'])} over heads, "
        f"{_shown(controls['centre_ratio'])} for a map of the centre; pointing {_shown(grounding['mean']['hit'])}, "
        f"{_shown(controls['even_hit'])} by luck"
    ]
    if best:
        said.append(
            f"best head {best['head']}, judged on other pictures: ratio {_shown(best['ratio'])}, pointing "
            f"{_shown(best['hit'])}"
        )
    said += [
        f"{words}, n = {found['n']}: ratio {_shown(found)}, pointing {_shown(grounding['baselines'][f'{start}_hit'])}"
        for start, words in BASELINES.items()
        if (found := grounding.get("baselines", {}).get(f"{start}_ratio"))
    ]
    return said


def _company(found: Mapping[str, Any]) -> list[str]:
    words = {"theme": "of the theme that the caption names", "likely": "that go with what is in the picture"}
    return [
        f"invented objects {words[kind]}: {_shown(each['share'])} of {each['invented']}; {_shown(each['expected'])} by "
        "luck"
        for kind, each in found["company"].items()
        if each["invented"]
    ]


def _beside(found: Mapping[str, Any]) -> None:
    for name, each in found.items():
        if isinstance(each, Mapping):
            console.print(
                f"Beside {escape(found['model'])} ({found['run']}), {name.replace('_', ' ')}: Spearman "
                f"{_shown(each['correlation'])}, {each['overlap']['value']:.0%} of the first heads shared, "
                f"{each['overlap']['chance']:.0%} by luck."
            )


def _shown(estimate: Mapping[str, Any]) -> str:
    return interval(estimate).replace("[", r"\[")
