"""What does a model lose without its sinks, and without its massive activations?

    headscope evict                              # or python -m analysis.eviction
    headscope evict --budget 512 --tokens 4096 --count 8

Loss on windows of real texts, each under: a cache of the latest tokens alone, and with `sink` first tokens at the same
budget (StreamingLLM, Xiao et al., ICLR 2024), the latter also with positions counted inside the cache; the first token
hidden, halved, or half of what it receives handed to the others; massive activations set to zero and to their mean
(Sun et al., COLM 2024), found beforehand on other windows; and two rules that let a head give nothing away, put into a
model that was not trained with them: off-by-one and clipped softmax.
"""

import sys
from dataclasses import dataclass

from analysis import massive
from analysis.display import Handling
from analysis.evaluation import Asked, judge
from analysis.intervene import Point
from analysis.interventions import written
from analysis.runs import Run
from analysis.study import ModelChoice
from analysis.tasks import Perplexity
from probes.errors import HeadscopeError
from probes.rotary import check_turns
from probes.sources import DEFAULT_MODEL
from probes.subject import Subject

LOOKED_AT, LENGTH = 16, 128  # windows, and tokens of each, in which massive activations are looked for
RULES = ("off_by_one", "clipped_softmax, alpha=1")


@dataclass(frozen=True)
class Eviction:
    """budget: keys that a streaming cache holds; sink: how many of them are first tokens. tokens: of each window."""

    budget: int = 256
    sink: int = 4
    tokens: int = 1024
    count: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.sink < self.budget:
            raise HeadscopeError(f"--sink: a cache of {self.budget} keys begins with 1 to {self.budget - 1} of them.")
        if self.budget >= self.tokens:
            raise HeadscopeError(
                f"--budget: a cache of {self.budget} keys evicts nothing from a window of {self.tokens} tokens."
            )


def evict(asked: Eviction, model: str | None, device: str | None, dtype: str | None, seed: int, handling: Handling) -> (
    Run | None
):  # fmt: skip
    """Judge every way of doing without; returns the finished run, or None for a dry run."""
    subject = ModelChoice(model or DEFAULT_MODEL, device, dtype).load()
    judged = Asked(
        "evict", {}, f"perplexity(tokens={asked.tokens}, stride={asked.tokens // 2})", asked.count, 0, "last", model,
        device, dtype, seed,
    )  # fmt: skip
    return judge(judged, points(asked, subject, seed=seed), handling, command="evict")


def points(asked: Eviction, subject: Subject, *, seed: int) -> list[Point]:
    """Every way of doing without, named.

    A model without massive activations has no points for them, and one whose queries can't be turned to another
    position none for positions inside the cache.
    """
    window = asked.budget - asked.sink
    ways = {
        "window": f"stream(0, {asked.budget}) @ all",
        "sink+window": f"stream({asked.sink}, {window}) @ all",
    }
    if _turns(subject):
        ways["sink+window, positions in cache"] = f"stream({asked.sink}, {window}, cache) @ all"
    ways |= {
        "first hidden": "knock_out(0:1) @ all",
        "first halved": "weight(0:1, 0.5) @ all",
        "first hands half over": "move(0:1, 1:, 0.5) @ all",
    }
    found = massive_activations(subject, seed=seed + 1)
    for way, mean in (("massive to zero", False), ("massive to mean", True)):
        if removed := massive.removing(found, mean=mean):
            ways[way] = written(removed)
    ways |= {rule: f"swap({rule}) @ all" for rule in RULES}
    return [Point(text, (("way", name),)) for name, text in ways.items()]


def _turns(subject: Subject) -> bool:
    try:
        for layer in subject.anatomy.decoder:
            check_turns(layer)
    except HeadscopeError:
        return False
    return True


def massive_activations(subject: Subject, *, seed: int) -> list[dict[str, object]]:
    """The massive activations of the model over some short windows of text, as analysis.massive lists them."""
    windows = Perplexity(tokens=LENGTH, stride=LENGTH // 2)
    looked_at = windows.examples(subject, count=LOOKED_AT, seed=seed)
    records = [massive.activation_record(subject, windows.prompt(subject, each)) for each in looked_at]
    found: list[dict[str, object]] = massive.summarise(records, seed=seed)["massive"]
    return found


if __name__ == "__main__":
    from analysis.cli import main

    main(["evict", *sys.argv[1:]])
