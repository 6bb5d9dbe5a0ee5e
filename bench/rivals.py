"""What would a user pick instead, and at what price?

    python bench/rivals.py                            # on a CPU: the default model at 512, 1024 and 2048 tokens
    python bench/rivals.py --shape llama8b --layers 4 # on a GPU: Llama 3 8B's shape, 1024 to 131072 tokens
    python bench/rivals.py --lengths 256 --repeats 1  # does it run?

Whole models: a plain forward under SDPA, which is the baseline; the full maps that Transformers and TransformerLens
give; our Tap reading the core set. On a GPU also one layer's q and k: flash-colreduce's idea next to ours. Whoever runs
out of memory at one length is not tried at a longer one. Times are medians of turns that the variants take one after
the other, after one that is not counted; a ratio is taken within a turn. Memory is what a variant adds at its peak to
the loaded model: on a CPU, in a fresh process each. Tokens, and the weights of a shape, are random.
"""

import argparse
import copy
import ctypes
import gc
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from clock import seconds
from torch import Tensor

from kernels.attention import attend_fused
from kernels.statistics import statistics
from probes.anatomy import read_anatomy
from probes.generation import last_logits
from probes.memory import available_bytes, cpu_threads, peak_bytes
from probes.readers import StatisticsReader
from probes.subject import Subject, choose_device, choose_dtype, device_name, load
from probes.tap import Tap

CORE = ("entropy", "distance", "clipped_distance", "top_key", "top_weight", "mass", "received", "received_max")
SHAPES = {
    "llama8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2},
}
LENGTHS = {"cpu": "512,1024,2048", "cuda": ",".join(str(1024 * 2**i) for i in range(8))}
WARM_UP = 128  # tokens of the call that is not measured
NEEDLE = 20  # tokens, in the middle of the text


