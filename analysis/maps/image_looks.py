"""Where in its picture a token of a map run looks, and how much of its attention goes there.

kept = kept_picture(run)
tokens = kept.layers()["picture"]
look = look_at(kept, row(run, [Head(17, 4)], query=130), tokens)    # attention (image,), its sum, the strongest
head_looks(run, kept, layer=17, query=130, tokens=tokens)           # the same look of each head of a layer
patch_table(kept, look, tokens)                                     # as numbers, the strongest patch first
"""

from collections.abc import Sequence

import pandas as pd
from xarray import DataArray

from analysis.maps.exact import layer_heads, row
from analysis.maps.kept_layers import record_of
from analysis.maps.kept_picture import KeptPicture
from analysis.runs import Run
from analysis.vision.grounding import centre_inside
from analysis.vision.showing import Look
from probes.heads import Head


def look_at(kept: KeptPicture, weights: DataArray, tokens: Sequence[int]) -> Look:
    """At some of the image tokens. weights: of every key, as `analysis.maps.exact.row` gives them."""
    attention = weights.values[[kept.positions[token] for token in tokens]].astype(float)
    return Look(attention, float(attention.sum()), float(attention.max()), float(attention.mean()))


def head_looks(run: Run, kept: KeptPicture, layer: int, query: int, tokens: Sequence[int]) -> dict[Head, Look]:
    """The look of every head of a layer."""
    return {head: look_at(kept, row(run, [head], query), tokens) for head in layer_heads(run, layer)}


def widest_look(shares: DataArray, kept: KeptPicture) -> int:
    """The token behind the picture that gives it most. shares: by token, as `analysis.maps.exact.mass` gives them."""
    behind = kept.positions[-1] + 1
    return behind + int(shares.values[behind:].argmax())


def head_order(run: Run) -> list[Head]:
    """The kept heads, those first that give the picture most in the mean over the tokens behind it."""
    record = record_of(run)
    scored = [
        (share, Head(layer, head))
        for layer, shares in zip(record["layers"], record["per_head"]["image_share"], strict=True)
        for head, share in enumerate(shares)
    ]
    return [head for _, head in sorted(scored, key=lambda each: -each[0])]


def patch_table(kept: KeptPicture, look: Look, tokens: Sequence[int]) -> pd.DataFrame:
    """Each of the image tokens, the strongest first: patch and weight.

    Where there are any, objects whose box holds the patch's centre, and whether it is a sink.
    """
    frame = pd.DataFrame({"patch": [kept.names[token] for token in tokens], "weight": look.attention})
    if kept.objects:
        inside = [(each["name"], centre_inside(kept.patches, [each["box"]]).values) for each in kept.objects]
        frame["object"] = [", ".join(name for name, there in inside if there[token]) for token in tokens]
    if kept.sinks:
        frame["sink"] = [token in kept.sinks for token in tokens]
    return frame.sort_values("weight", ascending=False, kind="stable").reset_index(drop=True)
