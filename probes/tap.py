"""The one seam between headscope and a model.

    with Tap(subject, readers=[reader]) as tap:
        subject.model(ids)

An attention function registered with Transformers' AttentionInterface sees q, k, v after RoPE, the mask and the scale,
lets the model's own fused SDPA compute the output, hands everything to the Readers and applies the Plan. Layers are
found by module, so that several Subjects, and a vision tower beside a decoder, stay apart.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kernels.attention import attend_by_blocks, attend_fused
from kernels.branches import attend_branches
from kernels.mechanisms import mechanism
from probes.activations import on_activation
from probes.anatomy import LayerAnatomy
from probes.branches import BranchCache
from probes.call import AttentionCall, OwnRule, Phase
from probes.changing import changed_output
from probes.errors import HeadscopeError
from probes.plan import LayerPlan, Plan
from probes.subject import Subject

IMPLEMENTATION = "headscope"


class Reader(Protocol):
    """Turns one layer's call into small per-head tensors and lets the big ones go.

    One that also has `read_projection(layer, queries)` gets the queries before norm and RoPE, (b, n, h, d). One with
    `activations`, names of probes.activations, also has `read_activation(layer, name, x)`, called with each of them
    once a forward in every layer of the decoder, before a Plan overwrites it.
    """

    def read(self, call: AttentionCall) -> None: ...


@dataclass
class _Forward:
    """What the attention layers of one forward pass need to know about it."""

    phase: Phase
    past: int
    offsets: list[int]
    padding: Int[Tensor, " b"] | None
    branches: BranchCache | None


class Tap:
    """Context manager: installs the attention function on a Subject, and takes it away again, errors included.

    Raises HeadscopeError where the model does not go through the AttentionInterface or already has a Tap.
    """

    def __init__(self, subject: Subject, *, readers: Sequence[Reader] = (), plan: Plan | None = None) -> None:
        self.subject = subject
        self.readers = list(readers)
        self.plan = plan
        self._projection_readers = [reader for reader in readers if hasattr(reader, "read_projection")]
        self._forward = _Forward("prefill", 0, [], None, None)
        self._inputs: Tensor | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        model = self.subject.model
        layers = self.subject.anatomy.every_layer
        if any(layer.module in _TAPPED for layer in layers):
            raise HeadscopeError(f"{self.subject.name} already has a Tap: leave the first one before opening another.")
        if not model._can_set_attn_implementation():
            raise HeadscopeError(
                f"{type(model).__name__} computes attention outside Transformers' AttentionInterface, "
                "so its heads can't be read or changed."
            )
        with ExitStack() as undo:
            undo.callback(_restore, _implementations(model))
            model.config._attn_implementation = IMPLEMENTATION
            for layer in layers:
                _TAPPED[layer.module] = (self, layer)
                undo.callback(_TAPPED.pop, layer.module, None)
            hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            undo.callback(hook.remove)
            for layer in self.subject.anatomy.decoder:
                for reader in self.readers:
                    for name in getattr(reader, "activations", ()):
                        see = partial(reader.read_activation, layer, name)  # type: ignore[attr-defined]
                        undo.callback(on_activation(self.subject, layer, name, see).remove)
                if self.plan is not None and self.plan.overwrites(layer.index):
                    see = partial(self._overwritten, layer)
                    undo.callback(on_activation(self.subject, layer, "residual", see).remove)
                if self._projection_readers or (self.plan is not None and self.plan.replaces_queries(layer.index)):
                    handle = layer.query_projection().register_forward_hook(self._projection_hook(layer))
                    undo.callback(handle.remove)
                if self.plan is not None and self.plan.swaps(layer.index):
                    handle = layer.module.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)
                    undo.callback(handle.remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _before_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        n = ids.shape[1] if ids is not None else kwargs["inputs_embeds"].shape[1]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        offsets = []
        if cache is not None and past:
            offsets = [int(cache.get_mask_sizes(n, i)[1]) for i in range(self.subject.anatomy.layers)]
        padding = kwargs.get("attention_mask")
        if isinstance(padding, Tensor) and padding.ndim == 2:
            padding = (padding.cumsum(-1) == 0).sum(-1)
            if not padding.any():
                padding = None
        else:
            padding = None
        self._forward = _Forward(
            phase="decode" if past and n == 1 else "prefill",
            past=past,
            offsets=offsets,
            padding=padding,
            branches=cache if isinstance(cache, BranchCache) else None,
        )

    def _layer_plan(self, layer: LayerAnatomy) -> LayerPlan | None:
        if self.plan is None or layer.stack:
            return None
        return self.plan.layer(self._forward.phase, layer.index)

    def _keep_inputs(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = kwargs.get("hidden_states", args[0] if args else None)

    def _projection_hook(self, layer: LayerAnatomy) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            b, n, _width = output.shape
            heads = output.view(b, n, layer.query_heads, layer.head_size)
            for reader in self._projection_readers:
                reader.read_projection(layer, heads)
            step = self._layer_plan(layer)
            if step is None or step.query_fill is None or step.query_filled is None:
                return output
            filled = torch.where(step.query_filled[:, None, :, None], step.query_fill.to(output), heads)
            return filled.view(b, n, -1)

        return hook

    def _overwritten(self, layer: LayerAnatomy, x: Tensor) -> Tensor:
        step = self._layer_plan(layer)
        for each in step.overwrites if step is not None else ():
            x = each.applied(x)
        return x

    def attend(
        self,
        layer: LayerAnatomy,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        options: dict[str, Any],
    ) -> Tensor:
        """This layer's output (b, n, h, e), read and changed as asked."""
        n = q.shape[2]
        if 1 < n < k.shape[2] and self._causal(layer, mask, options):
            # A static cache hands over its empty slots too, and no mask: the queries are its first tokens.
            k, v = k[:, :, :n], v[:, :, :n]
        step = self._layer_plan(layer)
        if step is not None and step.query_scale is not None:
            q = q * step.query_scale[:, :, None, None].to(q)
        rule = _own_rule(options)
        if not self.readers and step is None and rule is None:
            return self._output(layer, q, k, v, mask, scale, options)[0].transpose(1, 2).contiguous()
        call = self._call(layer, q, k, v, mask, scale, options, rule)
        if self.readers and call.branched:
            raise HeadscopeError("Readers can't read branches: decode one continuation at a time to read it.")
        if rule is not None and call.branched:
            raise HeadscopeError(f"Branches know softmax alone, and this model attends by {rule[0].name}.")
        for reader in self.readers:
            reader.read(call)
        if step is None or self.plan is None:
            return call.output.transpose(1, 2).contiguous()
        return changed_output(step, call, self._inputs, self.plan.report).transpose(1, 2).contiguous()

    def _output(
        self,
        layer: LayerAnatomy,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """This layer's output (b, h, n, e) as the model computes it, and its log-sum-exp where that costs nothing."""
        n = q.shape[2]
        softcap, sink = options.get("softcap"), options.get("s_aux")
        branches = self._forward.branches
        if branches is not None and not layer.stack:
            shared_k, shared_v = branches.shared(layer.index, layer.window)
            if layer.window is not None:
                k, v = k[:, :, -layer.window :], v[:, :, -layer.window :]
            out = attend_branches(q, shared_k, shared_v, k, v, scale=scale, softcap=softcap, sink=sink)
            return out, None
        causal = self._causal(layer, mask, options)
        if softcap is not None or sink is not None:
            # SDPA knows neither soft-caps nor learned sinks.
            out = attend_by_blocks(q, k, v, scale=scale, mask=mask, causal=causal, softcap=softcap, sink=sink)
            return out, None
        if mask is not None or n == 1:
            out = sdpa_attention_forward(layer.module, q, k, v, mask, scaling=scale, **options)[0]
            return out.transpose(1, 2), None
        if q.is_cuda and q.dtype == torch.float32 and layer.group_size > 1:
            # PyTorch's fused kernels share KV heads in half precision only. Transformers asks for it all the same
            # and gets the unfused one: 2 GB for each layer of the default model at 7,500 tokens.
            k, v = (x.repeat_interleave(layer.group_size, dim=1) for x in (k, v))
        return attend_fused(q, k, v, scale=scale, causal=causal)

    def _causal(self, layer: LayerAnatomy, mask: Tensor | None, options: dict[str, Any]) -> bool:
        given = options.get("is_causal")
        return mask is None and bool(getattr(layer.module, "is_causal", True) if given is None else given)

    def _call(
        self,
        layer: LayerAnatomy,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        options: dict[str, Any],
        rule: OwnRule | None,
    ) -> AttentionCall:
        b, _, n, _ = q.shape
        m = k.shape[2]
        queries = torch.arange(n, device=q.device).expand(b, n)
        keys = torch.arange(m, device=q.device).expand(b, m)
        at_slots = layer.stack != "" or (self._forward.padding is None and n == m and not self._forward.past)
        if not layer.stack:
            offset = self._forward.offsets[layer.index] if self._forward.offsets else 0
            queries, keys = queries + self._forward.past, keys + offset
            if self._forward.padding is not None:
                padding = self._forward.padding.to(q.device)[:, None]
                queries, keys = queries - padding, keys - padding
        return AttentionCall(
            layer=layer,
            phase=self._forward.phase,
            q=q,
            k=k,
            v=v,
            mask=mask,
            causal=self._causal(layer, mask, options),
            scale=scale,
            sink=options.get("s_aux"),
            rule=rule,
            query_positions=queries,
            key_positions=keys,
            at_slots=at_slots,
            branched=self._forward.branches is not None,
            attend=partial(self._output, layer, q, k, v, mask, scale, options),
        )


_TAPPED: WeakKeyDictionary[nn.Module, tuple[Tap, LayerAnatomy]] = WeakKeyDictionary()


def _tapped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    scale = options.pop("scaling", None)
    if module not in _TAPPED:
        raise HeadscopeError(f"{type(module).__name__} was reached through a Tap that never saw it in the Anatomy.")
    tap, layer = _TAPPED[module]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return tap.attend(layer, query, key, value, attention_mask, scale, options), None


def _own_rule(options: dict[str, Any]) -> OwnRule | None:
    """The Mechanism by which a model attends that says so (probes.pairs), with its settings."""
    if options.get("mechanism") is None:
        return None
    name, settings = options["mechanism"]
    rule = mechanism(name)
    return rule, rule.settings(settings)


def _implementations(model: nn.Module) -> list[tuple[Any, str]]:
    """Every config in the model with the attention it uses now, the outermost first."""
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    configs = {id(owner.config): owner.config for owner in owners}
    return [(config, config._attn_implementation) for config in configs.values()]


def _restore(before: list[tuple[Any, str]]) -> None:
    # Setting a config also sets the configs inside it, so the outermost goes first.
    for config, implementation in before:
        config._attn_implementation = implementation


AttentionInterface.register(IMPLEMENTATION, _tapped_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
