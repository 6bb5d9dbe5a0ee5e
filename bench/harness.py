"""What every benchmark shares: variants against a named baseline in the same run, their memory, and the table.

A benchmark names groups of variants; the first of a group is its baseline. The variants take turns, one time each per
repeat, after a turn that is not counted, and a ratio is taken within a repeat, so a slow minute of the machine meets
all of them. Memory is what a variant adds, at its peak, to the loaded model and its prepared input: on a CPU in a
fresh process each, so that none inherits the heap of another. One such number varies by up to some 20 MB.
"""

import argparse
import ctypes
import gc
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from clock import seconds

from analysis.needles import haystack
from probes.generation import prefill
from probes.memory import cpu_threads, peak_bytes
from probes.subject import Subject, device_name, load


class Endless(Subject):
    """Never stops early, so that every variant decodes as many tokens."""

    stop_tokens = frozenset({-1})


@dataclass(frozen=True)
class Work:
    """A text of one length, and its cache."""

    subject: Subject
    length: int

    @cached_property
    def ids(self) -> torch.Tensor:
        text = haystack("kjv")[: 8 * self.length]  # a token of prose rarely covers eight characters
        return torch.tensor(self.subject.tokenizer(text)["input_ids"][: self.length])

    @cached_property
    def cache(self) -> Any:
        return prefill(self.subject, self.ids)


Variant = Callable[[Work], Callable[[], Any]]
"""Prepares its input, and returns what is measured."""
Groups = dict[str, dict[str, Variant]]


@torch.inference_mode()
def take_turns(work: Work, variants: dict[str, Variant], repeats: int) -> dict[str, list[float]]:
    device = work.subject.device
    rounds = [{name: seconds(make(work), device) for name, make in variants.items()} for _ in range(repeats + 1)]
    return {name: [turn[name] for turn in rounds[1:]] for name in variants}


@torch.inference_mode()
def added_bytes(work: Work, variant: Variant) -> int:
    """Memory at the peak beyond what was held before. On a CPU only right in a process that measures nothing else."""
    device = work.subject.device
    variant(Work(work.subject, 16))()  # what the first call alone allocates
    run = variant(work)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return peak_bytes(device) - before
    if sys.platform == "linux":
        # ru_maxrss also knows the peaks of loading and of the process that started this one; VmHWM can be set back.
        # Trimmed first, or what loading freed and the C library kept would serve the variant unseen.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    run()
    status = Path("/proc/self/status")
    held = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return max(0, (int(held[1]) * 1024 if held else peak_bytes(device)) - before)


def in_a_fresh_process(length: int, group: str, variant: str, asked: argparse.Namespace) -> int:
    command = [sys.executable, sys.argv[0], "--model", asked.model, "--lengths", str(length)]
    command += [f"--{name}={value}" for name in ("device", "dtype") if (value := getattr(asked, name))]
    finished = subprocess.run([*command, "--memory-of", group, variant], capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{group}, {variant} failed at {length} tokens:\n{finished.stderr}")
    return int(finished.stdout)


def measure(work: Work, groups: Groups, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per variant."""
    rows = []
    for group, variants in groups.items():
        times = take_turns(work, variants, asked.repeats)
        baseline = next(iter(times.values()))
        for name, own in times.items():
            ratios = [mine / its for mine, its in zip(own, baseline, strict=True)]
            row = {"tokens": work.length, "group": group, "variant": name, "n": len(own), "seconds": median(own)}
            row |= {"ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            on_gpu = work.subject.device.type == "cuda"
            row["added_bytes"] = (
                added_bytes(work, variants[name]) if on_gpu else in_a_fresh_process(work.length, group, name, asked)
            )
            rows.append(row)
    return rows


def circumstances(subject: Subject) -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    return {
        "model": f"{subject.name} in {subject.dtype}",
        "device": device_name(subject.device),
        "processor": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": f"{cpu_threads()}, {torch.get_num_threads()} threads, load {psutil.getloadavg()[0]:.1f} at the start",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("headscope", "torch", "transformers")),
        "command": "python " + shlex.join(sys.argv),
    }


def markdown(rows: list[dict[str, Any]], around: dict[str, Any]) -> str:
    lines = [f"- {name}: {value}" for name, value in around.items()]
    lines += ["", "| tokens | what | variant | n | median, s | ratio to the first (min to max) | added memory, MB |"]
    lines += ["| ---: | --- | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        cells = (row["tokens"], row["group"], row["variant"], row["n"], f"{row['seconds']:.3f}", ratio)
        lines.append("| " + " | ".join(map(str, cells)) + f" | {row['added_bytes'] / 1e6:.0f} |")
    return "\n".join(lines)


def main(groups: Groups, question: str) -> None:
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--lengths", default="512,1024,2048", help="tokens, by commas")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    loaded = load(asked.model, device=asked.device, dtype=asked.dtype)
    subject = Endless(**{field.name: getattr(loaded, field.name) for field in fields(loaded)})
    works = [Work(subject, int(length)) for length in asked.lengths.split(",")]
    if asked.memory_of:
        group, variant = asked.memory_of
        print(added_bytes(works[0], groups[group][variant]))
        return
    around = circumstances(subject)
    rows = [row for work in works for row in measure(work, groups, asked)]
    print(json.dumps({**around, "rows": rows}, indent=1) if asked.json else markdown(rows, around))
