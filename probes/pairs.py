"""Small Llamas that differ in one thing: the rule by which their heads attend.

    subject = load("pair-softmax")              # trained by us; data/pairs has the recipe
    subject = load("pair-elementwise-gate")     # the same from the same seed, but for its gates

softmax            p = exp(s) / sum exp(s)
headwise_gate      softmax, then o = sigmoid(x W) * (p v), a gate per head          (Qiu et al., 2025, G1)
elementwise_gate   the same with a gate per element of each head's output           (Qiu et al., 2025, G1)
clipped_softmax    p = clip((1 + a / T) softmax(s) - a / T, 0, 1)                   (Bondarenko et al., 2023)
learned_sink       a trained logit per head takes a share and gives nothing         (gpt-oss)
off_by_one         the same with the constant logit 0                               (Miller, 2023)

x is what the layer reads, T the length of the training sequences.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from kernels.attention import visible_pairs, weights
from kernels.attention.reference import mix
from kernels.mechanisms.clipped_softmax import clipped

RULES = ("softmax", "headwise_gate", "elementwise_gate", "clipped_softmax", "learned_sink", "off_by_one")
CLIP_ALPHA = 12.0
"""Bondarenko et al. ship it for OPT-125m."""


class PairConfig(LlamaConfig):
    """A Llama's configuration, and `rule`, one of RULES. clip_alpha: a of clipped_softmax; T is the model's context."""

    model_type = "headscope_pair"
    rule: str = "softmax"
    clip_alpha: float = CLIP_ALPHA

    def __post_init__(self, **kwargs: Any) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule is {self.rule!r}, and must be one of {', '.join(RULES)}")
        super().__post_init__(**kwargs)


class PairAttention(LlamaAttention):
    """A Llama's attention with the configuration's rule.

    Gates and sinks are its own; a rule that changes the weights goes to the attention function as `mechanism`.
    """

    def __init__(self, config: PairConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        heads = config.num_attention_heads
        columns = {"headwise_gate": heads, "elementwise_gate": heads * self.head_dim}.get(config.rule)
        self.gate_proj = None if columns is None else nn.Linear(config.hidden_size, columns, bias=False)
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.rule == "learned_sink" else None
        self.mechanism: tuple[str, dict[str, float]] | None = None
        if config.rule == "clipped_softmax":
            self.mechanism = "clipped_softmax", {"gamma": -config.clip_alpha / config.max_position_embeddings}

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attend_densely)
        sinks = query.new_zeros(query.shape[1]) if self.config.rule == "off_by_one" else self.sinks
        rule = {"s_aux": sinks, "mechanism": self.mechanism}
        output, map_ = attention(self, query, key, value, attention_mask, scaling=self.scaling, **rule, **kwargs)
        if self.gate_proj is not None:
            gate = torch.sigmoid(self.gate_proj(hidden_states))
            output = output * gate.view(*output.shape[:3], -1)
        return self.o_proj(output.flatten(2)), map_


class PairForCausalLM(LlamaForCausalLM):
    """The whole model; its own attention is dense, because SDPA knows neither sinks nor clipping."""

    config_class = PairConfig
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = PairAttention(config, index)
        self.post_init()


def attend_densely(
    _: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    s_aux: Tensor | None = None,
    mechanism: tuple[str, dict[str, float]] | None = None,
    **__: Any,
) -> tuple[Tensor, Tensor]:
    """The output (b, n, h, e) and the effective map (b, h, n, m)."""
    n, m = query.shape[2], key.shape[2]
    mask = visible_pairs(n, m, causal=True, device=query.device) if attention_mask is None else attention_mask
    p = weights(query, key, scale=scaling, mask=mask, sink=s_aux)
    if mechanism is not None:
        p = clipped(p, **mechanism[1])
    return mix(p.to(value), value).transpose(1, 2).contiguous(), p


AutoConfig.register(PairConfig.model_type, PairConfig)
AutoModelForCausalLM.register(PairConfig, PairForCausalLM)
