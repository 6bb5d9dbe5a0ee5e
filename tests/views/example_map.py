"""A small run of headscope map: its own code on a tiny random model, over tokens that are hostile to a page.

python tests/views/example_map.py <folder>
"""

import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers

from analysis.maps.map_run import MapCase, examine
from analysis.maps.map_summary import head_frame, summarise
from analysis.runs import OpenRun, Run
from probes.anatomy import read_anatomy
from probes.prompt import Prompt
from probes.subject import Subject

LAYERS, HEADS, TOKENS = 2, 4, 60
HOSTILE = [" <b>", "<img src=x onerror=alert(1)>", "`*", "\n", "</a>", " $x$", "", "\u202e", " **bold**", '"']
WORDS = [*HOSTILE, *(f" word{i}" for i in range(TOKENS - len(HOSTILE)))]


def subject() -> Subject:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval().requires_grad_(False)
    return Subject(name="tiny <i>llama</i>", model=model, tokenizer=None, anatomy=read_anatomy(model))


def prompt() -> Prompt:
    ends = list(accumulate(len(word) for word in WORDS))
    offsets = tuple((end - len(word), end) for word, end in zip(WORDS, ends, strict=True))
    return Prompt(torch.randint(3, 90, (TOKENS,)), "".join(WORDS), offsets, {})


def write_map(folder: Path) -> Run:
    """A finished run."""
    read = subject()
    with OpenRun.start(folder, "map", {"made": "for a page"}) as run:
        run.note(model={"name": read.name, "layers": LAYERS, "heads": HEADS}, total_cases=1)
        record = examine(read, MapCase(prompt()), layers=range(LAYERS), run=run.run)
        run.add_case(record)
        run.finish(heads=head_frame(record), summary=summarise(record))
    return run.run


if __name__ == "__main__":
    write_map(Path(sys.argv[1]))
