"""TRL's GRPO with credit by rhythm: every token's advantage is scaled by what attention says of the token.

    trainer = CreditGRPOTrainer(credit=Credit("coupled"), model=model, reward_funcs=reward, args=GRPOConfig(...), ...)
    trainer.train()

One method is overridden, the one that generates and scores: TRL hands on advantages of one number per completion, and
its loss takes one per token as well (`_compute_loss` adds the token dimension only where it is missing), so that
nothing else of the trainer has to change. After generation one forward without gradient, in evaluation mode, reads
prompt and completion under a Tap, up to the last layer that counts. The weights belong to the policy that wrote the
completions and stay as they are through all updates on them.

Every log has "credit/attention_share", the share of the steps' time that reading took, and "credit/amplified", the
share of tokens that weigh more than 1. Li et al., "Attention Illuminates LLM Reasoning", 2025, section 4.
"""

import time
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.rhythm.batched import BatchRhythm, in_parts
from analysis.rhythm.credit import random_weights, scaled_advantages, token_weights
from analysis.rhythm.credit_settings import Credit, HeadMasks, by_span
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.subject import Subject

try:
    from trl import GRPOTrainer
except ImportError as error:
    raise HeadscopeError(f"Training with credit needs TRL ({error}): pip install 'headscope[rl]'.") from error


class CreditGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer that also takes `credit`. Text models on whole devices: no pictures, no sharded weights.

    heads: the local and the global heads as masks over (layer, head) of `layers`, the layers that are read; set by the
        first batch where Credit names none.
    """

    def __init__(self, *arguments: Any, credit: Credit, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.credit = credit
        self.heads: HeadMasks | None = None
        self.layers: tuple[int, ...] = ()
        self._drawn = torch.Generator().manual_seed(credit.seed)
        self._reading_seconds = 0.0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.credit.strategy == "none" or not self._training:
            return batch
        if "pixel_values" in batch:
            raise HeadscopeError("Credit is read from text alone: train a model that takes pictures without it.")
        own = batch["completion_mask"].bool()
        if "tool_mask" in batch:
            own = own & batch["tool_mask"].bool()
        weights = self.token_weights(batch, own)
        amplified = (weights > 1)[own].float().mean().item()
        self._metrics["train"]["credit/amplified"].append(amplified)
        batch["advantages"] = scaled_advantages(batch["advantages"], weights, sign=self.credit.sign)
        return batch

    def token_weights(self, batch: dict[str, Any], own: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The weight of every completion token. own: True for the tokens that the model wrote."""
        credit = self.credit
        if credit.strategy == "none":
            return torch.ones_like(own, dtype=torch.float32)
        if credit.strategy == "random":
            return random_weights(own, share=credit.share, amplification=credit.amplification, generator=self._drawn)
        waad, fai = self.rhythm(batch)
        return token_weights(
            credit.strategy,
            waad,
            fai,
            own,
            amplification=credit.amplification,
            share=credit.share,
            alpha=credit.alpha,
            lookback=credit.lookback,
        )

    def rhythm(self, batch: dict[str, Any]) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
        """WAAD over the local heads and FAI over the global ones, of every completion token."""
        began = self._now()
        found = self._read(batch)
        if self.heads is None:
            assert found.distance is not None
            # Every process must choose the same heads, from what all of them have seen.
            distance = self.accelerator.reduce(found.distance.mean(1), reduction="mean")
            self.heads = by_span(distance, self.layers, self.credit.head_share)
        local, leading = (mask.to(found.waad.device) for mask in self.heads)
        waad = found.waad.transpose(1, 2)[local].mean(0)
        fai = found.fai.transpose(1, 2)[leading].mean(0)
        self._reading_seconds += self._now() - began
        return waad, fai

    def _read(self, batch: dict[str, Any]) -> BatchRhythm:
        model = self.accelerator.unwrap_model(self.model)
        # The decoder without its head: the logits of every token would cost more than its attention.
        decoder = model.get_decoder()
        subject = Subject(name=type(model).__name__, model=decoder, tokenizer=None, anatomy=read_anatomy(decoder))
        if not self.layers:
            self.layers, self.heads = self.credit.chosen(subject.anatomy)
        training = decoder.training
        decoder.eval()
        try:
            with self.accelerator.autocast():
                return in_parts(
                    subject,
                    torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                    torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                    batch["prompt_ids"].shape[1],
                    rows=self.args.per_device_train_batch_size,
                    layers=self.layers,
                    window=self.credit.window,
                    horizon=self.credit.horizon,
                    spans=self.heads is None,
                )
        finally:
            decoder.train(training)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        seconds = sum(self._metrics["train"].get("step_time", []))
        if self._training and seconds > 0:
            self._metrics["train"]["credit/attention_share"].append(self._reading_seconds / seconds)
            self._reading_seconds = 0.0
        super().log(logs, start_time)

    @property
    def _training(self) -> bool:
        return self.model is not None and self.model.training

    def _now(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        return time.perf_counter()
