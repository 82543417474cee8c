"""Readable names of a vocabulary's tokens, and the kind of each.

Three notations are understood: byte-level BPE (GPT-2: one printable character per byte, a space is `Ġ`), SentencePiece
(`▁the`, byte fallback `<0x0A>`) and WordPiece (`##ing`). Shape legend: V tokens.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from modeling_treediff.text.tree_tokenizer import tokenizer_size

KINDS = (
    "special",
    "unused",
    "byte",
    "whitespace",
    "digit",
    "punctuation",
    "Latin word start",
    "Latin continuation",
    "non-Latin",
)
SPACE = "▁"  # SentencePiece's sign, so that ` the` is told from `the`
LINES = "\n\t"  # what `printable` may keep of a text
_CONTROLS = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}
_NO_TEXT = re.compile(r"\[unused\d+\]|<unused\d+>")  # rows that BERT and Gemma keep free
_WORD_MARK = re.compile(r"^(▁|##)(?=.)")
_TOKEN_ID = re.compile(r"#\d+", re.ASCII)
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


class _Token(NamedTuple):
    text: str  # what it adds to a text, a leading space included; not for kinds below "whitespace"
    name: str
    kind: str | None = None  # None where the text decides
    continues: bool = False  # inside a word


def token_names(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """Return how every token reads to a person.

    A space is shown as `▁`, a line end as `⏎`, any other character without a glyph as `<U+00AD>`; so no name can
    control a terminal. Tokens that are not valid UTF-8 by themselves read `<0xE2 0x80>`, WordPiece continuations keep
    their `##`, and ids without a token read `<unused 123>`. Two tokens may share a name.

    Args:
        tokenizer: any tokenizer of transformers.
        vocab_size: V, at least the tokenizer's largest id + 1.

    Raises:
        ValueError: the tokenizer has an id outside 0..V-1.

    """
    return [token.name for token in _read_tokens(tokenizer, vocab_size)]


def token_kinds(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """Return (V,) int8: the index in KINDS of every token's kind.

    A token with letters is Latin or not: one letter of another script makes it non-Latin. Without letters it is a
    digit if it holds one, else whitespace or punctuation; symbols and emoji count as punctuation. "byte" is what is
    no text by itself: byte fallback, or a part of a character. "unused" are ids without a token or kept free.

    Args:
        tokenizer: any tokenizer of transformers.
        vocab_size: V, at least the tokenizer's largest id + 1.

    Raises:
        ValueError: the tokenizer has an id outside 0..V-1.

    """
    kinds = (token.kind or _kind_of_text(token) for token in _read_tokens(tokenizer, vocab_size))
    return np.fromiter(map(KINDS.index, kinds), dtype=np.int8, count=vocab_size)


def _read_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[_Token]:
    tokens = [_Token("", f"<unused {token_id}>", "unused") for token_id in range(vocab_size)]
    largest = tokenizer_size(tokenizer) - 1
    if largest >= vocab_size:
        raise ValueError(
            f"The tokenizer has the token id {largest}, the tree's tokens are 0..{vocab_size - 1}: they do not belong "
            "together."
        )
    # Without the mask that a saved model's tokenizer has behind all others: it stands for the root.
    vocabulary = {token: token_id for token, token_id in tokenizer.get_vocab().items() if token_id <= largest}
    read = _NOTATIONS[_notation(vocabulary)]
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder  # written as they are, whatever the notation
    for token, token_id in vocabulary.items():
        if token_id in special or (token_id in added and added[token_id].special):
            tokens[token_id] = _Token(token, _name(token), "special")
        elif _NO_TEXT.fullmatch(token):
            tokens[token_id] = _Token(token, token, "unused")
        else:
            tokens[token_id] = _literal(token) if token_id in added else read(token)
    return tokens


def _notation(vocabulary: Iterable[str]) -> str:
    """Return the mark of words or continuations that most tokens begin with, "" if none does."""
    number = dict.fromkeys(("Ġ", SPACE, "##"), 0)
    for token in vocabulary:
        for mark in number:
            number[mark] += token.startswith(mark)
    mark = max(number, key=lambda mark: number[mark])
    return mark if number[mark] else ""


def _literal(token: str) -> _Token:
    return _Token(token, _name(token))


def _read_byte_level(token: str) -> _Token:
    if not all(character in _BYTE_OF_CHARACTER for character in token):
        return _literal(token)
    content = bytes(_BYTE_OF_CHARACTER[character] for character in token)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return _Token("", f"<{' '.join(f'0x{byte:02X}' for byte in content)}>", "byte")
    return _Token(text, _name(text), continues=not text.startswith(" "))


def _read_sentencepiece(token: str) -> _Token:
    if _BYTE_FALLBACK.fullmatch(token):
        return _Token("", token, "byte")
    text = token.replace(SPACE, " ")
    return _Token(text, _name(text), continues=not text.startswith(" "))


def _read_wordpiece(token: str) -> _Token:
    continues = token.startswith("##") and len(token) > 2
    return _Token(token[2:] if continues else token, _name(token), continues=continues)


_NOTATIONS = {"Ġ": _read_byte_level, SPACE: _read_sentencepiece, "##": _read_wordpiece, "": _literal}


def printable(text: str, keep: str = "") -> str:
    """Show every character without a glyph as a sign or a code point: the result controls no terminal and no page.

    Those in `keep` stay as they are, such as line breaks of a text.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _CONTROLS.get(c, f"<U+{ord(c):04X}>") for c in text)


def _name(text: str) -> str:
    return printable(text.replace(" ", SPACE)) or "<empty>"


@cache
def _script(character: str) -> str:
    """Return "Latin", "non-Latin" or, for what belongs to no script, ""."""
    if unicodedata.category(character)[0] not in "LM":  # letters, and the marks that write vowels in some scripts
        return ""
    name = unicodedata.name(character, "")
    if name.startswith(("COMBINING", "MODIFIER")):  # accents and phonetic signs, used with many scripts
        return ""
    return "Latin" if "LATIN" in name or "ORDINAL INDICATOR" in name else "non-Latin"


def _kind_of_text(token: _Token) -> str:
    scripts = set(map(_script, token.text)) - {""}
    if "non-Latin" in scripts:
        return "non-Latin"
    if scripts:
        return "Latin continuation" if token.continues else "Latin word start"
    if any(character.isdigit() for character in token.text):
        return "digit"
    return "whitespace" if not token.text.strip() else "punctuation"


def find_tokens(names: list[str], query: str) -> list[int]:
    """Return the tokens whose name is the query, then those that differ in the word mark, then in the case.

    Args:
        names: from `token_names`.
        query: a name, or text with spaces; `#7` is also the token with id 7.

    """
    wanted = query.replace(" ", SPACE)
    plain = _WORD_MARK.sub("", wanted)
    ranks: list[list[int]] = [[], [], []]
    if _TOKEN_ID.fullmatch(query) and int(query[1:]) < len(names):
        ranks[0].append(int(query[1:]))
    for token, name in enumerate(names):
        bare = _WORD_MARK.sub("", name)
        if bare.lower() == plain.lower() and token not in ranks[0]:
            ranks[0 if name == wanted else 1 if bare == plain else 2].append(token)
    return [token for tokens in ranks for token in tokens]
