"""Selection of the files that a push uploads: those of a model or a tree, by a closed list of names."""

from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.conversion.report import REPORT_NAME
from modeling_treediff.files.sources import refuse_adapter
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer
from modeling_treediff.vocabulary_tree import TREE_CONFIG_NAME, TREE_WEIGHTS_NAME

from .card import CARD_NAME, renewed_card
from .records import CURVES_NAME, RECORD_NAMES, loaded_weights
from .retired_code import retired_code
from .upload import TOKENIZER_FILES, Files

CODE_NAME = "modeling_treediff.py"
_OWN = Path(__file__).parents[1] / CODE_NAME
SHIPPED = {CODE_NAME, *(Path(file).name for file in get_relative_import_files(str(_OWN)))}
# What may go, beside code and weights: a closed list, so that nothing that merely lies there does.
NAMES = (
    *(CONFIG_NAME, "generation_config.json", CARD_NAME, "LICENSE", "LICENSE.tokenizer"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *(TREE_WEIGHTS_NAME, TREE_CONFIG_NAME, *TOKENIZER_FILES, "additional_chat_templates/*.jinja"),
    *(*RECORD_NAMES, REPORT_NAME, "metrics.jsonl", CURVES_NAME),  # a push does not need what training needs
)


def contents(folder: Path, repo_id: str) -> Files:
    """Return the files of a folder that a push uploads, by name; a rendered card is rendered for the repository.

    Raises:
        OSError: no model and no tree is there, or files of it are missing.
        ValueError: what is there is an adapter alone, is damaged, has no code beside it, or a tokenizer that is
            not the tree's.

    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that a model or a tree was saved to.")
    has_model = (folder / CONFIG_NAME).is_file()
    if not has_model:
        refuse_adapter(str(folder))
    model = TreeDiffForDiffusionLM.from_pretrained(folder) if has_model else None
    tree = model.tree if model is not None else VocabularyTree.from_pretrained(folder)
    if (folder / "tokenizer_config.json").is_file():
        check_tokenizer(tree, load_tokenizer(str(folder)))
    files: dict[str, Path | bytes] = dict(_listed(folder))
    if model is not None:
        files |= _code(folder)
        if card := renewed_card(model, folder, repository=repo_id):
            files[CARD_NAME] = card.encode()
    return files


def _listed(folder: Path) -> dict[str, Path]:
    files = {file for pattern in NAMES for file in folder.glob(pattern)}
    files |= {folder / name for name in loaded_weights(folder)}
    files = {file for file in files if _no_link(file, folder).is_file()}
    return {file.relative_to(folder).as_posix(): file for file in files}


def _code(folder: Path) -> dict[str, Path]:
    """Return the model's own modules."""
    if not (folder / CODE_NAME).is_file():
        raise ValueError(
            f"{folder} holds no {CODE_NAME}: load the model and save it again with hub.save_checkpoint, which does."
        )
    if retired_code({file.name for file in folder.glob("*.py")}):
        raise ValueError(
            f"{folder} was saved by version 0.1.0: load the model and save it again with hub.save_checkpoint, so that "
            "code and card are of one version."
        )
    modules = [folder / CODE_NAME, *map(Path, get_relative_import_files(str(folder / CODE_NAME)))]
    if others := sorted({file.name for file in modules} - SHIPPED):
        raise ValueError(f"{folder / others[0]} is no code of this package, and is not pushed: save the model again.")
    return {file.name: _no_link(file, folder) for file in modules}


def _no_link(file: Path, folder: Path) -> Path:
    """Return a file of a folder; ValueError if it, or a folder on the way, is a link."""
    for path in (file, *(parent for parent in file.parents if folder in parent.parents)):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link: what it points to may be no part of the model. Put the file there itself."
            )
    return file
