"""How sure was the model of each token that it wrote? What a detector that reads heads has to beat.

log_probabilities(subject, prompts, captions)       # (token,), in nats, at most 0
"""

from collections.abc import Sequence

import torch
import xarray as xr
from xarray import DataArray

from analysis.vision.masses import BATCH, check_captions
from probes.batch import collate, forward
from probes.image_prompt import continued
from probes.prompt import Prompt
from probes.subject import Subject


@torch.inference_mode()
def log_probabilities(
    subject: Subject, prompts: Sequence[Prompt], captions: Sequence[Sequence[int]], *, batch: int = BATCH
) -> DataArray:
    """log p of every token of the captions, teacher-forced; (token,) with `prompt` and `step` (see masses).

    Raises HeadscopeError for an empty caption.
    """
    check_captions(prompts, captions)
    found = []
    for start in range(0, len(prompts), batch):
        some, written = prompts[start : start + batch], captions[start : start + batch]
        whole = [continued(prompt, caption) for prompt, caption in zip(some, written, strict=True)]
        kept = 1 + max(map(len, written))  # the rows before the captions predict nothing that was said
        logits = forward(subject, collate(subject, whole), logits_to_keep=kept).logits
        for i, caption in enumerate(written):
            predicting = logits[i, -len(caption) - 1 : -1].float()  # padding is on the left
            said = torch.tensor(list(caption), device=logits.device)
            values = predicting.log_softmax(-1).gather(-1, said[:, None])[:, 0].cpu().numpy()
            where = {"prompt": ("token", [start + i] * len(caption)), "step": ("token", list(range(len(caption))))}
            found.append(DataArray(values, dims="token", coords=where))
    return xr.concat(found, "token")
