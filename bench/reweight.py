"""What does it cost to weigh classes of keys inside attention, next to attention that weighs nothing?

    python bench/reweight.py                                      # every table, on one NVIDIA GPU
    python bench/reweight.py --only speed --lengths 8192,32768
    python bench/reweight.py --only tune                          # which tiles to write into kernels/reweight/triton.py

One layer of 32 heads on 8 in bfloat16, causal, random queries and keys. Times are medians of turns that the variants
take one after the other, after a turn that is not counted; a ratio is taken within a turn. Added memory is the peak of
a call and what was prepared for it.
"""

import argparse
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from attention_statistics import HEADS, Layer, added_bytes, markdown, take_turns
from clock import seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from kernels.attention import visible_pairs
from kernels.reweight import Change, Move, attend_changed
from kernels.reweight.triton import TUNED, Tile, attend_classes
from kernels.statistics import statistics

HEAD_SIZES = (128, 64)
SPAN = 20
LOG_WEIGHTS = (-30.0, -10.0, -1.0, 0.0, 1.0, 5.0)
SHARE = 0.3
"""Of the mass on the source, what the rows hand over in the form that moves mass (VAR)."""
CANDIDATES = {
    64: [
        *[Tile(128, 64, 4, stages) for stages in (2, 3, 4)],
        *[Tile(128, 128, 8, stages) for stages in (2, 3)],
        *[Tile(64, keys, 4, stages) for keys, stages in ((64, 2), (64, 3), (128, 2))],
        *[Tile(queries, 64, 8, 3) for queries in (128, 256)],
        Tile(128, 128, 4, 2),
    ],
    128: [
        *[Tile(128, 64, 8, stages) for stages in (2, 3, 4)],
        *[Tile(128, 64, 4, stages) for stages in (2, 3)],
        *[Tile(64, 64, 4, stages) for stages in (2, 3)],
        *[Tile(128, 32, 4, stages) for stages in (3, 4)],
        Tile(128, 128, 8, 2),
        Tile(64, 128, 4, 2),
        Tile(256, 64, 8, 2),
    ],
    256: [Tile(128, 64, 8, 2), Tile(128, 32, 8, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 3)],
}


@dataclass(frozen=True)
class Variant:
    run: Callable[[], Any]
    prepared: int = 0
    """Bytes made beforehand that it alone needs."""


def spread(n: int, count: int) -> Tensor:
    """Classes (1, n): `count` - 1 spans of 20 keys, evenly spread, and class 0."""
    classes = torch.zeros(1, n, dtype=torch.uint8, device="cuda")
    for at in range(1, count):
        start = n * at // count
        classes[:, start : start + SPAN] = at
    return classes


def scattered(n: int, count: int) -> Tensor:
    """Classes (1, n) with every key of some class but 0: no block is spared."""
    return (torch.arange(n, device="cuda") % (count - 1) + 1)[None].to(torch.uint8)


def fixed(count: int) -> Tensor:
    """Log weights (1, heads, 1, count), another for each head and class."""
    table = torch.linspace(-2, 2, HEADS * count, device="cuda").view(1, HEADS, 1, count)
    return table * (torch.arange(count, device="cuda") > 0)


def in_pieces(x: Tensor, count: int) -> Tensor:
    """(..., c) as (..., count c) in bfloat16, whose sums are x to 8 bits for each piece."""
    pieces = []
    for _ in range(count):
        pieces.append(x.bfloat16())
        x = x - pieces[-1].float()
    return torch.cat(pieces, -1)


def by_columns(layer: Layer, classes: Tensor, table: Tensor, pieces: int) -> Tensor:
    """Flash attention with a column of k for each class and piece, and its log weight in q."""
    b, _, n, d = layer.q.shape
    count = table.shape[-1]
    member = classes[..., None] == torch.arange(1, count, device=classes.device)
    wide = -(-(count - 1) * pieces // 8) * 8
    q_columns = in_pieces(table[..., 1:] * d**0.5, pieces)
    k_columns = member.repeat(1, 1, pieces).to(layer.k.dtype)[:, None]
    q_columns, k_columns = (pad(x, (0, wide - x.shape[-1])) for x in (q_columns, k_columns))
    q = torch.cat([layer.q, q_columns.expand(b, HEADS, n, wide)], -1)
    k = torch.cat([layer.k, k_columns.expand(b, layer.k.shape[1], n, wide)], -1)
    v = pad(layer.v, (0, wide))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=d**-0.5, enable_gqa=True)[..., :d]


def dense_bias(layer: Layer, classes: Tensor, table: Tensor) -> Tensor:
    """(1, heads, n, n): for each of the table's heads the log weight of every key, and a causal triangle."""
    per_key = table[0, :, 0].gather(-1, classes.long().expand(table.shape[1], -1)).to(layer.q.dtype)
    hidden = ~visible_pairs(layer.n, layer.n, device=classes.device)
    return per_key[None, :, None, :].masked_fill(hidden, -math.inf)


