"""Texts of JSON that can be written and shown whatever was escaped in them.

pytest tests/analysis/test_json_text.py
"""

import json

import pytest

from analysis.json_text import loads


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r'"\ud800"', "\ufffd"),
        (r'"a\uDFFFb"', "a\ufffdb"),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\ud83d\ude00\ud83d"', "😀\ufffd"),
        (r'"\ud83dx\ude00"', "\ufffdx\ufffd"),
        (r'"\\ud800"', "\\ud800"),  # a backslash and letters
        (r'"\\\ud800"', "\\\ufffd"),
        (r'{"\ud800": ["\ud800"]}', {"\ufffd": ["\ufffd"]}),
    ],
)
def test_half_a_pair_becomes_the_sign_for_an_unknown_character_and_all_else_stays(written: str, read: object) -> None:
    assert loads(written) == read
    json.dumps(loads(written), ensure_ascii=False).encode()
