"""Train, fine-tune or adapt (LoRA) a model with transformers' own Trainer.

python examples/train_with_trainer.py --output_dir runs/trainer --max_steps 1500 --learning_rate 3e-3
python examples/train_with_trainer.py --output_dir runs/tuned --model runs/trainer --text corpus.txt
python examples/train_with_trainer.py --output_dir runs/adapter --model runs/trainer --text corpus.txt --lora_rank 8

The second and third start from a saved model; what the third saves is the adapter alone. All options of the Trainer are
there, but for sharding: that is `treediff train`'s. `loss` has what lookahead adds, `eval_loss` is the bound.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.files.sample import TRAINING_TEXT, VALIDATION_TEXT, sample_folder
from modeling_treediff.hub import save_checkpoint, tokenizer_with_mask
from modeling_treediff.text import read_documents, split_documents
from modeling_treediff.text.mask_token import refuse_mask
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.training import DiffusionCollator, make_lean

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class ScriptArguments:
    """What the Trainer's own arguments leave open."""

    text: str | None = field(default=None, metadata={"help": "text file or dataset; default: the embedded sample"})
    hold_out_every: int = field(default=20, metadata={"help": "every n-th document of the text is held out"})
    model: str | None = field(default=None, metadata={"help": "saved model to start from; default: a new one"})
    lora_rank: int | None = field(default=None, metadata={"help": "train low-rank adapters of the layers alone"})
    tree: str = field(
        default=str(sample_folder()), metadata={"help": "of a new model: folder of its tree and tokenizer"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run the code that a tokenizer's repository may bring along; models need none"}
    )
    layers: int = field(default=3, metadata={"help": "of a new model"})
    hidden_size: int = field(default=192, metadata={"help": "of a new model"})
    heads: int = field(default=6, metadata={"help": "of a new model: attention heads"})
    sequence_length: int = field(default=64, metadata={"help": "of a new model: tokens per sequence"})


class DiffusionTrainer(Trainer):
    """Its `eval_loss` is the bound as `nelbo` estimates it, with little variance, and with the same noise each time."""

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Return the bound on the batch's clean tokens, nats per token, and no predictions."""
        model, tokens = self.accelerator.unwrap_model(model), self._prepare_inputs(inputs)["labels"]
        generator = torch.Generator().manual_seed(self.args.seed)
        with self.compute_loss_context_manager():
            bound = model.nelbo(tokens, num_samples=model.config.tree_depth, generator=generator)
        return torch.tensor(bound.value, device=self.args.device), None, None


def main() -> None:
    """Read text and tree or model, train, and write the model or adapter to the output folder."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))  # type: ignore[arg-type]  # too narrow there
    script, arguments = parser.parse_args_into_dataclasses()
    set_seed(arguments.seed)  # of a new model's weights
    tokenizer = AutoTokenizer.from_pretrained(script.model or script.tree, trust_remote_code=script.trust_remote_code)
    model = load_model(script, tokenizer)
    make_lean(model)  # backward keeps less; what is saved is the plain model
    length = tokenizer.model_max_length = model.config.max_position_embeddings
    training, held_out = (token_windows(documents, tokenizer, length) for documents in read_texts(script))
    trainer = DiffusionTrainer(
        adapted(model, script.lora_rank),
        arguments,
        data_collator=DiffusionCollator(model.tree, model.schedule, arguments.seed, block_size=model.config.block_size),
        train_dataset=training,
        eval_dataset=held_out,
        processing_class=tokenizer_with_mask(tokenizer, model.tree),
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if script.lora_rank is None:
        save_checkpoint(model, arguments.output_dir, tokenizer, is_main_process=trainer.is_world_process_zero())
    else:
        trainer.save_model()
    trainer.save_metrics("eval", metrics := trainer.evaluate())
    print(f"held-out NELBO {metrics['eval_loss']:.3f} nats/token; saved in {arguments.output_dir}")


def load_model(script: ScriptArguments, tokenizer: PreTrainedTokenizerBase) -> TreeDiffForDiffusionLM:
    """Return the saved model, or a new one over the tree."""
    if script.model:
        return TreeDiffForDiffusionLM.from_pretrained(script.model)
    tree = VocabularyTree.from_pretrained(script.tree)
    check_tokenizer(tree, tokenizer)
    end = tokenizer.eos_token_id
    return TreeDiffForDiffusionLM.from_tree(
        tree,
        **{"hidden_size": script.hidden_size, "num_hidden_layers": script.layers, "num_attention_heads": script.heads},
        max_position_embeddings=script.sequence_length,
        **{"eos_token_id": end, "bos_token_id": end, "pad_token_id": end},
    )


def adapted(model: TreeDiffForDiffusionLM, rank: int | None) -> Any:
    """Return the model, with a rank given inside PEFT's wrapper that freezes all but adapters of the layers."""
    if rank is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'modeling-treediff[lora]'.") from error
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS))


def read_texts(script: ScriptArguments) -> tuple[list[str], list[str]]:
    """Return training and held-out documents."""
    if script.text is None:
        return read_documents(sample_folder() / TRAINING_TEXT), read_documents(sample_folder() / VALIDATION_TEXT)
    return split_documents(read_documents(script.text), script.hold_out_every)


def token_windows(documents: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Join the documents, each followed by the end-of-sequence token, and cut them into windows of `length` tokens."""

    def pack(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        tokens = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
        refuse_mask(tokens, tokenizer, "The text")
        return {"input_ids": [tokens[end - length : end] for end in range(length, len(tokens) + 1, length)]}

    windows = Dataset.from_dict({"text": documents}).map(pack, batched=True, remove_columns="text")
    if not len(windows):
        raise ValueError(f"A part of the text is shorter than one window of {length} tokens: use a longer text.")
    return windows


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"train_with_trainer.py: {error}")
