"""Tokenizers of a few given tokens."""

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode


def tokenizer_of(*tokens: str, special: tuple[str, ...] = (), first_id: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer with exactly these tokens; only the vocabulary matters here."""
    vocabulary = {token: first_id + index for index, token in enumerate(tokens)}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0])))
    wrapped.add_tokens([AddedToken(token, special=True) for token in special])
    return wrapped


def word_tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with these ids, <eos> among them."""
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<eos>")


def numbered_words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of word0, word1, ... and, last, the end of a text."""
    return word_tokenizer({f"word{index}": index for index in range(size - 1)} | {"<eos>": size - 1})


def byte_level(text: bytes) -> str:
    return "".join(bytes_to_unicode()[byte] for byte in text)
