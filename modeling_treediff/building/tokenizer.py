"""Training of a byte-level BPE tokenizer, for texts that no published vocabulary fits."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_treediff.configuration_treediff import LARGEST_COUNT

END_OF_TEXT = "<|endoftext|>"
BYTES = 256


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary, as GPT-2's: every text, whatever its characters, comes back exactly.

    The result depends on the texts alone, not on threads or hash seeds. One special token, `<|endoftext|>` with id 0,
    serves as bos, eos, pad and unk.

    Args:
        documents: texts.
        vocab_size: tokens wanted, the 256 bytes and the special token included.

    Raises:
        ValueError: vocab_size is below 257 or above a million, or the texts have too few distinct words for it.

    """
    if not BYTES < vocab_size <= LARGEST_COUNT:
        least = f"{BYTES + 1} (all bytes and {END_OF_TEXT})"
        raise ValueError(f"vocab_size must be at least {least}, and at most {LARGEST_COUNT:,}, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != vocab_size:
        raise ValueError(
            f"The text is too small for {vocab_size} tokens: its words give only {learned}. Give more text, or ask for "
            f"at most {learned} tokens."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
