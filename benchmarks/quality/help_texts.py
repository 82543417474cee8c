"""Texts in other languages: the pages of LibreOffice's help, as Debian packages them, as documents of one file.

apt-get download libreoffice-help-de && dpkg-deb -x libreoffice-help-de_*.deb runs/help
python -m benchmarks.quality.help_texts runs/help/usr/share/libreoffice/help/de runs/texts/help_de.txt.xz

Their licence (MPL-2.0 and others) is theirs: the texts are measured with, and not copied into the repository.
"""

import argparse
import lzma
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from modeling_treediff.files.atomic_files import write_atomically

PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre")
PAGE = "DisplayArea"  # id of the part that is the page itself
LEAST = 200  # characters of a document


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of HTML pages")
    parser.add_argument("output", type=Path, help="file to write, .txt.xz")
    options = parser.parse_args()
    text = "\n\n".join(documents(options.folder)) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, lambda file: file.write_bytes(lzma.compress(text.encode())))
    print(f"{options.output}: {len(text.encode()) / 1e6:.1f} MB")


def documents(folder: Path) -> Iterator[str]:
    """Yield the text of each page, a paragraph a line; paragraphs that stood on an earlier page are left out."""
    seen: set[str] = set()
    for file in sorted(folder.rglob("*.html")):
        reader = Paragraphs()
        reader.feed(file.read_text(encoding="utf-8"))
        new = [one for one in dict.fromkeys(reader.found) if one not in seen]
        seen.update(new)
        if len(document := "\n".join(new)) >= LEAST:
            yield document


class Paragraphs(HTMLParser):
    """Collects the paragraphs and headings of a page, without tags and with single spaces."""

    def __init__(self) -> None:
        """Begin a page."""
        super().__init__()
        self.found: list[str] = []
        self.depth = 0  # of divisions within the page itself
        self.parts: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where the page and its paragraphs begin."""
        if tag == "div" and (self.depth or ("id", PAGE) in attrs):
            self.depth += 1
        if self.depth and tag in PARAGRAPHS:
            self.parts = []
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        """Note where they end."""
        if tag == "div" and self.depth:
            self.depth -= 1
        if tag in PARAGRAPHS and self.parts is not None:
            if text := " ".join("".join(self.parts).split()):
                self.found.append(text)
            self.parts = None

    def handle_data(self, data: str) -> None:
        """Take the text of a paragraph."""
        if self.parts is not None:
            self.parts.append(data)


if __name__ == "__main__":
    main()
