"""The task of bench/train_credit.py: sums worked out step by step, and a small model that is middling at them.

    23+48+17=  ->  23+48=71;71+17=88.

A completion is right where the number before its full stop is the sum. Problems are drawn from a seed, training and
held-out ones from different streams; the held-out ones are left out of training.
"""

import copy
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TERMS = 4
LARGEST = 99
CHARACTERS = "0123456789+=;."
SPECIAL = ("<pad>", "<s>", "</s>")
LONGEST = 48  # tokens of a completion: three steps and the end are 37 at most
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
RATE, BATCH = 1e-3, 64  # of the supervised training
TARGET = 0.3  # accuracy of drawn answers at which it ends
PROMISING, EVERY, COOLING, MOST = 0.05, 25, 25, 20_000  # from this accuracy on, a copy is cooled every so many steps


@dataclass(frozen=True)
class Sum:
    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return "+".join(map(str, self.terms)) + "="

    @property
    def answer(self) -> str:
        return str(sum(self.terms))

    @property
    def worked(self) -> str:
        """The steps as they are taught."""
        total, steps = self.terms[0], []
        for term in self.terms[1:]:
            steps.append(f"{total}+{term}={total + term}")
            total += term
        return ";".join(steps) + "."


def sums(seed: int, without: frozenset[Sum] = frozenset(), terms: int = TERMS, largest: int = LARGEST) -> Iterator[Sum]:
    """Endless problems, the same for the same seed."""
    draw = random.Random(seed)
    while True:
        problem = Sum(tuple(draw.randint(1, largest) for _ in range(terms)))
        if problem not in without:
            yield problem


def held_out(count: int) -> list[Sum]:
    stream = sums(-1)
    return [next(stream) for _ in range(count)]


def answer_of(completion: str) -> str | None:
    """The number before the full stop that ends a worked sum; None where there is none."""
    found = re.fullmatch(r"[\d+=;]*=(\d+)\.", completion)
    return found[1] if found else None


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character; every text begins with <s>."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def new_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE, vocab_size=len(SPECIAL) + len(CHARACTERS), max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def completions(model: Any, tokenizer: Any, problems: Sequence[Sum], *, greedy: bool) -> list[str]:
    """Answers, all in one batch: the likeliest tokens, or drawn as GRPO draws them, from a seed of their own."""
    asked = tokenizer([problem.prompt for problem in problems], return_tensors="pt", padding=True).to(model.device)
    inputs = {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"]}
    drawn = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = model.generate(**inputs, max_new_tokens=LONGEST, **drawn)
    return tokenizer.batch_decode(found[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(model: Any, tokenizer: Any, problems: Sequence[Sum], *, greedy: bool = False) -> float:
    training = model.training
    model.eval()
    written = completions(model, tokenizer, problems, greedy=greedy)
    model.train(training)
    right = [answer_of(text) == problem.answer for text, problem in zip(written, problems, strict=True)]
    return sum(right) / len(right)


def taught(model: Any, tokenizer: Any, judged: Sequence[Sum], seed: int) -> tuple[Any, list[dict[str, float]]]:
    """The first cooled copy of a model in supervised training that reaches TARGET, and the curve up to it.

    A copy is cooled by some more steps at a falling rate. Uncooled, a model's accuracy swings by a third from step to
    step, and the one that first reaches a mark is the top of a swing.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    stream, curve = sums(seed, frozenset(judged)), []
    for step in range(1, MOST + 1):
        _taught_once(model, tokenizer, optimiser, [next(stream) for _ in range(BATCH)])
        if step % EVERY or accuracy(model, tokenizer, judged) < PROMISING:
            continue
        cooled = _cooled(model, tokenizer, optimiser, stream)
        curve.append({"step": step + COOLING, "accuracy": accuracy(cooled, tokenizer, judged)})
        if curve[-1]["accuracy"] >= TARGET:
            return cooled, curve
    raise SystemExit(f"After {MOST} supervised steps no model is right on {TARGET:.0%} of the held-out sums.")


def _cooled(model: Any, tokenizer: Any, optimiser: torch.optim.Optimizer, stream: Iterator[Sum]) -> Any:
    copied = copy.deepcopy(model)
    its_own = torch.optim.AdamW(copied.parameters(), lr=RATE)
    its_own.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for left in range(COOLING, 0, -1):
        its_own.param_groups[0]["lr"] = RATE * left / COOLING
        _taught_once(copied, tokenizer, its_own, [next(stream) for _ in range(BATCH)])
    return copied


def _taught_once(model: Any, tokenizer: Any, optimiser: torch.optim.Optimizer, problems: Sequence[Sum]) -> None:
    _loss(model, tokenizer, problems).backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def _loss(model: Any, tokenizer: Any, problems: Sequence[Sum]) -> Tensor:
    texts = [problem.prompt + problem.worked + tokenizer.eos_token for problem in problems]
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, problem in zip(labels, problems, strict=True):
        row[: len(row) - len(problem.worked) - 1] = -100  # the prompt is given, the steps and the end are learnt
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss


def base(folder: Path, seed: int, judged: Sequence[Sum], device: str) -> tuple[Any, Any]:
    """The supervised model of a seed, trained once and kept in `folder`, and its tokenizer."""
    tokenizer, path = new_tokenizer(), folder / f"base-{seed}"
    if not path.exists():
        model, curve = taught(new_model(seed).to(device), tokenizer, judged, seed)
        print(
            f"base {seed}: right on {curve[-1]['accuracy']:.1%} after {curve[-1]['step']} supervised steps", flush=True
        )
        scratch = folder / f".base-{seed}-{random.SystemRandom().getrandbits(32):08x}"
        model.save_pretrained(scratch)
        if not path.exists():
            scratch.rename(path)
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).to(device), tokenizer
