"""What does the rhythm of a long trace cost, and how far does eager attention come?

    python bench/rhythm.py                                             # the default model at 512, 1024 and 2048 tokens
    python bench/rhythm.py --lengths 2048,4096,8192,16384,32768        # on a GPU
    python bench/rhythm.py --lengths 256 --repeats 1                   # does it run?

One forward over a trace of N tokens, all but the first 64 of them the response: as the model runs without headscope,
read by `read_rhythm`, and with the dense maps of all layers that Transformers' eager attention keeps. Whoever runs out
of memory at one length is not tried at a longer one. Tokens are random; a length beyond the model's context is measured
all the same and marked. Times are medians of turns that the variants take one after the other, after one that is not
counted. Memory is what a variant adds at its peak to the loaded model: on a CPU in a fresh process each.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from clock import seconds
from harness import Variant, Work, added_bytes, circumstances, in_a_fresh_process

from analysis.rhythm.reading import read_rhythm
from probes.generation import last_logits
from probes.memory import available_bytes
from probes.subject import Subject, load

PROMPT = 64
SHARE_OF_MEMORY = 0.9  # on a CPU, where too much ends the process, maps that would take more are not tried
Row = dict[str, Any]


class Trace(Work):
    """Random tokens: a real text of this length costs the same."""

    @property
    def ids(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.subject.anatomy.vocabulary, (self.length,), generator=generator)

    @property
    def response(self) -> range:
        return range(min(PROMPT, self.length // 4), self.length)

    def map_bytes(self) -> int:
        """What the maps of all layers take, and one more in float32 for its softmax."""
        anatomy = self.subject.anatomy
        one = anatomy.query_heads * self.length**2
        return one * (anatomy.layers * next(self.subject.model.parameters()).element_size() + 2 * 4)


def forward(work: Work, implementation: str, **options: Any) -> Callable[[], Any]:
    subject, ids = work.subject, work.ids[None].to(work.subject.device)

    def run() -> Any:
        before = subject.model.config._attn_implementation
        subject.model.config._attn_implementation = implementation
        try:
            return subject.model(input_ids=ids, use_cache=False, **last_logits(subject), **options)
        finally:
            subject.model.config._attn_implementation = before

    return run


def plain(work: Work) -> Callable[[], Any]:
    return forward(work, "sdpa")


def eager(work: Work) -> Callable[[], Any]:
    return forward(work, "eager", output_attentions=True)


def rhythm(work: Work) -> Callable[[], Any]:
    trace = Trace(work.subject, max(work.length, 2 * PROMPT))  # the harness warms up with a few tokens
    ids = trace.ids
    return lambda: read_rhythm(work.subject, ids, trace.response)


PLAIN, RHYTHM, EAGER = "forward under SDPA, nothing read", "read_rhythm", "eager, dense maps of all layers kept"
VARIANTS: dict[str, Variant] = {PLAIN: plain, RHYTHM: rhythm, EAGER: eager}


def attempt(action: Callable[[], Any]) -> Any:
    """What `action` returns, or None where the memory does not hold it."""
    try:
        return action()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
    gc.collect()
    torch.cuda.empty_cache()
    return None


def fits(trace: Trace, name: str) -> bool:
    device = trace.subject.device
    return name != EAGER or device.type == "cuda" or trace.map_bytes() < SHARE_OF_MEMORY * available_bytes(device)


def memory(trace: Trace, name: str, asked: argparse.Namespace) -> int | None:
    if trace.subject.device.type == "cuda":
        torch.cuda.empty_cache()
        held: int | None = attempt(partial(added_bytes, trace, VARIANTS[name]))
        return held
    return in_a_fresh_process(trace.length, "trace", name, asked)


@torch.inference_mode()
def measure(trace: Trace, asked: argparse.Namespace, ended: set[str]) -> list[Row]:
    """A row per variant; those that run out of memory join `ended`."""
    rows: list[Row] = []
    for name in VARIANTS:
        if name in ended:
            continue
        print(f"{trace.length} tokens, {name}", file=sys.stderr, flush=True)
        added = memory(trace, name, asked) if fits(trace, name) else None
        if added is None:
            ended.add(name)
        rows.append({"tokens": trace.length, "variant": name, "added_bytes": added, "seconds": None})
    times: dict[str, list[float]] = {row["variant"]: [] for row in rows if row["variant"] not in ended}
    for turn in range(asked.repeats + 1):
        for name, own in times.items():
            taken = attempt(partial(seconds, VARIANTS[name](trace), trace.subject.device))
            if turn and taken is not None:
                own.append(taken)
    for row in rows:
        if own := times.get(row["variant"]):
            row |= {"n": len(own), "seconds": median(own), "least": min(own), "most": max(own)}
    return rows


def markdown(rows: list[Row], around: dict[str, Any], context: int) -> str:
    lines = [f"- {name}: {value}" for name, value in around.items()]
    lines += ["", "| tokens | what | n | median, s | least to most, s | added memory, MB |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        length = f"{row['tokens']}, beyond the context of {context}" if 0 < context < row["tokens"] else row["tokens"]
        held = "out of memory" if row["added_bytes"] is None else f"{row['added_bytes'] / 1e6:.0f}"
        taken = "- | - | -"
        if row["seconds"] is not None:
            taken = f"{row['n']} | {row['seconds']:.3f} | {row['least']:.3f} to {row['most']:.3f}"
        lines.append(f"| {length} | {row['variant']} | {taken} | {held} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What does the rhythm of a long trace cost?")
    parser.add_argument("--lengths", default="512,1024,2048", help="tokens, by commas")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    subject: Subject = load(asked.model, device=asked.device, dtype=asked.dtype)
    traces = [Trace(subject, int(length)) for length in asked.lengths.split(",")]
    if asked.memory_of:
        print(added_bytes(traces[0], VARIANTS[asked.memory_of[1]]))
        return
    around, ended = circumstances(subject), set[str]()
    rows = [row for trace in traces for row in measure(trace, asked, ended)]
    context = subject.anatomy.context
    print(
        json.dumps({**around, "context": context, "rows": rows}, indent=1)
        if asked.json
        else markdown(rows, around, context)
    )


if __name__ == "__main__":
    main()
