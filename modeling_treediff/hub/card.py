"""The model card: `model_card.md` filled in with facts of the model and with what the records beside it say.

The template (Jinja) holds all of the text; it leaves out what no record of the very weights backs, and what nobody
said. Checkpoints do not carry it: a card is rendered again whenever this package saves or pushes a model.
"""

import json
import shutil
from pathlib import Path
from typing import cast

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

from modeling_treediff import __version__
from modeling_treediff.files.atomic_files import write_atomically
from modeling_treediff.modeling_treediff import TreeDiffLanguageModel, TreeDiffPreTrainedModel
from modeling_treediff.text.token_kinds import printable

from .card_metadata import describe
from .card_values import as_cell, values_of_evaluation, values_of_the_model, values_of_the_tree, values_of_training
from .records import CURVES_NAME, EVALUATION_RECORD, RECORD_NAMES, TRAINING_RECORD, find_records, records_of_origin

logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
TEMPLATE_NAME = "model_card.md"
MARK = "<!-- rendered from model_card.md: without this line, saving leaves the file as it is -->"


def write_card(model: TreeDiffPreTrainedModel, folder: Path, target: Path | None = None) -> None:
    """Write README.md into a folder that holds a saved model.

    A README.md without our mark is its user's own and stays. Records of the same weights come along from where the
    model was loaded from. What cannot be rendered is told in a warning: no model is lost for its card.

    Args:
        model: the model that was saved.
        folder: holds the weights.
        target: the folder that the files of `folder` are about to update; by default itself.

    """
    target = target or folder
    _bring_records(model, folder, target)
    if card := renewed_card(model, folder, target):
        write_atomically(folder / CARD_NAME, lambda file: file.write_text(card, encoding="utf-8"))


def renewed_card(
    model: TreeDiffPreTrainedModel, folder: Path, target: Path | None = None, repository: str | None = None
) -> str | None:
    """Return the card as `render_card` does; None where README.md is its user's own, or after a warning."""
    target = target or folder
    if not is_rendered(target / CARD_NAME):
        return None
    try:
        return render_card(model, folder, target, repository)
    except Exception as error:  # noqa: BLE001 -- tokenizers raises just that, and records are anybody's
        logger.warning(f"No new model card is written to {target}: {type(error).__name__}, {error}.")
        return None


def is_rendered(readme: Path) -> bool:
    """Tell whether a README.md is one that was rendered here, or is not there yet."""
    return not readme.exists() or (readme.is_file() and MARK.encode() in readme.read_bytes())


def render_card(
    model: TreeDiffPreTrainedModel, folder: Path, target: Path | None = None, repository: str | None = None
) -> str:
    """Return the card, README.md's whole text with its YAML metadata, of a model saved in a folder.

    Args:
        model: the model that was saved.
        folder: holds the weights; its records and its tokenizer count before those in `target`.
        target: a folder that the files of `folder` are about to update; by default itself.
        repository: id on the Hub, which the example loads from; by default it loads from the folder, by its name.

    """
    name = repository or (target or folder).resolve().name

    def place(name: str) -> Path:
        return folder / name if (folder / name).exists() else (target or folder) / name

    records = find_records(folder, {name: place(name) for name in RECORD_NAMES})
    training, evaluation = (records.get(name, {}) for name in (TRAINING_RECORD, EVALUATION_RECORD))
    values = {
        "mark": MARK,
        "package_version": __version__,
        "title": as_cell(name.rpartition("/")[2]),
        "repository": json.dumps(printable(name), ensure_ascii=False),
        "curves": CURVES_NAME if training and place(CURVES_NAME).exists() else "",
        **values_of_the_model(cast(TreeDiffLanguageModel, model)),
        **values_of_the_tree(model.tree, place("tokenizer.json")),
        **values_of_training(training),
        **values_of_evaluation(evaluation),
    }
    card = ModelCard.from_template(ModelCardData(), template_str=read_template(), **values)
    card.data.tags = list(dict.fromkeys([*card.data.tags, *(model.model_tags or [])]))
    describe(cast(ModelCardData, card.data), f"treediff-{values['parameters_rounded']}", training, evaluation)
    return str(card)


def read_template() -> str:
    """Return the template: beside this file where the package is installed, else at the top of the repository."""
    here = Path(__file__)
    installed = here.with_name(TEMPLATE_NAME)
    file = installed if installed.exists() else here.parents[2] / TEMPLATE_NAME
    return file.read_text(encoding="utf-8")


def _bring_records(model: TreeDiffPreTrainedModel, folder: Path, target: Path) -> None:
    try:
        brought = records_of_origin(model)
    except OSError:  # the repository is gone, or no longer open to us
        return
    for name in find_records(folder, brought):
        if not (target / name).exists():
            shutil.copyfile(brought[name], folder / name)
