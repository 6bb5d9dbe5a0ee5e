"""JSON whose texts can be shown. An escape such as \\ud800 without its other half stands for no character: neither a
browser nor a file takes it, and one in the name of a model would take down every page that names the model.
"""

import json
import re
from typing import Any

HIGH, LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# Whole pairs, and backslashes that are escaped themselves, are passed over.
PAIRS = re.compile(rf"(\\\\|{HIGH}{LOW})|{HIGH}|{LOW}")


def loads(text: str) -> Any:
    """What `json.loads` makes of it, with the sign for an unknown character (\ufffd) in place of half a pair."""
    if "\\ud" in text or "\\uD" in text:
        text = PAIRS.sub(lambda found: found[1] or r"\ufffd", text)
    return json.loads(text)
