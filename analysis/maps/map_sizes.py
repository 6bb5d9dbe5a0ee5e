"""Which layers a map run keeps, what that takes in memory and on disk, and whether there is room for it."""

import json
import shutil
from collections.abc import Sequence

from rich.console import Console

from analysis.display import Handling
from analysis.maps.overview import POOLINGS, whole
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.memory import check_fits, forward_bytes
from probes.subject import Subject

HALF = 2  # bytes of a kept number of q or k


def layers_of(text: str, anatomy: Anatomy) -> list[int]:
    """`all`, or numbers by commas. Raises HeadscopeError for a layer that the model lacks."""
    if text.strip().lower() == "all":
        return list(range(anatomy.layers))
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) < anatomy.layers for part in parts):
        raise HeadscopeError(
            f"--layers takes all, or numbers from 0 to {anatomy.layers - 1} separated by commas, and not {text!r}."
        )
    return sorted({int(part) for part in parts})


def kept_bytes(anatomy: Anatomy, tokens: int, layers: Sequence[int]) -> int:
    """What the run's arrays take on disk."""
    rows, columns = whole(tokens).shape()
    total = 0
    for layer in (anatomy.decoder[index] for index in layers):
        total += (layer.query_heads + layer.kv_heads) * layer.head_size * tokens * HALF
        total += layer.query_heads * (4 * tokens + len(POOLINGS) * rows * columns)
    return total


def map_fits(subject: Subject, tokens: int, layers: Sequence[int], handling: Handling) -> bool:
    """Refuse what has no room in memory or on disk; for a dry run say what it would take, and stop."""
    anatomy, out = subject.anatomy, handling.out.resolve()
    disk = kept_bytes(anatomy, tokens, layers)
    rows, columns = whole(tokens).shape()
    heads = sum(anatomy.decoder[index].query_heads for index in layers)
    # Four numbers per head and token, the overviews, and a layer's q and k widened and in half.
    memory = forward_bytes(anatomy, tokens, dtype=next(subject.model.parameters()).dtype)
    memory += heads * (4 * 4 * tokens + len(POOLINGS) * rows * columns) + 4 * disk // len(layers)
    check_fits(memory, subject.device, f"A map of {tokens} tokens")
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if disk > free:
        raise HeadscopeError(
            f"Keeping {len(layers)} layers of {tokens} tokens takes {disk / 1e6:.0f} MB and {free / 1e6:.0f} MB are "
            f"free at {handling.out}: choose fewer --layers or --tokens, or another --out."
        )
    if handling.dry_run and handling.as_json:
        print(json.dumps({"tokens": tokens, "layers": list(layers), "bytes_on_disk": disk,
                          "bytes_beside_the_weights": memory}))  # fmt: skip
    elif handling.dry_run:
        Console().print(
            f"{tokens} tokens, {len(layers)} layers of {subject.name} ({subject.dtype}, {subject.device}): "
            f"{disk / 1e6:.0f} MB on disk, about {memory / 1e9:.1f} GB of memory beside the weights. Nothing was run."
        )
    return not handling.dry_run
