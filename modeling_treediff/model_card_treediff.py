"""The model card: `model_card.md` filled in with facts of the model and with what the records beside it say.

The template holds all of the text; this file only formats values. What no record of the very weights backs reads
"not measured", what nobody said "not stated".
"""

import shutil
from pathlib import Path
from string import Template
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

from modeling_treediff import __version__

from .atomic_files import write_atomically
from .card_metadata_treediff import describe
from .card_values_treediff import values_of_evaluation, values_of_the_model, values_of_the_tree, values_of_training
from .model_records_treediff import EVALUATION_RECORD, RECORD_NAMES, TRAINING_RECORD, find_records

logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
TEMPLATE_NAME = "model_card.md"
CARD_FILES = (TEMPLATE_NAME, *RECORD_NAMES)  # what a card is made from, beside the model
TEMPLATE_MARK = b"$mark"  # where MARK goes
MARK = "<!-- rendered from model_card.md: without this line, saving leaves the file as it is -->"


def write_model_card(model: Any, folder: Path, target: Path | None = None) -> None:  # noqa: ANN401
    """Write README.md and the template it was made from into a folder that holds a saved model that generates.

    A README.md without our mark is its user's own and stays, and so does a template that is there, edited or not.
    Records of the same weights come along from where the model was loaded from. What cannot be rendered is told in a
    warning: no model is lost for its card.

    Args:
        model: any of our models.
        folder: holds the weights.
        target: the folder that the files of `folder` are about to update; by default itself.

    """
    target = target or folder
    if not model.can_generate():
        return
    if (template := _find_template(model, target)) is None:
        logger.warning_once(f"No model card is written: there is no {TEMPLATE_NAME} where the model came from.")
        return
    brought = {name: model._card_files[name] for name in RECORD_NAMES if name in model._card_files}
    for name in find_records(folder, brought):
        if not (target / name).exists():
            shutil.copyfile(brought[name], folder / name)
    try:
        text = template.read_text(encoding="utf-8")
        if not (target / TEMPLATE_NAME).exists():
            write_atomically(folder / TEMPLATE_NAME, lambda file: file.write_text(text, encoding="utf-8"))
        if not _is_own(target / CARD_NAME):
            card = _render(model, text, folder, target)
            write_atomically(folder / CARD_NAME, lambda file: file.write_text(card, encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 -- tokenizers raises just that; records and templates are anybody's
        logger.warning(f"No new model card is written to {target}: {type(error).__name__}, {error}.")


def render_model_card(model: Any, folder: Path) -> str:  # noqa: ANN401
    """Return the card, README.md's whole text with its YAML metadata, of a model saved in a folder.

    Raises:
        FileNotFoundError: neither the package nor the checkpoint has the template.

    """
    if (template := _find_template(model, folder)) is None:
        raise FileNotFoundError(f"There is no {TEMPLATE_NAME} to render a card from; copy it into {folder}.")
    return _render(model, template.read_text(encoding="utf-8"), folder, folder)


def _find_template(model: Any, folder: Path) -> Path | None:  # noqa: ANN401
    """Return the template: the folder's own, else the package's, else that of the checkpoint the model came from."""
    here = Path(__file__).parent
    places = [folder / TEMPLATE_NAME, here / TEMPLATE_NAME, here.parent / TEMPLATE_NAME]
    places.append(model._card_files.get(TEMPLATE_NAME, places[0]))
    return next((place for place in places if place.is_file() and TEMPLATE_MARK in place.read_bytes()), None)


def _is_own(readme: Path) -> bool:
    """Tell whether there is a README.md that was not rendered here."""
    return readme.exists() and not (readme.is_file() and MARK.encode() in readme.read_bytes())


def _render(model: Any, template: str, folder: Path, target: Path) -> str:  # noqa: ANN401
    """Fill in a template; of files with one name, those in `folder` count before those in `target`."""

    def place(name: str) -> Path:
        return folder / name if (folder / name).exists() else target / name

    records = find_records(folder, {name: place(name) for name in RECORD_NAMES})
    training, evaluation = (records.get(name, {}) for name in (TRAINING_RECORD, EVALUATION_RECORD))
    values = (
        values_of_the_model(model)
        | values_of_the_tree(model.tree, place("tokenizer.json"))
        | values_of_training(training)
        | values_of_evaluation(evaluation)
    )
    card = ModelCard(template)
    card.text = Template(card.text).substitute(values, mark=MARK, package_version=__version__)
    describe(cast(ModelCardData, card.data), f"treediff-{values['parameters_rounded']}", training, evaluation)
    return str(card)
