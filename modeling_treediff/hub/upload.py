"""Upload of files to a Hub repository in one commit.

`HfApi.upload_folder` is no substitute. With hf_xet installed, as huggingface_hub has it by default, it divides a commit
that failed several times, and a push that breaks off between the parts leaves new files beside old ones; it puts all
files below one folder, but transformers looks for code at the root alone; and its `delete_patterns` know names, not
whether a tokenizer is for another tree or a card was written by hand. So `create_commit` it is.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypedDict, Unpack

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers.utils import CONFIG_NAME, logging

from .card import CARD_NAME, MARK
from .records import is_weights
from .retired_code import retired_code

logger = logging.get_logger(__name__)

# What tokenizers of transformers write, beside the folder `additional_chat_templates`.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
Files = Mapping[str, Path | bytes]  # contents by name; a name has a slash where the file lies in a folder


class PushOptions(TypedDict, total=False):
    """Destination and commit message of a push.

    Attributes:
        subfolder: where in the repository model or tree go; code stays at the root, where transformers looks for it.
        commit_message: first line of the commit.
        private: a new repository is private; None leaves that to the account's default.
        token: of the Hub; by default the one that `hf auth login` or the variable HF_TOKEN gave.
        revision: branch to commit to, made from main if there is none; also `refs/pr/N`.
        create_pr: open a pull request against main with the commit; repeated, the push opens another.

    """

    subfolder: str
    commit_message: str | None
    private: bool | None
    token: bool | str | None
    revision: str | None
    create_pr: bool


def path_in_repository(name: str, subfolder: str = "") -> str:
    """Return where a file goes: code to the root, the only place transformers looks for it; the rest to `subfolder`."""
    parent = subfolder.strip("/")
    return f"{parent}/{name}" if parent and not name.endswith(".py") else name


def upload(files: Files, repo_id: str, **options: Unpack[PushOptions]) -> CommitInfo:
    """Upload files in one commit, which also removes what they replace; make repository and branch where missing.

    Replaced are weights in other shards, code of version 0.1.0 and, by a model over another tree, the tokenizer. A card
    that somebody wrote stays: a rendered one is left out then.

    Nothing is visible on the Hub before that commit, so a push that broke off is repeated as it was: large files that
    had arrived are not sent again, and if even the commit had, there is no second one.

    Args:
        files: their contents by name.
        repo_id: "user/name", or "name" for the user's own.
        options: see PushOptions.

    Returns:
        The commit: its address as text, `oid`, and with create_pr `pr_url`.

    Raises:
        ValueError: private, but the repository exists and is public; a revision beside create_pr.
        HfHubHTTPError: what the Hub refuses; and another push arrived between this one's look at the repository and its
            commit, which together would be a mixture of both.

    """
    revision, create_pr = options.get("revision"), options.get("create_pr", False)
    if create_pr and revision not in (None, "main"):
        raise ValueError("A pull request is opened against main: leave out create_pr or revision.")
    api = HfApi(token=options.get("token"))
    repo_id = _open_repository(api, repo_id, options.get("private"), revision)
    subfolder = options.get("subfolder", "")
    before = _Repository.find(api, repo_id, revision, subfolder)
    places = {path_in_repository(name, subfolder): files[name] for name in sorted(files)}
    if before.keeps_its_card(files):
        logger.warning(f"README.md in {repo_id} was written by hand and stays; the rendered card is not uploaded.")
        del places[path_in_repository(CARD_NAME, subfolder)]
    removed = {path_in_repository(name, subfolder) for name in before.replaced_by(files)}
    operations = [CommitOperationAdd(place, content) for place, content in places.items()]
    try:
        return api.create_commit(
            repo_id,
            [*operations, *map(CommitOperationDelete, sorted(removed))],
            commit_message=options.get("commit_message") or "Upload model",
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
        )
    except HfHubHTTPError as error:
        if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
            raise
        said = f"Somebody else pushed to {repo_id} meanwhile, and nothing of this push is in it: push again."
        raise HfHubHTTPError(said, response=error.response) from error


def _open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Make repository and branch where there are none; return the repository's full name."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave out private.")
    if revision not in (None, "main") and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


@dataclass(frozen=True)
class _Repository:
    """The commit that a push goes on top of, and the names of the files in its root and in the folder of the push."""

    api: HfApi
    repo_id: str
    sha: str | None
    subfolder: str
    root: Collection[str]
    names: Collection[str]

    @classmethod
    def find(cls, api: HfApi, repo_id: str, revision: str | None, subfolder: str) -> Self:
        """Return what a branch points at now."""
        sha = api.repo_info(repo_id, revision=revision).sha
        parent = f"{subfolder.strip('/')}/".lstrip("/")
        listed = api.list_repo_files(repo_id, revision=sha)
        names = {name.removeprefix(parent) for name in listed if name.startswith(parent)}
        return cls(api, repo_id, sha, subfolder, listed, names)

    def replaced_by(self, files: Files) -> set[str]:
        """Return the files to delete when `files` are uploaded: they would be loaded instead of or beside these."""
        stale: set[str] = set()
        if any(map(is_weights, files)):
            stale |= set(filter(is_weights, self.names))
        if any(name.endswith(".py") for name in files):
            stale |= retired_code(self.root)
        if self._is_for_another_tree(files):
            stale |= set(TOKENIZER_FILES).intersection(self.names)
        return stale.difference(files)

    def keeps_its_card(self, files: Files) -> bool:
        """Tell whether a rendered README.md would replace one that has a text and not our mark."""
        if CARD_NAME not in self.names or CARD_NAME not in files or MARK not in _text(files[CARD_NAME]):
            return False
        text = self._read(CARD_NAME)
        return MARK not in text and bool(REGEX_YAML_BLOCK.sub("", text, count=1).strip())

    def _is_for_another_tree(self, files: Files) -> bool:
        """Tell whether the model that is there is over another tree, or not ours, than the model in `files`."""
        if CONFIG_NAME not in files or CONFIG_NAME not in self.names:
            return False
        return _tree_sha256(_text(files[CONFIG_NAME])) != _tree_sha256(self._read(CONFIG_NAME))

    def _read(self, name: str) -> str:
        place = path_in_repository(name, self.subfolder)
        return _text(Path(self.api.hf_hub_download(self.repo_id, place, revision=self.sha)))


def _text(content: Path | bytes) -> str:
    raw = content if isinstance(content, bytes) else content.read_bytes()
    return raw.decode("utf-8", errors="replace")


def _tree_sha256(config: str) -> str | None:
    try:
        return json.loads(config).get("tree_sha256")
    except (ValueError, AttributeError):  # no config of ours
        return None
