"""What a map run keeps of a layer, and how a page reads no more of it than it draws.

    q    (head, n, d)     queries after RoPE, in half precision
    k    (kv head, n, d)  keys after RoPE, in half precision
    lse  (head, n)        L_i = log sum_j exp s_ij of these very q and k, in float32 and in nats

With L every weight stands for itself, p_ij = exp(s_ij - L_i): s_ij = scale q_i.k_j, then the soft-cap. L is that of the
rounded q and k, not of the model's own, so that the rows of what is shown sum to 1 (to less with a learned sink).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from analysis.runs import Run, writing
from probes.errors import HeadscopeError

ARRAYS = "arrays"
RECORDED = {"tokens", "ids", "texts", "spans", "layers", "sinks", "per_head"}


@dataclass(frozen=True)
class Rule:
    """What turns q, k and L into weights. window: keys that a query sees, itself included; None for all before it.

    learned_sink: a trained logit per head takes a part of each row, and L counts it. both_ways: tokens, from one up to
    another, that all see each other, as those of a picture do in Gemma 3.
    """

    layer: int
    scale: float
    window: int | None
    softcap: float | None
    learned_sink: bool
    both_ways: tuple[int, int] | None = None

    def keys_of(self, query: int) -> tuple[int, int]:
        """The keys that a query sees, from one up to another."""
        start, stop = 0 if self.window is None else max(0, query - self.window + 1), query + 1
        first, end = self.both_ways or (0, 0)
        return (min(start, first), max(stop, end)) if first <= query < end else (start, stop)

    def queries_of(self, key: int, tokens: int) -> tuple[int, int]:
        """The queries that see a key."""
        start, stop = key, tokens if self.window is None else min(tokens, key + self.window)
        first, end = self.both_ways or (0, 0)
        return (min(start, first), max(stop, end)) if first <= key < end else (start, stop)

    def sees(self, queries: tuple[int, int], keys: tuple[int, int]) -> Bool[Tensor, "n m"]:
        """Which of these queries sees which of these keys."""
        i, j = torch.arange(*queries)[:, None], torch.arange(*keys)
        seen = j <= i if self.window is None else (j <= i) & (i - j < self.window)
        first, end = self.both_ways or (0, 0)
        return seen | ((first <= i) & (i < end) & (first <= j) & (j < end))


@dataclass(frozen=True)
class KeptLayer:
    """A layer's file, opened for reading. digest: of its arrays; a tile that is stored names it."""

    file: Path
    rule: Rule
    digest: str
    heads: int
    kv_heads: int
    tokens: int

    def queries(self, head: int, start: int, stop: int) -> Float[Tensor, "n d"]:
        return self._slice("q", head, start, stop)

    def keys(self, head: int, start: int, stop: int) -> Float[Tensor, "n d"]:
        """Of the KV head that this query head reads."""
        return self._slice("k", head // (self.heads // self.kv_heads), start, stop)

    def lse(self, head: int, start: int, stop: int) -> Float[Tensor, " n"]:
        return self._slice("lse", head, start, stop)

    def _slice(self, name: str, row: int, start: int, stop: int) -> Tensor:
        try:
            with safe_open(self.file, "pt") as kept:
                return kept.get_slice(name)[row : row + 1, start:stop][0]
        except (OSError, SafetensorError):
            raise _damaged(self.file) from None


def layer_file(run: Run, layer: int) -> Path:
    return run.path / ARRAYS / f"L{layer}.safetensors"


def kept_layers(run: Run) -> list[int]:
    """The layers that a map run keeps. Raises HeadscopeError for a run of another command."""
    manifest = run.manifest
    if manifest["command"] != "map":
        raise HeadscopeError(f"{run.id} is a {manifest['command']} run and keeps no map: headscope map makes one.")
    numbers = [file.stem[1:] for file in (run.path / ARRAYS).glob("L*.safetensors")]
    return sorted(int(number) for number in numbers if number.isdecimal())


def kept_layer(run: Run, layer: int) -> KeptLayer:
    """Raises HeadscopeError where the run does not keep this layer, or its file is damaged."""
    file = layer_file(run, layer)
    if not file.exists():
        there = ", ".join(map(str, kept_layers(run))) or "none yet"
        raise HeadscopeError(
            f"The run {run.id} keeps no map of layer {layer}, only of {there}: run headscope map with --layers {layer}."
        )
    try:
        with safe_open(file, "pt") as kept:
            facts = json.loads(kept.metadata()["headscope"])
            q, k, lse = (kept.get_slice(name).get_shape() for name in ("q", "k", "lse"))
        (heads, tokens, _), (kv_heads, *_) = q, k
        both_ways = facts["rule"].get("both_ways")
        rule = Rule(**{**facts["rule"], "both_ways": tuple(both_ways) if both_ways else None})
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        raise _damaged(file) from None
    if lse != q[:2] or k[1:] != q[1:] or not kv_heads or heads % kv_heads:
        raise _damaged(file)
    return KeptLayer(file, rule, str(facts["digest"]), heads, kv_heads, tokens)


def record_of(run: Run) -> dict[str, Any]:
    """What a map run says of its prompt: tokens, ids, texts, spans, layers, sinks, per_head.

    Raises HeadscopeError where the forward has not ended, or the record is not a map's.
    """
    kept_layers(run)
    cases = run.cases()
    if not cases:
        raise HeadscopeError(f"The run {run.id} keeps no map yet: finish it with --resume {run.id}.")
    if not isinstance(cases[0], dict) or not cases[0].keys() >= RECORDED:
        raise _damaged(run.path / "cases.jsonl")
    return cases[0]


def keep_layer(file: Path, rule: Rule, arrays: Mapping[str, Tensor]) -> None:
    """Write a layer's q, k and lse, whole or not at all."""
    # safetensors writes an array's memory as it lies, which for a transposed one is another array.
    tensors = {name: values.detach().cpu().contiguous() for name, values in arrays.items()}
    digest = hashlib.sha256(json.dumps(asdict(rule), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    facts = json.dumps({"rule": asdict(rule), "digest": digest.hexdigest()}, sort_keys=True)
    keep(file, tensors, facts)


def keep(file: Path, tensors: dict[str, Tensor], facts: str) -> None:
    """A safetensors file with its facts, a JSON text, in the header."""
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}")
        try:
            save_file(tensors, scratch, metadata={"headscope": facts})
            scratch.replace(file)
        except SafetensorError as error:  # what a full disk becomes on its way through safetensors
            raise HeadscopeError(f"{file} could not be written ({error}): free some space and run again.") from error
        finally:
            scratch.unlink(missing_ok=True)


def _damaged(file: Path) -> HeadscopeError:
    return HeadscopeError(f"{file} is missing or damaged: delete the run's folder and run headscope map again.")
