"""Where the embedded sample lies: the tree `sotu-8k`, its tokenizer, and the text that it was built from."""

from pathlib import Path

from .sources import check_source

SAMPLE_NAME = "sotu-8k"
FLAT = "flat"  # instead of a tree: all tokens below the root
ARTIFACTS = "tree_artifacts"
TRAINING_TEXT, VALIDATION_TEXT = "train.txt.xz", "validation.txt.xz"


def sample_folder() -> Path:
    """Return the sample's folder: in the package where it is installed from a wheel, in a clone beside the package."""
    package = Path(__file__).parents[1]
    folders = [place / ARTIFACTS / SAMPLE_NAME for place in (package, package.parent)]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def find_tree(name: str) -> str:
    """Return the folder of a tree, or its name on the Hub; `sotu-8k` is the sample's, and `flat` stays as it is.

    Raises:
        OSError: as of `check_source`.
        ValueError: a ready tree of the repository, which an installed package does not have.

    """
    if name == SAMPLE_NAME and not Path(name).exists():
        return str(sample_folder())
    if Path(name).parts[:1] == (ARTIFACTS,) and not Path(name).exists():
        raise ValueError(
            f"There is no {name} here: ready trees other than {SAMPLE_NAME} lie in {ARTIFACTS}/ of a clone of the "
            "modeling_treediff repository; give the path to one there."
        )
    return name if name == FLAT else check_source(name, "tree")
