"""Characters that nobody sees, and those that would turn the order of what follows, as marks that can be seen."""

import re

SQUARE = "▫"
ORDER = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
WITHOUT_WIDTH = "\u00ad\u180e\u200b\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
UNSEEN = re.compile(f"[{ORDER}{WITHOUT_WIDTH}]")
JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # at work inside of emoji and of some scripts, nothing where they stand alone
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


def seen(text: str) -> str:
    """The text with a square for what has no shape, and a picture (␀) for each control character."""
    text = UNSEEN.sub(SQUARE, CONTROLS.sub(_picture, text))
    return text if text.strip(JOINERS) or not text else SQUARE


def _picture(found: re.Match[str]) -> str:
    """Unicode has pictures of the control characters, in their order; that of delete stands behind the others."""
    return "␡" if found[0] == "\x7f" else chr(0x2400 + ord(found[0]))
