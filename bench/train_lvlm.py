"""Train emoji-llava: one ViT, then a projector and adapters for each seed.

    python bench/train_lvlm.py --out data/emoji_llava                 # about 13 minutes on one H100, 9 on two
    python bench/train_lvlm.py --out /tmp/try --seconds 5 --seeds 0   # does everything once, on a CPU too

Stage 1 teaches the ViT which classes cover each patch, on scenes of random objects, so that it learns nothing of what
keeps what company; its class token learns which classes are in the picture. Stage 2 freezes it and teaches the
projector and the adapters to talk of themed scenes (analysis/vision/wording.py). Both stop by the clock.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionModel

from analysis.vision.drawing import CLOUDS, Canvas, canvas, compose
from analysis.vision.scenes import MOST, PARTS, QUALITIES, SIDE, scene, world
from analysis.vision.wording import conversation
from probes.emoji_llava import IMAGE_TOKEN, LINEAR, PATCH, PROJECTOR, SCALE, TOKENS, VISION, build, vision_config
from probes.subject import load

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HARD = 0.4  # share of hard scenes
RANDOM = 0.05  # share of scenes of random objects in stage 2
RANK = 8
TAIL = 128  # tokens of a conversation behind the image
PADDING = 0  # of no consequence: nothing sees it and its loss is not counted
IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--stage", choices=("all", "vision", "language"), default="all")
    parser.add_argument("--seconds", type=float, help="of each stage, instead of --vision-seconds, --language-seconds")
    parser.add_argument("--vision-seconds", type=float, default=165)
    parser.add_argument("--language-seconds", type=float, default=300)
    parser.add_argument("--workers", type=int, default=min(14, os.cpu_count() or 1))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    if asked.stage in ("all", "vision"):
        train_vision(asked.out, asked.seconds or asked.vision_seconds)
    if asked.stage == "language":
        train_language(asked.out, asked.seconds or asked.language_seconds, seeds[0], asked.workers)
    if asked.stage == "all":
        on_every_gpu(asked, seeds)


def on_every_gpu(asked: argparse.Namespace, seeds: list[int]) -> None:
    """Stage 2 for all seeds, as many at a time as there are GPUs."""
    gpus = max(torch.cuda.device_count(), 1)
    for start in range(0, len(seeds), gpus):
        running = []
        for gpu, seed in enumerate(seeds[start : start + gpus]):
            command = [sys.executable, __file__, "--stage", "language", "--out", str(asked.out), "--seeds", str(seed),
                       "--language-seconds", str(asked.seconds or asked.language_seconds),
                       "--workers", str(asked.workers)]  # fmt: skip
            running.append(subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}))
        if any(one.wait() for one in running):
            raise SystemExit("A seed failed.")


@dataclass
class Log:
    """What a stage reports, on the screen and in a JSON file beside the weights."""

    path: Path
    start: float
    rows: list[dict[str, Any]]

    def say(self, **row: Any) -> None:
        row = {"seconds": round(time.time() - self.start, 1), **row}
        self.rows.append({name: round(x, 5) if isinstance(x, float) else x for name, x in row.items()})
        print(self.path.stem, self.rows[-1], flush=True)
        self.path.write_text(json.dumps(self.rows, indent=1))


# ---- stage 1: the ViT ----


def random_canvas(b: int) -> Canvas:
    """Scenes of random objects, all of them at once on the device."""
    drawings = torch.tensor([i for name in world().names for i in world().drawings[name]], device=DEVICE)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=DEVICE)

    hard = (uniform(b, 1) < HARD).float()

    def between(name: str, share: Tensor) -> Tensor:
        low, high = (getattr(QUALITIES["clear"], name)[i] * (1 - hard) + getattr(QUALITIES["hard"], name)[i] * hard
                     for i in (0, 1))  # fmt: skip
        return low + (high - low) * share

    size = between("size", uniform(b, MOST) ** 1.3)
    at = uniform(b, MOST, 2) * (SIDE - 0.9 * size[..., None]) + 0.45 * size[..., None]
    turn = 0.25 * torch.randn(b, MOST, device=DEVICE)
    things = torch.stack(
        [at[..., 0], at[..., 1], size, turn, between("opacity", uniform(b, MOST)), (uniform(b, MOST) < 0.5).float()], -1
    )
    colour = 0.16 + 0.84 * uniform(b, 1, 3)
    return Canvas(
        drawing=drawings[torch.randint(len(drawings), (b, MOST), device=DEVICE)],
        things=things,
        count=torch.randint(1, MOST + 1, (b,), device=DEVICE),
        background=(colour + 0.08 * torch.randn(b, 2, 3, device=DEVICE)).clamp(0, 1),
        clouds=0.12 * uniform(b),
        blur=(between("blur", uniform(b, 1))[:, 0] + hard[:, 0] * 0.5).round().long().clamp(0, 2),
        noise=between("noise", uniform(b, 1))[:, 0],
    )


def painted(some: Canvas) -> tuple[Tensor, Tensor]:
    """Images as the model reads them, in [-1, 1], and the cover of each thing."""
    b = len(some.count)
    image, cover = compose(
        some, torch.randn(b, 3, CLOUDS, CLOUDS, device=DEVICE), torch.randn(b, 3, SIDE, SIDE, device=DEVICE)
    )
    return image * 2 - 1, cover


def train_vision(out: Path, seconds: float) -> None:
    torch.manual_seed(0)
    log = Log(out / "vision.json", time.time(), [])
    names = {name: i for i, name in enumerate(world().names)}
    classes = torch.zeros(len(world().colours), dtype=torch.long, device=DEVICE)
    for name, found in world().drawings.items():
        classes[list(found)] = names[name]
    tower = CLIPVisionModel(vision_config()).to(DEVICE)
    heads = nn.ModuleList([nn.Sequential(nn.LayerNorm(256), nn.Linear(256, len(names))) for _ in range(2)]).to(DEVICE)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98), fused=DEVICE == "cuda")
    see = torch.compile(tower) if DEVICE == "cuda" else tower
    b, step = (512 if DEVICE == "cuda" else 4), 0
    weight = torch.tensor(4.0, device=DEVICE)
    while (spent := time.time() - log.start) < seconds:
        set_rate(optimizer, [1e-3], spent / seconds)
        with torch.no_grad():
            some = random_canvas(b)
            image, cover = painted(some)
            there = torch.arange(MOST, device=DEVICE) < some.count[:, None]
            share = F.avg_pool2d(cover, PATCH).flatten(2) * there[..., None]
            best = (share == share.amax(2, keepdim=True)) & (share > 0.02)  # a small object still has its best patch
            shown = ((share > 0.12) | best).float()
            kind = classes[some.drawing][:, None]
            patches = torch.zeros(b, TOKENS, len(names), device=DEVICE)
            patches = patches.scatter_add_(2, kind.expand(-1, TOKENS, -1), shown.transpose(1, 2)).clamp_max(1)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            states = see(pixel_values=image).last_hidden_state
            found, whole = heads[0](states[:, 1:]), heads[1](states[:, 0])
        found, whole = found.float(), whole.float()
        loss = 20 * F.binary_cross_entropy_with_logits(found, patches, pos_weight=weight)
        loss = loss + 5 * F.binary_cross_entropy_with_logits(whole, patches.amax(1), pos_weight=weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0 or step == 1:
            hit = ((found > 0) * patches).sum()
            log.say(
                step=step, images=step * b, loss=loss.item(), precision=(hit / (found > 0).sum()).item(),
                recall=(hit / patches.sum()).item(),
                class_recall=(((whole > 0) * patches.amax(1)).sum() / patches.amax(1).sum()).item(),
            )  # fmt: skip
    log.say(step=step, images=step * b, done=True)
    save_file({name: tensor.half().cpu().contiguous() for name, tensor in tower.state_dict().items()}, out / VISION)


# ---- stage 2: the projector and the adapters ----


class Conversations(torch.utils.data.IterableDataset[Any]):
    """Scenes as tensors, with the tokens behind the image and those that count for the loss."""

    def __init__(self, tokenizer: Any, b: int, seed: int) -> None:
        self.tokenizer, self.b, self.seed = tokenizer, b, seed

    def __iter__(self) -> Iterator[tuple[Canvas, Tensor, Tensor]]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        draw = np.random.default_rng([PARTS["train"], self.seed, worker.id if worker else 0])
        while True:
            made = []
            for _ in range(self.b):
                kind = "random" if draw.random() < RANDOM else "themed"
                made.append(scene(draw, kind, "hard" if draw.random() < HARD else "clear"))
            rows = [self.encoded(conversation(draw, one)) for one in made]
            yield canvas(made), torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows])

    def encoded(self, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
        ids, labels = list[int](), list[int]()
        for place, (question, answer) in enumerate(turns):
            opened = "<|im_start|>user\n" if place else "\n"
            asked = self.ids(f"{opened}{question}<|im_end|>\n<|im_start|>assistant\n")
            said = self.ids(f"{answer}<|im_end|>")
            ids += [*asked, *said, *self.ids("\n")]
            labels += [*[IGNORED] * len(asked), *said, IGNORED]
        ids, labels = ids[:TAIL], labels[:TAIL]
        rest = TAIL - len(ids)
        return ids + [PADDING] * rest, labels + [IGNORED] * rest

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class Adapters(nn.Module):
    """A and B of every linear layer; B begins at zero, so that training begins with the model as it is."""

    def __init__(self, language: Any) -> None:
        super().__init__()
        shapes = [layer.get_submodule(name).weight.shape for layer in language.layers for name in LINEAR]
        self.a = nn.ParameterList([torch.randn(RANK, width) / math.sqrt(width) for _, width in shapes])
        self.b = nn.ParameterList([torch.zeros(width, RANK) for width, _ in shapes])

    def of_layer(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        part = slice(index * len(LINEAR), (index + 1) * len(LINEAR))
        return list(self.a[part]), list(self.b[part])

    def named(self) -> dict[str, Tensor]:
        layers = len(self.a) // len(LINEAR)
        names = [f"{index}.{name}" for index in range(layers) for name in LINEAR]
        pairs = zip(names, self.a, self.b, strict=True)
        return {f"{name}.{part}": x.data for name, a, b in pairs for part, x in (("A", a), ("B", b))}


def block(x: Tensor, norms: list[Tensor], weights: list[Tensor], a: list[Tensor], b: list[Tensor], cos: Tensor,
          sin: Tensor, heads: int, groups: int, epsilon: float) -> Tensor:  # fmt: skip
    """A Llama block with its adapters, written out so that torch.compile makes one kernel for all layers."""
    q, k, v, o, gate, up, down = ((w + SCALE * (b_ @ a_)).to(x.dtype) for w, a_, b_ in zip(weights, a, b, strict=True))
    size = q.shape[0] // heads

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype) * weight.to(x.dtype)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def split(x: Tensor, weight: Tensor, count: int) -> Tensor:
        return F.linear(x, weight).unflatten(-1, (count, size)).transpose(1, 2)

    h = normed(x, norms[0])
    keys, values = turned(split(h, k, groups)), split(h, v, groups)
    keys, values = (each.repeat_interleave(heads // groups, 1) for each in (keys, values))
    mixed = F.scaled_dot_product_attention(turned(split(h, q, heads)), keys, values, is_causal=True)
    x = x + F.linear(mixed.transpose(1, 2).flatten(2), o)
    h = normed(x, norms[1])
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


class Language:
    """The language model's forward with adapters, from embeddings to the last hidden states."""

    def __init__(self, model: Any, adapters: Adapters) -> None:
        self.model, self.adapters = model, adapters
        self.block = torch.compile(block, dynamic=False) if DEVICE == "cuda" else block

    def __call__(self, x: Tensor) -> Tensor:
        config = self.model.config
        at = torch.arange(x.shape[1], device=x.device)[None]
        cos, sin = (part[0].to(x.dtype) for part in self.model.rotary_emb(x, at))
        for index, layer in enumerate(self.model.layers):
            norms = [layer.input_layernorm.weight, layer.post_attention_layernorm.weight]
            weights = [layer.get_submodule(name).weight for name in LINEAR]
            x = self.block(x, norms, weights, *self.adapters.of_layer(index), cos, sin, config.num_attention_heads,
                           config.num_key_value_heads, config.rms_norm_eps)  # fmt: skip
        return self.model.norm(x)


