"""Upload a saved model, or a tree, to a repository of the Hugging Face Hub, in one commit.

    python examples/push_to_hub.py MODEL someone/a-model --private --dry-run
    python examples/push_to_hub.py MODEL someone/a-model --private

The folder must load first. Model, tree, tokenizer, code, card and the records of training and evaluation go, by a
closed list of names; all else stays. A README.md on the Hub that somebody wrote is not replaced by a rendered card. A
push that broke off is repeated by the same command. Who you are, `hf auth login` or the variable HF_TOKEN says.
"""

import argparse
import json
import sys
from pathlib import Path

from huggingface_hub.errors import HTTPError  # of whichever HTTP library it uses
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_relative_import_files

from modeling_treediff import TreeDiffForDiffusionLM, VocabularyTree
from modeling_treediff.conversion.report import REPORT_NAME
from modeling_treediff.hub_upload import TOKENIZER_FILES, path_in_repository, upload_files
from modeling_treediff.model_card_treediff import CARD_NAME, MARK, TEMPLATE_NAME
from modeling_treediff.model_records_treediff import RECORD_NAMES
from modeling_treediff.text.tree_tokenizer import check_tokenizer
from modeling_treediff.vocabulary_tree import TREE_CONFIG_NAME, TREE_WEIGHTS_NAME

CARD_LINES = 24
# What may go, beside the code: a closed list, so that nothing that merely lies there does.
NAMES = (
    *("config.json", "generation_config.json", CARD_NAME, TEMPLATE_NAME, "LICENSE", "LICENSE.tokenizer"),
    *("model*.safetensors", "model*.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *(TREE_WEIGHTS_NAME, TREE_CONFIG_NAME, *TOKENIZER_FILES, "additional_chat_templates/*.jinja"),
    *(*RECORD_NAMES, REPORT_NAME, "metrics.jsonl", "curves.png"),  # a push does not need what training needs
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what save_pretrained, train.py or build_tree.py wrote")
    parser.add_argument("repository", help="user/name, or name for your own; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to commit to, made if it does not exist; default: main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing to main")
    parser.add_argument("--subfolder", default="", help="folder of the repository for the model; code stays outside")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and send nothing")
    return parser.parse_args()


def main() -> None:
    """Load, list, and upload or show."""
    options = parse_arguments()
    check_loads(options.folder)
    names = files_to_push(options.folder)
    if options.dry_run:
        show(options.folder, names, options.repository, options.subfolder)
        return
    commit = upload_files(
        options.folder,
        options.repository,
        names=names,
        subfolder=options.subfolder,
        card_mark=MARK,
        commit_message=options.message,
        private=options.private or None,
        revision=options.revision,
        create_pr=options.create_pr,
    )
    print(commit.pr_url or commit)


def check_loads(folder: Path) -> None:
    """Raise an error unless a model or a tree loads from the folder, and the tokenizer, if there is one, is its."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that a model or a tree was saved to.")
    if (folder / "config.json").is_file():
        tree = TreeDiffForDiffusionLM.from_pretrained(folder).tree
        for name in (CARD_NAME, "modeling_treediff.py"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no {name}: load the model and save it again, which writes it.")
    else:
        tree = VocabularyTree.from_pretrained(folder)
    if (folder / "tokenizer_config.json").is_file():
        check_tokenizer(tree, AutoTokenizer.from_pretrained(folder))


def files_to_push(folder: Path) -> list[str]:
    """Return the folder's own files that make a model or a tree, with the code that its config names."""
    files = {file for pattern in NAMES for file in folder.glob(pattern) if file.is_file()} | shipped_code(folder)
    return sorted(file.relative_to(folder).as_posix() for file in files)


def shipped_code(folder: Path) -> set[Path]:
    """Return the modules that `auto_map` in config.json names, and those that they import."""
    if not (config := folder / "config.json").is_file():
        return set()
    classes = json.loads(config.read_text(encoding="utf-8")).get("auto_map", {}).values()
    entries = {folder / f"{name.split('.')[0]}.py" for name in classes}
    return entries | {Path(file) for entry in entries for file in get_relative_import_files(entry)}


def show(folder: Path, names: list[str], repository: str, subfolder: str) -> None:
    """Print places and sizes of the files, and the beginning of the card."""
    sizes = {path_in_repository(name, subfolder): (folder / name).stat().st_size for name in names}
    width = max(map(len, sizes))
    print(f"Would go to {repository}:")
    for place, size in sizes.items():
        print(f"  {place:<{width}}  {size:>14,} bytes")
    print(f"  {f'{len(sizes)} files':<{width}}  {sum(sizes.values()):>14,} bytes")
    if CARD_NAME in names:
        lines = (folder / CARD_NAME).read_text(encoding="utf-8").splitlines()
        print(f"\nThe card, {min(CARD_LINES, len(lines))} of {len(lines)} lines:\n")
        print("\n".join(lines[:CARD_LINES]))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError, HTTPError) as error:
        sys.exit(f"push_to_hub.py: error: {' '.join(str(error).split())}")
