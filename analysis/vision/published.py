"""What the papers report for the mitigations that we run, to be shown beside our numbers; their settings differ.

CHAIR on 500 images of COCO val2014, "Please describe this image in detail.", up to 512 new tokens, LLaVA-1.5-7B.
"""

from dataclasses import dataclass

VHR_PAPER = "He et al., ACL 2025, mean of 5 draws of images"
PAINT_PAPER = "Fixing Imbalanced Attention (arXiv 2501.12206), its README"


@dataclass(frozen=True)
class Published:
    """chair_s, chair_i and f1 in [0, 1]; length in words or tokens, as the source counts. None where it gives none."""

    arm: str
    chair_s: float
    chair_i: float
    f1: float | None
    length: float | None
    source: str


PUBLISHED = (
    Published("none", 0.4968, 0.1432, None, 83, VHR_PAPER),
    Published("vhr", 0.3332, 0.0971, None, 81, VHR_PAPER),
    Published("vcd", 0.5192, 0.1542, None, 83, VHR_PAPER),
    Published("dola", 0.5088, 0.1464, None, 82, VHR_PAPER),
    Published("opera", 0.4428, 0.1336, None, 76, VHR_PAPER),
    Published("none", 0.462, 0.138, 0.759, 97, PAINT_PAPER),
    Published("pai", 0.246, 0.068, 0.747, None, PAINT_PAPER),
    Published("paint", 0.176, 0.040, 0.718, 187.8, PAINT_PAPER),
)
POPE_F1 = {"none": 0.8498, "vhr": 0.8547}  # mean of the three splits, LLaVA-1.5-7B, VHR_PAPER
