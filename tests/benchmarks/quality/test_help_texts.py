"""Pages of a help as a text."""

import sys

from benchmarks.quality import help_texts
from modeling_treediff.text import read_documents

PAGE = """<html><body><div id="Index"><p>not of the page</p></div>
<div id="DisplayArea"><h1><a name="x"></a>{title}</h1><p>A paragraph<br>of <span>{words}</span>&nbsp;&amp; more.</p>
<div class="embedded"><p>The same on every page, {same}.</p></div></div><footer><p>nor this</p></footer></html>"""


def test_paragraphs_of_pages_become_lines_of_documents_each_once(tmp_path, monkeypatch):
    words, same = "word " * 50, "now and then " * 20
    for name, title in (("b/two", "Zwei"), ("a", "Eins"), ("c", "")):
        file = tmp_path / "help" / f"{name}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PAGE.format(title=title, words=words + title, same=same), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["help_texts", str(tmp_path / "help"), str(tmp_path / "out" / "text.txt.xz")])
    help_texts.main()
    paragraph = "A paragraph of " + " ".join(words.split())
    first = f"Eins\n{paragraph} Eins & more.\nThe same on every page, {' '.join(same.split())} ."
    assert list(read_documents(tmp_path / "out" / "text.txt.xz")) == [
        first,
        f"Zwei\n{paragraph} Zwei & more.",
        f"{paragraph} & more.",
    ]