@dataclass(frozen=True)
class Prompt:
    """Random tokens for a model, and random q, k, v as one of its layers would have them."""

    subject: Subject
    length: int

    @cached_property
    def ids(self) -> Tensor:
        torch.manual_seed(0)
        return torch.randint(self.subject.anatomy.vocabulary, (1, self.length)).to(self.subject.device)

    @cached_property
    def layer(self) -> tuple[Tensor, Tensor, Tensor]:
        first, like = self.subject.anatomy.decoder[0], next(self.subject.model.parameters())
        torch.manual_seed(0)
        q, k, v = (
            torch.randn(1, heads, self.length, first.head_size, device=like.device, dtype=like.dtype)
            for heads in (first.query_heads, first.kv_heads, first.kv_heads)
        )
        return q, k, v

    @property
    def spans(self) -> dict[str, range]:
        return {"sink": range(4), "needle": range(self.length // 2, self.length // 2 + NEEDLE)}

    def map_bytes(self) -> int:
        """What the maps of all layers take in float32."""
        anatomy = self.subject.anatomy
        return anatomy.query_heads * anatomy.layers * self.length**2 * 4


Variant = Callable[[Prompt], Callable[[], Any]]
"""Prepares its input, and returns what is measured."""


def forward(prompt: Prompt, **options: Any) -> Callable[[], Any]:
    subject, ids = prompt.subject, prompt.ids
    return lambda: subject.model(input_ids=ids, use_cache=False, **last_logits(subject), **options)


@contextmanager
def attention(model: Any, implementation: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before


def plain(prompt: Prompt) -> Callable[[], Any]:
    run = forward(prompt)

    def measured() -> Any:
        with attention(prompt.subject.model, "sdpa"):
            return run()

    return measured


def eager(prompt: Prompt) -> Callable[[], Any]:
    run = forward(prompt, output_attentions=True)

    def measured() -> Any:
        with attention(prompt.subject.model, "eager"):
            return run().attentions

    return measured


@cache
def bridge_of(subject: Subject) -> Any:
    """On a copy: the bridge puts its own modules in place of the model's."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = copy.deepcopy(subject.model)
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def lens(prompt: Prompt) -> Callable[[], Any]:
    bridge, ids = bridge_of(prompt.subject), prompt.ids
    patterns = [name for name in bridge.hook_dict if name.endswith("hook_pattern")]
    return lambda: bridge.run_with_cache(ids, names_filter=patterns, use_cache=False, **last_logits(prompt.subject))


def tap(prompt: Prompt) -> Callable[[], Any]:
    run = forward(prompt)

    def measured() -> Any:
        reader = StatisticsReader(CORE, prompt.spans)
        with Tap(prompt.subject, readers=[reader]):
            run()
        return reader

    return measured


def sdpa_of_layer(prompt: Prompt) -> Callable[[], Any]:
    q, k, v = prompt.layer
    return lambda: attend_fused(q, k, v, scale=q.shape[-1] ** -0.5, causal=True)


def colreduce(prompt: Prompt) -> Callable[[], Any]:
    from colreduce import column_sums

    q, k, _ = prompt.layer
    shared = q.shape[1] // k.shape[1]
    return lambda: column_sums(q, k.repeat_interleave(shared, 1), scale=q.shape[-1] ** -0.5)


def statistics_of_layer(wanted: tuple[str, ...], given_lse: bool, prompt: Prompt) -> Callable[[], Any]:
    q, k, _ = prompt.layer
    slot = torch.arange(prompt.length, device=q.device)[None]
    spans = {name: (slot >= span.start) & (slot < span.stop) for name, span in prompt.spans.items()}
    lse = sdpa_of_layer(prompt)()[1] if given_lse else None
    return lambda: statistics(q, k, scale=q.shape[-1] ** -0.5, wanted=wanted, spans=spans, lse=lse)


BASELINE = "forward under SDPA"
EAGER = "Transformers, eager, output_attentions=True: all maps"
LENS = "TransformerLens, run_with_cache of every hook_pattern: all maps"
TAP = "headscope, Tap with the core set: no map"
COLREDUCE = "flash-colreduce's idea, column sums, keys repeated"
MODEL: dict[str, Variant] = {BASELINE: plain, EAGER: eager, LENS: lens, TAP: tap}
LAYER: dict[str, Variant] = {
    "SDPA, its output": sdpa_of_layer,
    COLREDUCE: colreduce,
    "headscope, column sums": partial(statistics_of_layer, ("received_sum",), False),
    "headscope, core set, the SDPA's log-sum-exp given": partial(statistics_of_layer, CORE, True),
}
GROUPS = {"the model": MODEL, "one layer's q and k": LAYER}
KEEPS_MAPS = (EAGER, LENS)


def subject_of(asked: argparse.Namespace) -> Subject:
    device = choose_device(asked.device)
    shape = asked.shape or ("llama8b" if device.type == "cuda" and asked.model is None else None)
    if shape is None:
        return load(asked.model or "smollm2-135m", device=asked.device, dtype=asked.dtype)
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=4096, num_hidden_layers=asked.layers, max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"], **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=choose_dtype(asked.dtype, device))
    model = model.eval().requires_grad_(False)
    return Subject(f"{shape}, {asked.layers} layers, random", model, tokenizer=None, anatomy=read_anatomy(model))


def attempt(action: Callable[[], Any]) -> Any:
    """What `action` returns, or the reason, as a string, why it could not: one rival's end is not the others'."""
    try:
        return action()
    except torch.OutOfMemoryError:
        why = "out of memory"
    except ModuleNotFoundError as error:
        why = f"not installed ({error.name})"
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        why = "out of memory" if "can't allocate memory" in str(error) else f"{type(error).__name__}: {first[:120]}"
    gc.collect()
    torch.cuda.empty_cache()
    return why


@torch.inference_mode()
def added_bytes(prompt: Prompt, variant: Variant) -> int:
    """Memory at the peak beyond what was held before. On a CPU only right in a process that measures nothing else."""
    device = prompt.subject.device
    variant(Prompt(prompt.subject, WARM_UP))()  # what the first call alone allocates
    run = variant(prompt)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        if sys.platform == "linux":
            # As in harness.py: give back what loading freed, and forget its peak.
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
            Path("/proc/self/clear_refs").write_text("5")
        before = psutil.Process().memory_info().rss
    run()
    return max(0, peak_bytes(device) - before)


def in_a_fresh_process(length: int, group: str, name: str) -> Any:
    """Bytes, or the reason why there are none."""
    command = [sys.executable, *sys.argv, "--lengths", str(length), "--memory-of", group, name]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        return "out of memory, killed" if finished.returncode < 0 else f"failed with status {finished.returncode}"
    said = finished.stdout.splitlines()[-1]
    return int(said) if said.isdigit() else said


@dataclass
class Contest:
    """Who still runs at which length."""

    subject: Subject
    repeats: int
    limit: float | None
    reached: dict[tuple[str, str], int] = field(default_factory=dict)
    ended: dict[tuple[str, str], str] = field(default_factory=dict)

    @torch.inference_mode()
    def rows(self, length: int, group: str) -> list[dict[str, Any]]:
        """A row per variant that has not ended at a shorter length."""
        prompt = Prompt(self.subject, length)
        rows, runs = [], dict[str, Callable[[], Any]]()
        for name, variant in GROUPS[group].items():
            if (group, name) in self.ended:
                continue
            print(f"{length} tokens, {group}, {name}", file=sys.stderr, flush=True)
            row = {"tokens": length, "group": group, "variant": name, "added_bytes": self.memory(prompt, group, name)}
            run = row["added_bytes"] if isinstance(row["added_bytes"], str) else attempt(partial(variant, prompt))
            if isinstance(run, str):
                self.ended[group, name] = f"{run} at {length}"
                row["why"] = run
            else:
                runs[name] = run
            rows.append(row)
        times = self.take_turns(runs)
        baseline = times.get(next(iter(GROUPS[group])))
        for row in rows:
            own = times.get(row["variant"], [])
            if isinstance(own, str):
                self.ended[group, row["variant"]] = f"{own} at {length}"
                row["why"] = own
            elif own:
                self.reached[group, row["variant"]] = length
                row |= {"n": len(own), "seconds": median(own)}
                if isinstance(baseline, list):
                    row["ratios"] = [mine / its for mine, its in zip(own, baseline, strict=True)]
        return rows

    def memory(self, prompt: Prompt, group: str, name: str) -> Any:
        """Bytes, or the reason why there are none."""
        needed = prompt.map_bytes()
        if self.limit is not None and name in KEEPS_MAPS and needed > self.limit:
            return f"out of memory (not tried: the maps alone take {needed / 1e9:.1f} GB)"
        if self.subject.device.type == "cuda":
            return attempt(partial(added_bytes, prompt, GROUPS[group][name]))
        return in_a_fresh_process(prompt.length, group, name)

    def take_turns(self, runs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """Seconds of every counted turn, or the reason why there are none."""
        times: dict[str, Any] = {name: [] for name in runs}
        for turn in range(self.repeats + 1):
            for name, run in runs.items():
                if isinstance(times[name], str):
                    continue
                took = attempt(partial(seconds, run, self.subject.device))
                if isinstance(took, str):
                    times[name] = took
                elif turn:
                    times[name].append(took)
        return times


def circumstances(subject: Subject, limit: float | None) -> dict[str, str]:
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    around = {
        "model": f"{subject.name} in {subject.dtype}",
        "device": device_name(subject.device),
        "processor": found[1] if found else platform.machine(),
        "cores": f"{cpu_threads()}, {torch.get_num_threads()} threads, load {psutil.getloadavg()[0]:.1f} at the start",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions()]),
        "command": "python " + shlex.join(sys.argv),
        "core set": f"{', '.join(CORE)} (mass on two spans)",
    }
    if limit is not None:
        around["memory limit"] = f"{limit / 1e9:.1f} GB for the maps, heads x layers x n x n x 4 bytes, before trying"
        around[COLREDUCE] = "skipped, its kernel needs an NVIDIA GPU"
    return around


def versions() -> Iterator[str]:
    for name in ("headscope", "torch", "triton", "transformers", "transformer-lens"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"


def markdown(rows: list[dict[str, Any]], contest: Contest, around: dict[str, str]) -> str:
    lines = ["# What would a user pick instead?", "", *(f"- {name}: {value}" for name, value in around.items())]
    lines += ["", "| tokens | what | variant | n | median, s | ratio to the first (min to max) | added memory, MB |"]
    lines += ["| ---: | --- | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        cells = [row["tokens"], row["group"], row["variant"]]
        if "why" in row:
            cells += [0, row["why"], "", ""]
        else:
            ratios = row.get("ratios")
            cells += [row["n"], f"{row['seconds']:.4f}"]
            cells += [f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""]
            cells += [f"{row['added_bytes'] / 1e6:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| what | variant | longest length it ran at | and then |", "| --- | --- | ---: | --- |"]
    for group, name in dict.fromkeys((row["group"], row["variant"]) for row in rows):
        end = contest.ended.get((group, name), "no longer one was asked for")
        lines.append(f"| {group} | {name} | {contest.reached.get((group, name), 'none')} | {end} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", help=f"tokens, by commas (on a CPU {LENGTHS['cpu']}, on a GPU {LENGTHS['cuda']})")
    parser.add_argument("--model", help="smollm2-135m, a folder or a GGUF file; the default on a CPU")
    parser.add_argument("--shape", choices=SHAPES, help="a Llama of this shape with random weights; llama8b on a GPU")
    parser.add_argument("--layers", type=int, default=4, help="of the shape")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-limit", type=float, help="GB that all maps may take on a CPU (80 %% of what is free)")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    subject = subject_of(asked)
    lengths = [int(length) for length in (asked.lengths or LENGTHS[subject.device.type]).split(",")]
    if asked.memory_of:
        group, name = asked.memory_of
        print(attempt(partial(added_bytes, Prompt(subject, lengths[0]), GROUPS[group][name])))
        return
    on_gpu = subject.device.type == "cuda"
    limit = None if on_gpu else 1e9 * (asked.memory_limit or 0.8 * available_bytes(subject.device) / 1e9)
    around = circumstances(subject, limit)
    contest = Contest(subject, asked.repeats, limit)
    groups = GROUPS if on_gpu else ("the model",)
    rows = [row for length in sorted(lengths) for group in groups for row in contest.rows(length, group)]
    print(markdown(rows, contest, around))


if __name__ == "__main__":
    main()
