"""How long until a map is kept, and until a tile of it is there?

    python bench/maps.py                                            # the default model, 8,000 tokens, three layers
    python bench/maps.py --tokens 500 --layers 1 --repeats 1        # does it run?

A tile that is computed has its stored one deleted before; the files that it reads were read before, as on a page that
is open. Each line gives median, least and most of its repeats; `headscope map` is run once.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from clock import seconds
from harness import circumstances

from analysis.maps.exact import column, layer_heads, row
from analysis.maps.overview import overview_bytes
from analysis.maps.tiles import tile
from analysis.runs import Run, list_runs
from probes.heads import Head
from probes.subject import load

ZOOM = 1024


def kept_run(asked: argparse.Namespace, folder: Path) -> tuple[Run, float, str]:
    """The run, the seconds of the whole command, and the command."""
    arguments = ["map", "--model", asked.model, "--tokens", str(asked.tokens), "--layers", asked.layers]
    start = time.perf_counter()
    command = [sys.executable, "-m", "analysis.cli", *arguments, "--device", "cpu", "--out", str(folder), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return list_runs(folder)[0][0], time.perf_counter() - start, shlex.join(["headscope", *arguments])


def looks(run: Run, tokens: int) -> dict[str, tuple[bool, Callable[[], Any]]]:
    """What a page asks for; True where the stored tiles are deleted before."""
    layers = run.cases()[0]["layers"]
    head = Head(layers[len(layers) // 2], 4)
    side = min(ZOOM, tokens // 2)
    near = {"queries": (tokens - side, tokens), "keys": (tokens - side, tokens)}
    far = {"queries": (tokens - side, tokens), "keys": (0, side)}
    return {
        "every kept head's overview, read": (False, lambda: overview_bytes(run)),
        f"tile of the whole map, 512 cells, mean, {head}": (True, lambda: tile(run, head)),
        "the same, max": (True, lambda: tile(run, head, pooling="max")),
        "the same, mean, first token left out": (True, lambda: tile(run, head, leave_out=[0])),
        f"tile of {side} x {side} tokens on the diagonal": (True, lambda: tile(run, head, **near)),
        f"tile of {side} x {side} tokens, last queries, first keys": (True, lambda: tile(run, head, **far)),
        "tile of the whole map, stored": (False, lambda: tile(run, head)),
        "row of the last query, one head": (False, lambda: row(run, [head], tokens - 1)),
        "row of the last query, mean of a layer": (False, lambda: row(run, layer_heads(run, head.layer), tokens - 1)),
        "column of the first key, mean of a layer": (False, lambda: column(run, layer_heads(run, head.layer), 0)),
    }


def measure(run: Run, tokens: int, repeats: int) -> list[tuple[str, list[float]]]:
    device, rows = torch.device("cpu"), []
    for name, (computed, look) in looks(run, tokens).items():
        times = []
        for _ in range(repeats + 1):
            if computed:
                shutil.rmtree(run.path / "arrays" / "tiles", ignore_errors=True)
            times.append(seconds(look, device))
        rows.append((name, times[1:]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--layers", default="0,15,29")
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    around = circumstances(load(asked.model, device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        run, whole, command = kept_run(asked, Path(folder))
        held = sum(file.stat().st_size for file in (run.path / "arrays").glob("*.safetensors"))
        rows = measure(run, asked.tokens, asked.repeats)
    print(*(f"- {name}: {value}" for name, value in around.items()), sep="\n")
    print(f"- kept: {asked.tokens} tokens, layers {asked.layers}, {held / 1e6:.0f} MB")
    print("\n| what | n | median, s | least | most |\n| --- | ---: | ---: | ---: | ---: |")
    print(f"| `{command}`, model loaded and all | 1 | {whole:.1f} | | |")
    for name, times in rows:
        print(f"| {name} | {len(times)} | {median(times):.4f} | {min(times):.4f} | {max(times):.4f} |")


if __name__ == "__main__":
    main()
