"""Upload a saved model, or a tree, to a repository of the Hugging Face Hub, in one commit.

The folder must load first. Model, tree, tokenizer, code, card and the records of training and evaluation go, by a
closed list of names; all else stays. A README.md on the Hub that somebody wrote is not replaced by a rendered card. A
push that broke off is repeated by the same command. Log in with `hf auth login`, or set HF_TOKEN.
"""

from dataclasses import dataclass
from pathlib import Path

from .fields import operand, option

EXAMPLES = """
  treediff push my_model someone/a-model --private --dry-run
  treediff push my_model someone/a-model --private
"""


@dataclass(frozen=True)
class Upload:
    """What is uploaded, and to which repository."""

    folder: Path = operand("what save_checkpoint, `treediff train` or `treediff build-tree` wrote")
    repository: str = operand("user/name, or name for your own; made if it does not exist")
    private: bool = option(False, "make the repository private")
    revision: str | None = option(None, "branch to commit to, made if it does not exist (default: main)")
    create_pr: bool = option(False, "open a pull request instead of committing to main")
    subfolder: str = option("", "folder of the repository for the model; code stays outside")
    message: str | None = option(None, "commit message", is_text=True)
    dry_run: bool = option(False, "show what would go, and send nothing")


OPTIONS = (Upload,)
