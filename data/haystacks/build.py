"""Make the haystacks: public texts as plain paragraphs, one line each, compressed with xz.

    apt-get download bible-kjv bible-kjv-text dict-devil jargon-text
    for deb in *.deb; do dpkg-deb -x "$deb" debian; done
    pip download --no-binary :all: --no-deps brotli==1.2.1
    python -m data.haystacks.build --brotli brotli-1.2.1.tar.gz --debian debian

`--tokenizer PATH_OR_NAME` also counts tokens and prints the rows of the table in data/README.md.
The King James text is stored in a format of its own, so it is printed by the `bible` program of its package (Linux).
"""

import argparse
import gzip
import hashlib
import lzma
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
LARGEST = 600_000  # characters kept of one work: the longest prompts need variety more than they need all of one book
PROSE_SHARE = 0.95  # share of letters, spaces and common punctuation below which a Jargon File paragraph is no prose

Paragraphs = Iterable[str]


def join_lines(lines: Iterable[str]) -> str:
    """One line from wrapped lines; a word or dash broken at a hyphen is closed up and keeps the hyphen."""
    text = "\n".join(" ".join(line.split()) for line in lines)
    return " ".join(re.sub(r"(?<=\w)(--?)\n(?=\S)", r"\1", text).split())


def paragraphs(text: str, *, starts: str | None = None) -> Iterator[str]:
    """Re-flowed paragraphs: runs of lines between blank ones, split again before lines that match `starts`."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if lines and (not line.strip() or (starts and re.match(starts, line))):
            yield join_lines(lines)
            lines = []
        if line.strip():
            lines.append(line)


def between(text: str, first: str, last: str | None = None) -> str:
    """The part of `text` from the line `first` up to (not including) the next line `last`."""
    begin = re.search(rf"^[ \t]*{re.escape(first)}[ \t]*$", text, re.MULTILINE)
    if begin is None:
        raise ValueError(f"the source has no line {first!r}: is it the version named in data/README.md?")
    if last is None:
        return text[begin.start() :]
    end = re.compile(rf"^[ \t]*{re.escape(last)}[ \t]*$", re.MULTILINE).search(text, begin.end())
    if end is None:
        raise ValueError(f"the source has no line {last!r}: is it the version named in data/README.md?")
    return text[begin.start() : end.start()]


def brotli_text(sdist: Path, name: str) -> str:
    """A text of the corpus that Brotli tests itself on, with Unix line ends and without its DOS end-of-file mark."""
    with tarfile.open(sdist) as archive:
        found = [member for member in archive.getmembers() if member.name.endswith(f"tests/testdata/{name}")]
        if not found:
            raise ValueError(f"{sdist.name} holds no tests/testdata/{name}: give the sdist of Brotli, not a wheel")
        raw = archive.extractfile(found[0]).read()
    return raw.decode("ascii").replace("\r\n", "\n").replace("\x1a", "")


def kjv(debian: Path) -> Paragraphs:
    """A paragraph per chapter, verse numbers removed."""
    command = [debian / "usr/bin/bible", "-f", "-p", debian / "usr/lib", "gen1:1-2ki25:30"]
    printed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    verses = (line.split(" ", 1) for line in printed.splitlines() if line.strip())
    for _, chapter in groupby(verses, key=lambda verse: verse[0].split(":")[0]):
        yield join_lines(text for _, text in chapter)


def workshop(sdist: Path) -> Paragraphs:
    """The introduction, the proceedings and the abstracts; not the timetable, the outlines in boxes, the addresses."""
    text = brotli_text(sdist, "lcet10.txt")
    body = between(text, "INTRODUCTION", "Appendix I:  PROGRAM") + between(
        text, "Appendix II:  ABSTRACTS", "Appendix III:  DIRECTORY OF PARTICIPANTS"
    )
    body = re.sub(r"^\+{9,}\n.*?^\+{9,}$", "", body, flags=re.MULTILINE | re.DOTALL)
    return (text.removeprefix("* ") for text in paragraphs(body, starts=r"\s*\* "))


def alice(sdist: Path) -> Paragraphs:
    """From the first chapter to the end."""
    return paragraphs(between(brotli_text(sdist, "alice29.txt"), "CHAPTER I", "THE END"))


def milton(sdist: Path) -> Paragraphs:
    """A paragraph per verse paragraph, which the source marks by an indented first line."""
    text = between(brotli_text(sdist, "plrabn12.txt"), "Book I")
    return paragraphs(text.replace("[The End]", ""), starts=r" {2}\S")


def shakespeare(sdist: Path) -> Paragraphs:
    """A paragraph per speech, headed by its speaker."""
    text = between(brotli_text(sdist, "asyoulik.txt"), "ACT I")
    text = re.sub(r"^(SCENE [IVX]+)\t", r"\1. ", text, flags=re.MULTILINE)
    text = re.sub(r"^(\w[\w ]*)\t", r"\1: ", text, flags=re.MULTILINE)
    return (text for text in paragraphs(text) if text != "AS YOU LIKE IT")


def devil(debian: Path) -> Paragraphs:
    """The preface and the entries."""
    text = gzip.decompress((debian / "usr/share/dictd/devil.dict.dz").read_bytes()).decode("ascii")
    entries = paragraphs(between(text, "PREFACE", "abcdefghijklmnopqrstuvwxyz"))
    return (re.sub(r"[_{}]", "", entry) for entry in entries if entry != "PREFACE")


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph of the Jargon File reads as sentences (not code, a drawing, a dialogue, a web address)."""
    plain = re.findall(r"[^\W\d_]|[ .,;:?!'‘’“”()—-]", paragraph)
    return (
        len(plain) >= PROSE_SHARE * len(paragraph)
        and re.search(r"[.?!)”’]$", paragraph) is not None
        and paragraph.count(" ") >= 5
        and not re.search(r"://|\w@\w|www\.|;$|[=<>|\\^~`#$%{}]|\w\(\)|\w\[\d", paragraph)
    )


