"""Pushing a model or a tree to the Hub, in one commit."""

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

from huggingface_hub import CommitInfo
from transformers import PreTrainedTokenizerBase

from modeling_treediff.files.fingerprints import file_sha256
from modeling_treediff.modeling_treediff import TreeDiffPreTrainedModel
from modeling_treediff.vocabulary_tree import VocabularyTree

from .card import CARD_NAME, renewed_card
from .contents import contents
from .saving import save_checkpoint
from .upload import PushOptions, path_in_repository, upload

CARD_LINES = 24  # shown of a card


def push(
    model_or_folder: TreeDiffPreTrainedModel | str | os.PathLike[str],
    repo_id: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_shard_size: int | str = "50GB",
    **options: Unpack[PushOptions],
) -> CommitInfo:
    """Upload all that `save_checkpoint` writes, or what of it lies in a folder, to a Hub repository, in one commit.

    A push that broke off leaves the repository as it was, and is repeated by calling this again. A README.md of the
    repository's that was not rendered here stays. Of several processes, call it in one alone.

    Args:
        model_or_folder: a model; or a folder that a model or a tree was saved to. A folder must load, and of its files
            those that make the model or the tree go, by a closed list of names.
        repo_id: "user/name", or "name" for the user's own; made if it does not exist.
        tokenizer: goes with the model, with a mask token; a folder has its own.
        max_shard_size: larger weights of a model are divided into several files.
        options: `subfolder`, `commit_message`, `private`, `token`, `revision`, `create_pr`: see PushOptions.

    Returns:
        The commit: its address as text, `oid`, and with create_pr `pr_url`.

    Raises:
        OSError: the folder holds no model and no tree.
        ValueError: the tokenizer is not the tree's, the folder is damaged, or as in `upload`.
        HfHubHTTPError: what the Hub refuses, and that somebody else pushed meanwhile.

    """
    if not isinstance(model_or_folder, str | os.PathLike):
        with TemporaryDirectory() as place:
            folder = Path(place)
            save_checkpoint(model_or_folder, folder, tokenizer, max_shard_size=max_shard_size)
            files: dict[str, Path | bytes] = dict(_all_in(folder))
            if CARD_NAME in files and (card := renewed_card(model_or_folder, folder, repository=repo_id)):
                files[CARD_NAME] = card.encode()
            return upload(files, repo_id, **options)
    if tokenizer is not None:
        raise ValueError("A folder goes with the tokenizer in it: leave out the tokenizer, or save it there first.")
    return upload(contents(Path(model_or_folder), repo_id), repo_id, **options)


def push_tree(tree: VocabularyTree, repo_id: str, **options: Unpack[PushOptions]) -> CommitInfo:
    """Upload the files of `tree.save_pretrained` to a Hub repository, in one commit; arguments as in `push`."""
    with TemporaryDirectory() as folder:
        tree.save_pretrained(folder)
        named: PushOptions = {**options, "commit_message": options.get("commit_message") or "Upload vocabulary tree"}
        return upload(_all_in(Path(folder)), repo_id, **named)


def preview_push(folder: str | os.PathLike[str], repo_id: str, subfolder: str = "") -> str:
    """Return a text that lists what `push` would send of a folder with its hashes, and the beginning of the card.

    Nothing is sent or asked.

    Raises:
        OSError: the folder holds no model and no tree.
        ValueError: it is damaged, or holds no code or another tree's tokenizer.

    """
    files = contents(Path(folder), repo_id)
    facts = {path_in_repository(name, subfolder): _size_and_sha256(file) for name, file in files.items()}
    width = max(map(len, facts))
    lines = [f"Would go to {repo_id}:"]
    lines += [f"  {place:<{width}}  {size:>14,} bytes  sha256 {sha}" for place, (size, sha) in sorted(facts.items())]
    lines += [f"  {f'{len(facts)} files':<{width}}  {sum(size for size, _ in facts.values()):>14,} bytes"]
    if card := files.get(CARD_NAME):
        text = card if isinstance(card, bytes) else card.read_bytes()
        card_lines = text.decode("utf-8", errors="replace").splitlines()
        lines += ["", f"The card, {min(CARD_LINES, len(card_lines))} of {len(card_lines)} lines:", ""]
        lines += card_lines[:CARD_LINES]
    return "\n".join(lines)


def _size_and_sha256(file: Path | bytes) -> tuple[int, str]:
    if isinstance(file, bytes):
        return len(file), hashlib.sha256(file).hexdigest()
    return file.stat().st_size, file_sha256(file)


def _all_in(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
