"""Train a tree-structured diffusion language model, new or saved."""

from dataclasses import dataclass, fields

from modeling_treediff.training.data.options import DataOptions
from modeling_treediff.training.run.settings import TrainingConfig

from .fields import check_exclusive, given, option, same_as, trust_option
from .model import SEQUENCE_LENGTH, Model, Process, check_source
from .text import Dataset

EXAMPLES = """
  treediff train                                         # the embedded sample, in minutes
  treediff train --tree flat --hidden-size 128 --heads 4 # MDLM, as many parameters
  treediff train --text corpus.txt --tree my_tree        # any text, any tree
  treediff train --text corpus.txt --from my_model       # fine-tuning
  treediff train --schedule sequential --head child      # TDLM
  treediff train --schedule poisson --head leaf          # HDLM
  accelerate launch -m modeling_treediff.cli.main train  # several processes or GPUs, or mixed precision
"""


@dataclass(frozen=True)
class TrainingText:
    """What to train on, what to validate on, and how documents become windows."""

    _argument_group_name = "data"

    text: str | None = option(None, "text file, dataset file or Hub dataset (default: the embedded sample)")
    validation_text: str | None = option(None, "held-out text (default: every n-th document of --text)")
    validation_split: str | None = option(None, "held-out split of the same Hub dataset or folder")
    hold_out_every: int = same_as(DataOptions, "hold_out_every")
    separate_documents: bool = same_as(DataOptions, "separate_documents")
    chat: bool = same_as(DataOptions, "chat")
    pad_answers: bool = same_as(DataOptions, "pad_answers")
    streaming: bool = same_as(DataOptions, "streaming")

    def data_options(self, sequence_length: int) -> DataOptions:
        """Return how documents become windows of this length."""
        shared = {one.name for one in fields(DataOptions)} & {one.name for one in fields(self)}
        return DataOptions(sequence_length, **{name: getattr(self, name) for name in shared})


@dataclass(frozen=True)
class StartingModel(Model):
    """The model, its tree and its tokenizer."""

    tokenizer: str | None = option(None, "folder or Hub id (default: the tree's; for a flat tree the sample's)")


@dataclass(frozen=True)
class Run:
    """Output, logging and resuming of the run."""

    _argument_group_name = "run"

    dry_run: bool = option(False, "print the memory that a step will take, and what fits, then end")
    resume: bool = option(
        False, "go on from the newest checkpoint in --output; a sharded run, which loads pickles, must be your own"
    )
    license: str | None = option(None, "license of the weights, such as apache-2.0, for the model card", is_text=True)
    language: str | None = option(None, "code of the text's language, such as en, for the model card", is_text=True)
    text_description: str | None = option(None, "what the text is, in words, for the model card", is_text=True)
    trust_remote_code: bool = trust_option()


OPTIONS = (TrainingText, Dataset, StartingModel, Process, TrainingConfig, Run)


def check(
    text: TrainingText,
    dataset: Dataset,
    model: StartingModel,
    process: Process,
    config: TrainingConfig,
    run: Run,
) -> None:
    """Raise ValueError for options that contradict each other."""
    check_exclusive(text, "validation_text", "validation_split", "hold_out_every")
    if text.text is None and (without := given(dataset)):
        raise ValueError(f"{', '.join(without)}: say of which text, with --text.")
    check_exclusive(config, "gradient_accumulation_steps", "global_batch_size")
    check_source(model, process)
    text.data_options(SEQUENCE_LENGTH if model.sequence_length is None else model.sequence_length)