def with_mask(layer: Layer, mask: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return scaled_dot_product_attention(layer.q, layer.wide_k, layer.wide_v, mask)


def by_dense_bias(layer: Layer, classes: Tensor, table: Tensor) -> Variant:
    mask = dense_bias(layer, classes, table[:, :1])  # one for all heads: each its own would be 32 times as much
    return Variant(lambda: with_mask(layer, mask.expand(1, HEADS, -1, -1)), mask.nbytes)


def by_flex(layer: Layer, classes: Tensor, table: Tensor) -> Variant:
    causal = torch.compile(create_block_mask)(lambda b, h, i, j: i >= j, None, None, layer.n, layer.n, device="cuda")
    of_key, weight, run = classes[0].int(), table[0, :, 0].contiguous(), torch.compile(flex_attention)

    def weigh(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + weight[h, of_key[j]]

    return Variant(lambda: run(layer.q, layer.k, layer.v, score_mod=weigh, block_mask=causal, enable_gqa=True))


def by_classes(layer: Layer, classes: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return attend_classes(layer.q, layer.k, layer.v, classes, table, scale=layer.d**-0.5, causal=True)


def moving(layer: Layer) -> Tensor:
    """Every row hands a share of its mass on the sink to the needle, as the Tap has it done."""
    everywhere = torch.ones(1, layer.n, dtype=torch.bool, device="cuda")
    share = torch.full((1, HEADS), SHARE, device="cuda")
    change = Change(moves=(Move(layer.spans["sink"], layer.spans["needle"], everywhere, share),))
    return attend_changed(layer.q, layer.k, layer.v, scale=layer.d**-0.5, change=change).output


def moving_by_statistics(layer: Layer) -> Tensor:
    """The same in separate steps: masses by the statistics, the log-sum-exp given, then a table for each row."""
    scale = layer.d**-0.5
    found = statistics(layer.q, layer.k, scale=scale, wanted=("mass",), spans=layer.spans, lse=layer.lse)
    held, target = found["mass:sink"], found["mass:needle"]
    moves = target > 0
    given = torch.where(moves, math.log(1 - SHARE), 0.0)
    taken = torch.where(moves, torch.log1p(SHARE * held / target.clamp_min(1e-38)), 0.0)
    classes = layer.spans["sink"].to(torch.uint8) + 2 * layer.spans["needle"].to(torch.uint8)
    return by_classes(layer, classes, torch.stack([torch.zeros_like(given), given, taken], -1))[0]


def variants(layer: Layer) -> dict[str, Callable[[], Variant]]:
    """What is compared, each prepared when its turn comes."""
    two, eight = (spread(layer.n, count) for count in (2, 8))
    all_two, all_eight = (scattered(layer.n, count) for count in (2, 8))

    def classed(classes: Tensor, count: int) -> Callable[[], Variant]:
        table = fixed(count)
        return lambda: Variant(lambda: by_classes(layer, classes, table))

    rowwise = fixed(8).expand(1, HEADS, layer.n, 8).contiguous()
    return {
        "SDPA, flash": lambda: Variant(layer.flash),
        "SDPA, cuDNN": lambda: Variant(layer.cudnn),
        "SDPA, efficient, dense bias (one for all heads)": lambda: by_dense_bias(layer, two, fixed(2)),
        "FlexAttention, table of 2 classes": lambda: by_flex(layer, two, fixed(2)),
        "FlexAttention, table of 8 classes": lambda: by_flex(layer, eight, fixed(8)),
        "classes: 2, a span of 20": classed(two, 2),
        "classes: 8, spans of 20": classed(eight, 8),
        "classes: 2, every key": classed(all_two, 2),
        "classes: 8, every key": classed(all_eight, 8),
        "classes: 8, every key, a table for each row": lambda: Variant(lambda: by_classes(layer, all_eight, rowwise)),
        "columns: 2 classes, d + 8, flash": lambda: Variant(lambda: by_columns(layer, two, fixed(2), 3)),
        "columns: 8 classes, d + 16, flash": lambda: Variant(lambda: by_columns(layer, eight, fixed(8), 2)),
        "moving mass, all its passes": lambda: Variant(lambda: moving(layer)),
        "moving mass by the statistics, their log-sum-exp given": lambda: Variant(lambda: moving_by_statistics(layer)),
    }


def tried(prepare: Callable[[], Variant]) -> Variant | None:
    """Prepared and run once; None where memory ends."""
    try:
        variant = prepare()
        variant.run()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()
    return variant


def spread_of(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def speed(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """Fixed weights of two and eight classes, and weights that depend on masses, next to plain forwards."""
    rows = []
    for d in HEAD_SIZES:
        for n in lengths:
            print(f"speed, d {d}, tokens {n}", file=sys.stderr, flush=True)
            torch.compiler.reset()
            layer = Layer(n, d)
            known = {name: tried(prepare) for name, prepare in variants(layer).items()}
            served = {name: variant for name, variant in known.items() if variant}
            times = take_turns({name: variant.run for name, variant in served.items()}, repeats)
            for name in known:
                row: dict[str, Any] = {"d": d, "tokens": n, "what": name}
                if name in served:
                    own = times[name]
                    row |= {"n": len(own), "ms": 1e3 * median(own)}
                    for column, baseline in {"over flash": "SDPA, flash", "over cuDNN": "SDPA, cuDNN"}.items():
                        row[column] = spread_of([mine / its for mine, its in zip(own, times[baseline], strict=True)])
                    row["added MB"] = (added_bytes(served[name].run) + served[name].prepared) / 1e6
                else:
                    row |= {"n": 0, "ms": "out of memory", "over flash": "", "over cuDNN": "", "added MB": ""}
                rows.append(row)
    return rows


def exact(layer: Layer, bias: Tensor) -> Tensor:
    """(heads, n, d) in float64, a head at a time. bias: (heads, n, n)."""
    q, k, v = (x[0].double() for x in (layer.q, layer.wide_k, layer.wide_v))
    each = (torch.softmax(q[h] @ k[h].mT * layer.d**-0.5 + bias[h].double(), -1) @ v[h] for h in range(HEADS))
    return torch.stack(list(each))


def accuracy(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """Errors against float64 on the rounded inputs at 2,048 tokens, a quarter of the keys weighed."""
    rows, n = [], 2048
    for d in HEAD_SIZES:
        layer = Layer(n, d)
        classes = torch.zeros(1, n, dtype=torch.uint8, device="cuda")
        classes[:, n // 4 : n // 2] = 1
        triangle = dense_bias(layer, classes, torch.zeros(1, HEADS, 1, 2, device="cuda"))[0]
        unweighed = exact(layer, triangle)
        for log_weight in LOG_WEIGHTS:
            table = torch.tensor([0.0, log_weight], device="cuda").expand(1, HEADS, 1, 2)
            bias = dense_bias(layer, classes, table)
            expected = exact(layer, bias[0])
            for name, output, right in (
                ("classes", by_classes(layer, classes, table)[0], expected),
                ("columns, three pieces, flash", by_columns(layer, classes, table, 3), expected),
                ("SDPA, efficient, dense bias", with_mask(layer, bias), expected),
                ("SDPA, flash, nothing weighed", layer.flash()[0], unweighed),
            ):
                error = output[0].double() - right
                rows.append(
                    {"d": d, "log weight": log_weight, "what": name, "largest error": error.abs().max().item(),
                     "root mean square": error.square().mean().sqrt().item()}
                )  # fmt: skip
    return rows


def tune(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of `attend_classes` by tile: two classes in one span, and eight on every key."""
    rows = []
    for d, candidates in CANDIDATES.items():
        for n in lengths:
            layer, kept = Layer(n, d), TUNED[d]
            inputs = {"2 classes, ms": (spread(n, 2), fixed(2)), "8 on every key, ms": (scattered(n, 8), fixed(8))}
            for tile in dict.fromkeys([kept, *candidates]):
                print(f"tune, d {d}, tokens {n}, {tile}", file=sys.stderr, flush=True)
                TUNED[d] = tile
                row = {"d": d, "tokens": n, **tile._asdict()}
                for name, given in inputs.items():
                    row[name] = best_time(partial(by_classes, layer, *given), repeats)
                rows.append(row | {"now": "yes" if tile == kept else ""})
            TUNED[d] = kept
    return rows


def best_time(run: Callable[[], Any], repeats: int) -> float | str:
    """Median milliseconds, or why the GPU can't."""
    try:
        run()
    except Exception as refused:  # Triton's own kinds of failing to fit or to compile: the sweep goes on
        return type(refused).__name__
    return 1e3 * median(seconds(run, torch.device("cuda")) for _ in range(repeats))


TABLES = {"speed": speed, "accuracy": accuracy, "tune": tune}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES, action="append", help="this table (may be given again)")
    parser.add_argument("--lengths", default="32768", help="tokens, by commas")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/reweight.py needs an NVIDIA GPU.")
    lengths = [int(length) for length in asked.lengths.split(",")]
    around = {
        "device": torch.cuda.get_device_name(),
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "triton"))
        + f", cuDNN {torch.backends.cudnn.version()}",
        "command": "python " + shlex.join(sys.argv),
    }
    print("\n".join(f"- {name}: {value}" for name, value in around.items()))
    for name in asked.only or ("speed", "accuracy"):
        rows = TABLES[name](lengths, asked.repeats)
        print(f"\n## {name}\n\n{TABLES[name].__doc__}\n")
        print(json.dumps(rows) if asked.json else markdown(rows), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
