"""Loading a model and asking it nothing: what it is, and what it takes of the memory.

    headscope load smollm2-135m

As a job it leaves the model with the worker, so that the next question about it begins at once.
"""

import json
from typing import Any

from rich.markup import escape

from analysis.display import console
from analysis.study import LOADING, ModelChoice
from probes.memory import host_bytes
from probes.subject import Subject


def load(choice: ModelChoice, *, as_json: bool) -> None:
    """Load it and print its anatomy and its size."""
    subject = choice.load()
    free, whole = host_bytes()
    facts: dict[str, Any] = {
        **subject.describe(), "bytes": bytes_held(subject), "free_bytes": free, "machine_bytes": whole,
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    sees = f", {facts['vision_layers']} layers of a vision tower" if facts["vision_layers"] else ""
    window = f", a window of {facts['context']} tokens" if facts["context"] else ""
    console.print(
        f"{escape(subject.name)}: {facts['layers']} layers of {facts['heads']} query heads over {facts['kv_heads']} KV "
        f"heads of size {facts['head_size']}{sees}{window}."
    )
    console.print(
        f"{facts['dtype']} on {facts['device']}, {facts['bytes'] / 1e6:.0f} MB; {free / 1e9:.1f} of the machine's "
        f"{whole / 1e9:.1f} GB are free."
    )
    kept = LOADING.get() is not None
    console.print(
        "It stays in memory until another model is needed."
        if kept
        else "It was read and is let go: as a job (headscope submit load ...) it stays with the worker."
    )


def bytes_held(subject: Subject) -> int:
    """What its weights and buffers take."""
    return sum(part.numel() * part.element_size() for part in (*subject.model.parameters(), *subject.model.buffers()))
