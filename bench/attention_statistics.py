"""What do the attention statistics cost on a GPU, next to the fastest attention there is?

    python bench/attention_statistics.py                          # every table, on one NVIDIA GPU
    python bench/attention_statistics.py --only core --lengths 8192

Four questions, one table each: the core set against fused forwards; what else can be asked; the prefill of a model of
Llama 3 8B's shape with all heads read; and a tile of a long map. Times are medians of turns that the variants take one
after the other, after a turn that is not counted; a ratio is taken within a turn. Keys and queries are random.
"""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from clock import seconds
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels.statistics import Tile, hopper, statistics

HEADS, KV_HEADS = 32, 8
CORE = (
    "entropy",
    "distance",
    "clipped_distance",
    "top_key",
    "top_weight",
    "mass",
    "received",
    "received_max",
)
aten = torch.ops.aten
Runs = dict[str, Callable[[], Any]]


class Layer:
    """Random q, k, v of one layer, two spans of keys, and the rows' log-sum-exp from cuDNN's own forward."""

    def __init__(self, n: int, d: int) -> None:
        def random(heads: int) -> Tensor:
            return torch.randn(1, heads, n, d, device="cuda", dtype=torch.bfloat16)

        self.n, self.d = n, d
        self.q, self.k, self.v = random(HEADS), random(KV_HEADS), random(KV_HEADS)
        self.wide_k, self.wide_v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (self.k, self.v))
        self.lse = self.cudnn()[1].view(1, HEADS, n).float()
        slot = torch.arange(n, device="cuda")[None]
        self.spans = {"sink": slot < 4, "needle": (slot >= n // 2) & (slot < n // 2 + 20)}

    def cudnn(self) -> Any:
        # Given repeated keys: cuDNN shares them by itself, but PyTorch's op wants as many heads on either side.
        return aten._scaled_dot_product_cudnn_attention(self.q, self.wide_k, self.wide_v, None, True, 0.0, True)

    def flash(self) -> Any:
        return aten._scaled_dot_product_flash_attention(self.q, self.k, self.v, 0.0, True)

    def statistics(self, *wanted: str, **options: Any) -> Any:
        return statistics(
            self.q, self.k, scale=self.d**-0.5, wanted=wanted, spans=self.spans, lse=self.lse, **options
        )  # fmt: skip


@contextmanager
def in_floats() -> Iterator[None]:
    """Sums per key by atomic additions of floats: no order, and no bit-equal runs."""
    hopper.DETERMINISTIC = False
    yield
    hopper.DETERMINISTIC = True


def fastest(layer: Layer) -> Any:
    with in_floats():
        return layer.statistics(*CORE)


def take_turns(runs: Runs, repeats: int) -> dict[str, list[float]]:
    device = torch.device("cuda")
    turns = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in runs}


def added_bytes(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def measured(runs: Runs, repeats: int, *, per: int = 0, **about: Any) -> list[dict[str, Any]]:
    """A row per run; the first is the baseline. `per` divides the memory."""
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", file=sys.stderr, flush=True)
    times = take_turns(runs, repeats)
    baseline = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratios = [mine / its for mine, its in zip(own, baseline, strict=True)]
        row = {**about, "what": name, "n": len(own), "ms": 1e3 * median(own), "ratio": median(ratios)}
        row |= {"ratio_min": min(ratios), "ratio_max": max(ratios)}
        size = added_bytes(runs[name])
        row["bytes per head and token" if per else "added MB"] = size / per if per else size / 1e6
        rows.append(row)
    return rows


def flex_forward(layer: Layer) -> Callable[[], Any]:
    build = torch.compile(create_block_mask)  # plain, it would build the whole map
    causal = build(lambda b, h, i, j: i >= j, None, None, layer.n, layer.n, device="cuda")
    run = torch.compile(flex_attention)
    return lambda: run(layer.q, layer.k, layer.v, block_mask=causal, enable_gqa=True)


def core(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """The core set, the log-sum-exp given, next to three fused forwards."""
    rows = []
    for d in (128, 64):
        for n in lengths:
            torch.compiler.reset()
            layer = Layer(n, d)
            runs: Runs = {
                "cuDNN forward": layer.cudnn,
                "flash forward": layer.flash,
                "FlexAttention forward": flex_forward(layer),
                "core set, deterministic (the default)": lambda layer=layer: layer.statistics(*CORE),
                "core set, float atomics": lambda layer=layer: fastest(layer),
            }
            rows += measured(runs, repeats, per=HEADS * n, d=d, tokens=n)
    return rows


def extras(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """What else can be asked, each alone, next to the same forward."""
    rows = []
    for d in (128, 64):
        for n in lengths:
            layer = Layer(n, d)
            tile = Tile((0, n), (0, n))
            runs: Runs = {
                "cuDNN forward": layer.cudnn,
                "entropy": lambda layer=layer: layer.statistics("entropy"),
                "received": lambda layer=layer: layer.statistics("received"),
                "the core set without its own log-sum-exp": lambda layer=layer: statistics(
                    layer.q, layer.k, scale=layer.d**-0.5, wanted=CORE, spans=layer.spans
                ),
                "participation, mean_query": lambda layer=layer: layer.statistics("participation", "mean_query"),
                "top_keys (8)": lambda layer=layer: layer.statistics("top_keys"),
                "distance_histogram": lambda layer=layer: layer.statistics("distance_histogram"),
                "tile_mean of the whole map, all heads": lambda layer=layer, tile=tile: layer.statistics(
                    "tile_mean", tile=tile
                ),
            }
            rows += measured(runs, repeats, per=HEADS * n, d=d, tokens=n)
    return rows


def tiles(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """Windows of one head's 64k map, pooled to 512 by 512 cells."""
    n, d = 65_536, 128
    layer = Layer(n, d)
    windows = {
        "the whole map": Tile((0, n), (0, n)),
        "a quarter, on the diagonal": Tile((n // 2, n), (n // 2, n)),
        "a strip of 512 queries over all keys": Tile((n - 512, n), (0, n)),
        "8,192 by 8,192": Tile((n - 8192, n), (n - 8192, n)),
        "512 by 512, not pooled": Tile((n - 512, n), (n // 2, n // 2 + 512)),
    }

    def show(tile: Tile) -> Any:
        return statistics(
            layer.q[:, :1], layer.k[:, :1], scale=d**-0.5, wanted=("tile_mean", "tile_max"), tile=tile,
            lse=layer.lse[:, :1],
        )  # fmt: skip

    return measured({name: lambda tile=tile: show(tile) for name, tile in windows.items()}, repeats, d=d, tokens=n)


def oracle(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """Sums per key against FlexAttention with the roles of q and k swapped and -L_i added to each score.

    Its log-sum-exp over the queries is the logarithm of what the key receives.
    """
    rows = []
    for d in (128, 64):
        for n in (32_768, 131_072):
            torch.compiler.reset()
            layer = Layer(n, d)
            build = torch.compile(create_block_mask)
            seen = build(lambda b, h, j, i: i >= j, None, None, n, n, device="cuda")
            lse = layer.lse
            _, swapped = torch.compile(flex_attention)(
                layer.wide_k,
                layer.q,
                layer.q,
                score_mod=lambda s, b, h, j, i, lse=lse: s - lse[b, h, i],
                block_mask=seen,
                return_lse=True,
            )
            expected = swapped.float().exp()
            for name, found in {
                "deterministic": layer.statistics("received_sum"),
                "again": layer.statistics("received_sum"),
            }.items():
                error = ((found["received_sum"] - expected).abs() / expected.clamp_min(1 / n)).max()
                total = (found["received_sum"].double().sum(-1) - n).abs().max() / n
                rows.append(
                    {"d": d, "tokens": n, "what": name, "largest relative error": error.item(),
                     "sums to the queries within": total.item()}
                )  # fmt: skip
    return rows


def prefill(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """A model of Llama 3 8B's shape with random weights in bf16, all statistics of all heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from probes.anatomy import read_anatomy
    from probes.readers import StatisticsReader
    from probes.subject import Subject
    from probes.tap import Tap

    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    subject = Subject(name="Llama 3 8B's shape", model=model, tokenizer=None, anatomy=read_anatomy(model))
    rows = []
    for n in lengths:
        ids = torch.randint(0, 128_000, (1, n), device="cuda")
        spans = {"sink": range(4), "needle": range(n // 2, n // 2 + 20)}

        def plain(ids: Tensor = ids) -> None:
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

        def read(ids: Tensor = ids, spans: Any = spans) -> Any:
            reader = StatisticsReader(CORE, spans)
            with Tap(subject, readers=[reader]):
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
            return reader

        rows += measured({"plain prefill": plain, "core set of every head": read}, repeats, tokens=n)
    return rows


TABLES = {"core": core, "extras": extras, "tiles": tiles, "oracle": oracle, "prefill": prefill}


def markdown(rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if not name.startswith("ratio_")]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        if "ratio" in row:
            cells["ratio"] = f"{row['ratio']:.3f} ({row['ratio_min']:.3f} to {row['ratio_max']:.3f})"
        lines.append("| " + " | ".join(cells[name] for name in names) + " |")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES, action="append", help="this table (may be given again)")
    parser.add_argument("--lengths", default="8192,32768,65536,131072", help="tokens, by commas")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/attention_statistics.py needs an NVIDIA GPU; bench/tap.py measures what a CPU takes.")
    lengths = [int(length) for length in asked.lengths.split(",")]
    around = {
        "device": torch.cuda.get_device_name(),
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "transformers"))
        + f", cuDNN {torch.backends.cudnn.version()}",
        "command": "python " + shlex.join(sys.argv),
    }
    print("\n".join(f"- {name}: {value}" for name, value in around.items()))
    for name in asked.only or TABLES:
        rows = TABLES[name](lengths, asked.repeats)
        print(f"\n## {name}\n\n{TABLES[name].__doc__}\n")
        print(json.dumps(rows) if asked.json else markdown(rows), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
