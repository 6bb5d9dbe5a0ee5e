"""Compiles every GPU kernel for an H100, which need not be there; prints their names.

Run by test_compile.py in a process of its own: whether Triton interprets or compiles is settled at its import.
"""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from kernels.reweight import triton as reweight
from kernels.statistics import hopper
from kernels.statistics import triton as general

TYPES = {
    "FEATURE_TABLE": "*fp16",
    "MASK_AT": "*u8",
    "PADDING": "*u8",
    **dict.fromkeys(("SPANS", "SUM_OUT", "OTHERS_OUT", "PLACE_OUT", "OUT"), "*i64"),
    **dict.fromkeys(("QUERY_AT", "KEY_AT", "WINDOWS", "EDGES", "TOP_SLOT", "SLOTS_OUT", "MAX_OUT"), "*i32"),
    **dict.fromkeys(("SEEN_OUT", "SEEN_OTHERS_OUT", "TOP_PLACE_OUT", "CANDIDATE"), "*i32"),
    **dict.fromkeys(("ORDER", "ORDINARY_BEFORE"), "*i32"),
    "OUTPUT": "*bf16",
    "scale": "fp32",
    "softcap": "fp32",
}
SHAPE = {"DIM": 64, "D": 64, "QUERIES": 64, "KEYS": 64}
OPEN = {"CAUSAL": True, "WINDOW": False, "SOFTCAP": False, "PADDED": False, "MASK": ""}
SHUT = {"CAUSAL": False, "WINDOW": True, "SOFTCAP": True, "PADDED": True, "MASK": "bool"}
EVERYTHING = {
    **dict.fromkeys(("ENTROPY", "DISTANCE", "TOP", "SELF", "SQUARES", "SUM", "OTHERS", "MAX", "PLACE"), True),
    "SPAN_COUNT": 2,
    "SPAN_COLUMNS": 2,
    "WINDOW_COUNT": 2,
}
CORE = {
    **dict.fromkeys(("ENTROPY", "DISTANCE", "TOP", "SUM", "MAX", "DETERMINISTIC"), True),
    "SPANS": 2,
    "ROWS": hopper.QUERIES,
    "DTYPE": gl.bfloat16,
    "WINDOW": False,
}
CLASSES = {"PIECES": reweight.PIECES, "COLUMNS": 16, "CAUSAL": True}
JOBS: list[tuple[Any, dict[str, Any], dict[str, int]]] = [
    *[
        (kernel, {**SHAPE, **masks, **more}, {})
        for kernel, masks, more in (
            (general.log_sum_exp_kernel, OPEN, {"HAS_SINK": True}),
            (general.log_sum_exp_kernel, SHUT, {"HAS_SINK": True}),
            (general.statistics_kernel, OPEN, EVERYTHING),
            (general.statistics_kernel, SHUT, EVERYTHING),
            (general.top_keys_kernel, SHUT, {"COUNT": 5, "PLACES": 8}),
            (general.histogram_kernel, SHUT, {"BINS": 19}),
            (general.tile_kernel, OPEN, {"QUERIES": 128, "KEYS": 128}),
        )
    ],
    *[
        (
            hopper.core_kernel,
            {**SHAPE, **CORE, "D": d, "STAGES": hopper.TUNED[d]["STAGES"], **more},
            {"maxnreg": hopper.TUNED[d]["maxnreg"]},
        )
        for d, more in (
            (64, {}),
            (128, {}),
            (64, {"DTYPE": gl.float16, "WINDOW": True, "DETERMINISTIC": False}),
        )
    ],
    (hopper.strongest_kernel, {**SHAPE, "WINDOW": True, "ROWS": 16}, {}),
    *[
        (
            reweight.attend_classes_kernel,
            {**SHAPE, **CLASSES, "DIM": e, "D": d, "E": e, "QUERIES": tile.queries, "KEYS": tile.keys},
            {"num_warps": tile.warps, "num_stages": tile.stages},
        )
        for d, tile in reweight.TUNED.items()
        for e in (16, d)  # masses, outputs
        if d <= 128
    ],
]


def block_of(constants: dict[str, Any], rows: str, columns: str = "D") -> str:
    """What Triton calls a tensor that is read [rows, columns] at a time."""
    return f"tensordesc<bf16[1, 1, {constants[rows]}, {constants[columns]}]>"


def compile_kernel(kernel: Any, constants: dict[str, Any], options: dict[str, int]) -> None:
    kinds = dict(TYPES)
    if constants.get("DETERMINISTIC") is False:
        kinds["SUM_OUT"] = "*fp32"
    if constants.get("DTYPE") is gl.float16:
        kinds |= {"Q": "*fp16", "K": "*fp16"}
    if kernel is reweight.attend_classes_kernel:
        kinds |= {name: block_of(constants, rows) for name, rows in (("Q", "QUERIES"), ("K", "KEYS"))}
        kinds["V"] = block_of(constants, "KEYS", "E")
        kinds["CLASS_OF"] = block_of(constants, "KEYS", "COLUMNS")
    signature, values, aligned = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], values[name] = "constexpr", constants[name]
            continue
        pointer = "*bf16" if name in ("Q", "K") else "*fp32"
        signature[name] = kinds.get(name, pointer if name.isupper() else "i32")
        if signature[name].startswith("*") or name.endswith(("_batch", "_head", "_row")):
            aligned[(at,)] = [["tt.divisibility", 16]]
    source = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    triton.compile(
        source(fn=kernel, signature=signature, constexprs=values, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4, **options},
    )


def compile_job(number: int) -> None:
    compile_kernel(*JOBS[number])


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:  # a fork of this one: Triton is imported once
        list(pool.map(compile_job, range(len(JOBS))))
    print(*sorted({kernel.__name__ for kernel, _, _ in JOBS}))
