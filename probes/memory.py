"""How much memory work will take, and how much there is: said before the work starts."""

import os
import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

from probes.anatomy import Anatomy
from probes.errors import HeadscopeError

LEAVE_FREE = 0.05  # share of the machine's memory that no estimate may take


def weight_bytes(files: Iterable[Path], dtype: torch.dtype) -> int:
    """Memory of the weights in `files` once loaded as `dtype`; a 4-bit GGUF unpacks, half precision may widen."""
    total = 0
    for path in files:
        size = path.stat().st_size
        total += int(size * (1.6 if path.suffix == ".gguf" else 0.5) * dtype.itemsize)
    return total


def forward_bytes(anatomy: Anatomy, tokens: int, *, dtype: torch.dtype, branches: int = 1, steps: int = 0) -> int:
    """Peak memory of a prefill of `tokens` and a decode of `steps` tokens in `branches` rows, without the weights."""
    size = dtype.itemsize
    cached = 2 * sum(layer.kv_heads * layer.head_size for layer in anatomy.decoder) * size
    working = (10 * anatomy.hidden + 4 * anatomy.intermediate) * size
    score_rows = 3 * branches * anatomy.query_heads * (tokens + steps) * 4
    logits = 3 * branches * anatomy.vocabulary * 4
    return cached * (tokens + branches * steps) + working * (tokens + branches) + score_rows + logits


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on this device, by the cgroup's limit where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, _ = host_bytes()
    ceiling = resource.getrlimit(resource.RLIMIT_AS)[0]
    if ceiling != resource.RLIM_INFINITY:
        free = min(free, ceiling - psutil.Process().memory_info().vms)
    return free


def host_bytes() -> tuple[int, int]:
    """Memory of this machine that is free, and all of it, by the cgroup's limit where there is one."""
    found = psutil.virtual_memory()
    free, whole = int(found.available), int(found.total)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and used is not None:
        free, whole = min(free, limit - used), min(whole, limit)
    return free, whole


def check_fits(needed: int, device: torch.device, what: str) -> None:
    """Raises HeadscopeError where `what` would take more than there is."""
    free = available_bytes(device)
    if needed > free * (1 - LEAVE_FREE):
        raise HeadscopeError(
            f"{what} needs about {needed / 1e9:.1f} GB and {max(free, 0) / 1e9:.1f} GB are free on {device}: "
            "choose a smaller model, shorter lengths or a narrower dtype, or free some memory."
        )


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: on the GPU for a GPU, resident for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024  # on Linux ru_maxrss begins at the size of the process that started this one
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cgroup(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def cpu_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