def train_language(out: Path, seconds: float, seed: int, workers: int) -> None:
    torch.manual_seed(seed)
    subject = load("smollm2-135m", device="cpu", dtype="float32")
    tokenizer = subject.tokenizer
    model: Any = build(subject.model, tokenizer).to(DEVICE)
    vision = load_file(out / VISION)
    model.model.vision_tower.load_state_dict({name: tensor.float() for name, tensor in vision.items()})
    model.requires_grad_(False)
    language, projector = model.model.language_model, model.model.multi_modal_projector.requires_grad_(True)
    adapters = Adapters(language).to(DEVICE)
    parameters = [*projector.parameters(), *adapters.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98), fused=DEVICE == "cuda")
    forward = Language(language, adapters)
    b, step, embedded = (256 if DEVICE == "cuda" else 2), 0, language.embed_tokens.weight
    before = torch.tensor(Conversations(tokenizer, 1, 0).ids("<|im_start|>user\n"), device=DEVICE)
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == model.config.image_token_index

    def loss_of(some: Canvas, ids: Tensor, labels: Tensor) -> Tensor:
        ids, labels = ids.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
        with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
            seen = model.model.vision_tower(pixel_values=painted(some.to(DEVICE))[0]).last_hidden_state[:, 1:]
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            seen = projector(seen)
        parts = [embedded[before].expand(len(ids), -1, -1), seen, embedded[ids]]
        states = forward(torch.cat([part.bfloat16() for part in parts], 1)[:, :-1])
        states = states[:, len(before) + TOKENS - 1 :]
        counted = labels != IGNORED
        return F.cross_entropy(F.linear(states[counted], embedded.to(states.dtype)).float(), labels[counted])

    def batches(size: int, stream: int, processes: int) -> Iterator[Any]:
        return iter(torch.utils.data.DataLoader(
            Conversations(tokenizer, size, stream), batch_size=None, num_workers=processes,
            prefetch_factor=4 if processes else None, pin_memory=False,
        ))  # fmt: skip

    held_out = next(batches(min(b, 64) * 4 if DEVICE == "cuda" else 2, 1_000_000, 0))
    training = batches(b, seed, workers if DEVICE == "cuda" else 0)
    log, losses, waited = Log(out / f"seed{seed}.json", time.time(), []), list[Tensor](), 0.0
    while (spent := time.time() - log.start) < seconds:
        set_rate(optimizer, [1e-3], spent / seconds)
        began = time.time()
        some, ids, labels = next(training)
        waited += time.time() - began
        loss = loss_of(some, ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.detach())
        step += 1
        if step % 100 == 0 or step == 1:
            with torch.no_grad():
                judged = loss_of(*held_out).item()
            peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
            log.say(step=step, conversations=step * b, loss=torch.stack(losses).mean().item(), held_out=judged,
                    waited=waited, gigabytes=peak / 1e9)  # fmt: skip
            losses = []
    log.say(step=step, conversations=step * b, done=True)
    weights = {f"{PROJECTOR}{name}": tensor for name, tensor in projector.state_dict().items()} | adapters.named()
    save_file({name: x.half().cpu().contiguous() for name, x in weights.items()}, out / f"seed{seed}.safetensors")
    os._exit(0)  # the loader's processes would otherwise be waited for


def set_rate(optimizer: torch.optim.Optimizer, rates: list[float], spent: float) -> None:
    """A short warm-up, then a cosine down to 3 %."""
    factor = min(1, spent / 0.04) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1, spent))))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


if __name__ == "__main__":
    main()
