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


def byte_level(text: bytes) -> str:
    return "".join(bytes_to_unicode()[byte] for byte in text)