def jargon(debian: Path) -> Paragraphs:
    """The definitions, each headed by its word; what is not prose is left out."""
    text = gzip.decompress((debian / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()).decode("utf-8")
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    text = between(text, ":/dev/null: /dev·nuhl/, n.", "Appendix A. Hacker Folklore")
    word = ""
    for paragraph in paragraphs(text):
        if head := re.match(r":([^:]+):", paragraph):
            word = head[1]
            continue
        paragraph = re.sub(r"^(\d+\. )?", "", re.sub(r"[{}]", "", paragraph))
        if is_prose(paragraph):
            yield f"{word}: {paragraph}" if word else paragraph
            word = ""


def keep(texts: Paragraphs, largest: int = LARGEST) -> str:
    """The first whole paragraphs that fit into `largest` characters, blank lines between; drawings are dropped."""
    kept: list[str] = []
    size = 0
    for text in texts:
        if not re.search(r"[^\W\d_]", text):
            continue
        if not text.isprintable():
            raise ValueError(f"a control character is left in: {text[:80]!r}")
        size += len(text) + 2
        if size > largest:
            break
        kept.append(text)
    return "\n\n".join(kept) + "\n"


def build(brotli: Path, debian: Path) -> dict[str, Callable[[], Paragraphs]]:
    """Every haystack by name, as a call that yields its paragraphs."""
    from_brotli = {make.__name__: partial(make, brotli) for make in (workshop, alice, milton, shakespeare)}
    from_debian = {make.__name__: partial(make, debian) for make in (kjv, devil, jargon)}
    return from_debian | from_brotli


def main() -> None:
    parser = argparse.ArgumentParser(description="Make data/haystacks/*.txt.xz from their sources.")
    parser.add_argument("--brotli", type=Path, required=True, help="Brotli's sdist, brotli-1.2.1.tar.gz")
    parser.add_argument("--debian", type=Path, required=True, help="folder that the four packages were unpacked into")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this one)")
    parser.add_argument("--tokenizer", help="a tokenizer to count tokens with: a folder or a name on the Hub")
    args = parser.parse_args()

    tokenizer = None
    if args.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, make in sorted(build(args.brotli, args.debian.resolve()).items()):
        text = keep(make())
        packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
        (args.out / f"{name}.txt.xz").write_bytes(packed)
        tokens = f"{len(tokenizer(text).input_ids):,}" if tokenizer else ""
        print(f"| {name}.txt.xz | {len(text):,} | {tokens} | {len(packed):,} | {hashlib.sha256(packed).hexdigest()} |")


if __name__ == "__main__":
    main()
