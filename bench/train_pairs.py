"""Train the pairs: small Llamas from one seed on the same text, which differ in the rule of their attention alone.

    python -m data.pairs.corpus ... --out corpus                      # the text, see there
    python bench/train_pairs.py tokenizer --corpus corpus --out pairs  # the BPE, and the text as token ids
    python bench/train_pairs.py model --pairs pairs --rule softmax --seed 0 --out pairs/softmax-0

Writes a Transformers folder (float16) and curve.json: the loss on held-out text and the sink over training. Needs a
GPU in earnest. Rules that add weights start from the very weights of the softmax model beside them.
"""

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from probes.pairs import RULES, PairConfig, PairForCausalLM

VOCABULARY = 1536
CONTEXT = 512
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 208,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SPECIAL = ("<s>", "</s>")  # the first begins every training sequence
DENSE = ("clipped_softmax", "learned_sink", "off_by_one")
STEPS, BATCH, RATE, WARMUP, DECAY = 8000, 64, 5e-3, 300, 0.1
EVERY, JUDGED = 200, 32  # steps between two points of the curve; held-out sequences at each
SINK_THRESHOLD = 0.3  # Gu et al.


def make_tokenizer(corpus: Path, out: Path) -> None:
    """A byte-level BPE, and both texts as ids."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer()
    learned.train([str(corpus / "train.txt")], vocab_size=VOCABULARY, special_tokens=list(SPECIAL))
    first, _ = SPECIAL
    learned._tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1], model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(out / "tokenizer")
    for name in ("train", "heldout"):
        text = (corpus / f"{name}.txt").read_text()
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.uint16)
        np.save(out / f"{name}.npy", ids)
        print(f"{name}: {len(ids):,} tokens, {len(text) / len(ids):.2f} characters a token")


def new_model(rule: str, seed: int) -> PairForCausalLM:
    """All that a rule shares with softmax has the softmax model's first weights; gates start as they are drawn."""
    shape: dict[str, Any] = {
        **SHAPE, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(seed)
    plain = PairForCausalLM(PairConfig(rule="softmax", **shape))
    model = PairForCausalLM(PairConfig(rule=rule, **shape))
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


def batches(ids: Tensor, seed: int) -> Any:
    """The same sequences in the same order for every rule: BOS and CONTEXT - 1 tokens, and the token after each."""
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT)
    while True:
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=draw)
        yield sequences(ids, starts[:, None] + offsets)


def sequences(ids: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    target = ids[at.to(ids.device)].long()
    return torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1), target


@torch.inference_mode()
def judge(model: PairForCausalLM, ids: Tensor) -> dict[str, float]:
    """Loss on held-out text in nats, and the sink: first-token share, Gu et al.'s rate, the largest activation."""
    starts = torch.linspace(0, len(ids) - CONTEXT - 1, JUDGED).long()
    tokens, target = sequences(ids, starts[:, None] + torch.arange(CONTEXT))
    shares, rates, largest = [], [], []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, found: maps.append(found[1]))
        for layer in model.model.layers
    ]
    maps: list[Tensor] = []
    losses = []
    for some, wanted in zip(tokens.split(8), target.split(8), strict=True):
        found = model(some, use_cache=False, output_hidden_states=True)
        losses.append(cross_entropy(found.logits.float().flatten(0, 1), wanted.flatten()).item())
        received = torch.stack([p[..., 0].float().mean(-1) for p in maps])  # (layer, b, h): every query sees the first
        shares.append(received.mean().item())
        rates.append((received > SINK_THRESHOLD).float().mean().item())
        largest.append(torch.stack([x.abs().amax((1, 2)).float() for x in found.hidden_states[1:]]).mean().item())
        maps.clear()
    for hook in hooks:
        hook.remove()
    return {
        "loss": float(np.mean(losses)),
        "first_share": float(np.mean(shares)),
        "sink_rate": float(np.mean(rates)),
        "largest_activation": float(np.mean(largest)),
    }


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))))


def train(pairs: Path, rule: str, seed: int, steps: int, out: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    text, heldout = (
        torch.from_numpy(np.load(pairs / f"{name}.npy").astype(np.int32)).to(device) for name in ("train", "heldout")
    )
    model = new_model(rule, seed).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE, betas=(0.9, 0.95), fused=device == "cuda",
    )  # fmt: skip
    precise = torch.autocast(device, torch.bfloat16) if device == "cuda" else nullcontext()

    def loss_of(tokens: Tensor, target: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits
        return cross_entropy(logits.float().flatten(0, 1), target.flatten())

    quick = torch.compile(loss_of) if device == "cuda" else loss_of
    # The softmax rules train through the fused kernel, the others through the dense map; `judge` reads dense maps.
    trained_by = "eager" if rule in DENSE else "sdpa"
    curve, began = [], time.monotonic()
    for step, (tokens, target) in zip(range(steps), batches(text, seed), strict=False):
        if step % EVERY == 0:
            model.config._attn_implementation = "eager"
            curve.append({"step": step, **judge(model.eval(), heldout)})
            model.train().config._attn_implementation = trained_by
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        with precise:
            loss = quick(tokens, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    model.config._attn_implementation = "eager"
    curve.append({"step": steps, **judge(model.eval(), heldout)})
    model.half().save_pretrained(out)
    facts = {
        "rule": rule, "seed": seed, "steps": steps, "batch": BATCH, "context": CONTEXT, "rate": RATE,
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
    }  # fmt: skip
    (out / "curve.json").write_text(json.dumps({**facts, "curve": curve}) + "\n")
    print(rule, seed, facts["seconds"], curve[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True, dest="what")
    bpe = what.add_parser("tokenizer", help="learn the BPE and turn both texts into ids")
    bpe.add_argument("--corpus", type=Path, required=True)
    bpe.add_argument("--out", type=Path, required=True)
    model = what.add_parser("model", help="train one model")
    model.add_argument("--pairs", type=Path, required=True, help="the folder that `tokenizer` wrote")
    model.add_argument("--rule", choices=RULES, required=True)
    model.add_argument("--seed", type=int, default=0)
    model.add_argument("--steps", type=int, default=STEPS)
    model.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "tokenizer":
        make_tokenizer(args.corpus, args.out)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        train(args.pairs, args.rule, args.seed, args.steps, args.out)


if __name__ == "__main__":
    main()
