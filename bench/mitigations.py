"""What does a mitigation cost? Seconds for each caption, beside the model as it is.

    python bench/mitigations.py                                           # the model of our own, alone and 50 at once
    python bench/mitigations.py --model llava-hf/llava-1.5-7b-hf --batches 1,8
    python bench/mitigations.py --batches 2 --new-tokens 4 --repeats 1    # does it run?

Every variant writes as many tokens, on the same pictures, stop tokens or not. What a mitigation must find out first
(which heads, which sinks) is part of its time. Variants take turns, and a ratio is taken within a repeat (harness.py).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from statistics import median
from typing import Any

import torch
from clock import seconds
from harness import Endless, circumstances

from analysis.vision.drawing import pictures
from analysis.vision.mitigations import Mitigation, caption, mitigation, presets
from analysis.vision.scenes import scenes
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, image_prompt
from probes.subject import Subject, load

QUESTION = "Please describe this image in detail."
BASELINE = "none"
BEYOND = ["var(form=released)", "paint(modulation=divergence)", "pai(gamma=1)"]


def prompts_of(subject: Subject, count: int) -> list[ImagePrompt]:
    return [image_prompt(subject, each.read(), QUESTION) for each in pictures(scenes("themed-clear", count=count))]


def runnable(subject: Subject, prompts: Sequence[ImagePrompt], texts: Sequence[str]) -> dict[str, Mitigation]:
    """By name, the baseline first; one that this model refuses is left out, with the reason."""
    chosen = {each.name: each for each in map(mitigation, [BASELINE, *texts])}
    for name, each in list(chosen.items()):
        try:
            caption(subject, prompts[:1], each, 2)
        except HeadscopeError as error:
            print(f"- left out: {name}, {error}", flush=True)
            del chosen[name]
    return chosen


@torch.inference_mode()
def measure(
    subject: Subject, prompts: Sequence[ImagePrompt], chosen: dict[str, Mitigation], asked: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each mitigation, at one size of batch."""
    runs = {name: partial(caption, subject, prompts, each, asked.new_tokens) for name, each in chosen.items()}
    rounds = [{name: seconds(run, subject.device) for name, run in runs.items()} for _ in range(asked.repeats + 1)]
    rows = []
    for name in chosen:
        times = [turn[name] / len(prompts) for turn in rounds[1:]]
        ratios = [turn[name] / turn[BASELINE] for turn in rounds[1:]]
        row = {"batch": len(prompts), "mitigation": name, "n": len(times), "seconds": median(times)}
        rows.append(row | {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)})
    return rows


def markdown(rows: Sequence[dict[str, Any]], around: dict[str, Any]) -> str:
    lines = [f"- {name}: {value}" for name, value in around.items()]
    lines += ["", "| batch | mitigation | n | median, ms a caption | ratio to none (min to max) |"]
    lines += ["| ---: | --- | ---: | ---: | ---: |"]
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        lines.append(f"| {row['batch']} | `{row['mitigation']}` | {row['n']} | {1000 * row['seconds']:.1f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What does a mitigation cost?")
    parser.add_argument("--model", default="emoji-llava")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--batches", default="1,50", help="captions at once, by commas")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mitigations", help="instead of all presets, separated by ;")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    loaded = load(asked.model, device=asked.device, dtype=asked.dtype)
    subject = Endless(**{field.name: getattr(loaded, field.name) for field in fields(loaded)})
    sizes = [int(size) for size in asked.batches.split(",")]
    prompts = prompts_of(subject, max(sizes))
    texts = asked.mitigations.split(";") if asked.mitigations else [*(each.name for each in presets()), *BEYOND]
    chosen = runnable(subject, prompts, [text.strip() for text in texts])
    around = circumstances(subject) | {"tokens written": asked.new_tokens}
    rows = [row for size in sizes for row in measure(subject, prompts[:size], chosen, asked)]
    print(json.dumps({**around, "rows": rows}, indent=1) if asked.json else markdown(rows, around))


if __name__ == "__main__":
    main()
