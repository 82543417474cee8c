"""Upload a saved model, or a tree, to a repository of the Hugging Face Hub, in one commit.

    python examples/push_to_hub.py MODEL someone/a-model --private --dry-run
    python examples/push_to_hub.py MODEL someone/a-model --private

The folder must load first. Model, tree, tokenizer, code, card and the records of training and evaluation go, by a
closed list of names; all else stays. A README.md on the Hub that somebody wrote is not replaced by a rendered card. A
push that broke off is repeated by the same command. Who you are, `hf auth login` or the variable HF_TOKEN says.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub.errors import HTTPError  # of whichever HTTP library it uses

from modeling_treediff.hub import preview_push, push


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what save_checkpoint, train.py or build_tree.py wrote")
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
    if options.dry_run:
        print(preview_push(options.folder, options.repository, options.subfolder))
        return
    commit = push(
        options.folder,
        options.repository,
        subfolder=options.subfolder,
        commit_message=options.message,
        private=options.private or None,
        revision=options.revision,
        create_pr=options.create_pr,
    )
    print(commit.pr_url or commit)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError, HTTPError) as error:
        sys.exit(f"push_to_hub.py: error: {' '.join(str(error).split())}")
