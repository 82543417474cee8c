"""What a push does: the files of a folder become one commit of a Hub repository, all of them or none."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The files of one set of weights: `model.safetensors`, or shards and their index.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
# Those that tokenizers of transformers write, beside the folder `additional_chat_templates`.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_CONFIG, _CARD = "config.json", "README.md"


def path_in_repository(name: str, subfolder: str = "") -> str:
    """Return where a file goes: code to the root, the only place transformers looks for it; the rest to `subfolder`."""
    parent = subfolder.strip("/")
    return f"{parent}/{name}" if parent and not name.endswith(".py") else name


def upload_files(
    folder: Path,
    repo_id: str,
    *,
    names: Collection[str] | None = None,
    subfolder: str = "",
    card_mark: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload files in one commit, which also removes what they replace; make repository and branch where missing.

    Replaced are weights in other shards and, by a model over another tree, the tokenizer. A card that somebody wrote
    stays: a rendered one is left out then.

    Nothing is visible on the Hub before that commit, so a push that broke off is repeated as it was: large files that
    had arrived are not sent again, and if even the commit had, there is no second one.

    Args:
        folder: where the files are.
        repo_id: "user/name", or "name" for the user's own.
        names: which of them, relative to the folder; by default all.
        subfolder: where in the repository the model goes.
        card_mark: text by which a rendered README.md is told from a written one.
        commit_message: first line of the commit.
        commit_description: further lines.
        private: a new repository is private; None leaves that to the account's default.
        token: of the Hub; by default the one that `hf auth login` or the variable HF_TOKEN gave.
        revision: branch to commit to, made from main if there is none; also `refs/pr/N`.
        create_pr: open a pull request against main with the commit; repeated, the push opens another.

    Returns:
        The commit: its address as text, `oid`, and with create_pr `pr_url`.

    Raises:
        ValueError: private, but the repository exists and is public; a revision beside create_pr.
        HfHubHTTPError: what the Hub refuses; and another push arrived between this one's look at the repository and its
            commit, which together would be a mixture of both.

    """
    if create_pr and revision not in (None, "main"):
        raise ValueError("A pull request is opened against main: leave out create_pr or revision.")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave out private.")
    if revision not in (None, "main") and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    if names is None:
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    places = {path_in_repository(name, subfolder): folder / name for name in sorted(names)}
    replaced = _Replaced.find(api, repo_id, revision)
    stale = replaced.stale_weights(places, subfolder) + replaced.stale_tokenizer(places, subfolder)
    if card_mark is not None and replaced.has_written_card(places, subfolder, card_mark):
        logger.warning(f"README.md in {repo_id} was written by hand and stays; the rendered card is not uploaded.")
        del places[path_in_repository(_CARD, subfolder)]
    operations = [CommitOperationAdd(place, file) for place, file in places.items()]
    try:
        return api.create_commit(
            repo_id,
            [*operations, *map(CommitOperationDelete, stale)],
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=replaced.sha,
        )
    except HfHubHTTPError as error:
        if error.response.status_code != HTTPStatus.PRECONDITION_FAILED:
            raise
        said = f"Somebody else pushed to {repo_id} meanwhile, and nothing of this push is in it: push again."
        raise HfHubHTTPError(said, response=error.response) from error


@dataclass(frozen=True)
class _Replaced:
    """The commit that a push goes on top of, with the paths of its files."""

    api: HfApi
    repo_id: str
    sha: str | None
    names: Collection[str]

    @classmethod
    def find(cls, api: HfApi, repo_id: str, revision: str | None) -> Self:
        """Return what a branch points at now."""
        sha = api.repo_info(repo_id, revision=revision).sha
        return cls(api, repo_id, sha, api.list_repo_files(repo_id, revision=sha))

    def stale_weights(self, places: Collection[str], subfolder: str) -> list[str]:
        """Return weights in other shards than those pushed, which would be loaded instead of them."""
        if not any(_is_weights(place, subfolder) for place in places):
            return []
        return [place for place in self.names if _is_weights(place, subfolder) and place not in places]

    def stale_tokenizer(self, places: Mapping[str, Path], subfolder: str) -> list[str]:
        """Return files of the tokenizer of a model over another tree, which would give our model wrong tokens."""
        config = path_in_repository(_CONFIG, subfolder)
        theirs = {path_in_repository(name, subfolder) for name in TOKENIZER_FILES}.intersection(self.names)
        if not theirs or config not in places or config not in self.names:
            return []
        ours = _tree_sha256(places[config].read_text(encoding="utf-8"))
        return [] if ours == _tree_sha256(self._read(config)) else sorted(theirs.difference(places))

    def has_written_card(self, places: Mapping[str, Path], subfolder: str, mark: str) -> bool:
        """Tell whether a rendered README.md would replace one that has a text and not our mark."""
        card = path_in_repository(_CARD, subfolder)
        if card not in self.names or card not in places or mark not in places[card].read_text(encoding="utf-8"):
            return False
        text = self._read(card)
        return mark not in text and bool(REGEX_YAML_BLOCK.sub("", text, count=1).strip())

    def _read(self, place: str) -> str:
        file = self.api.hf_hub_download(self.repo_id, place, revision=self.sha)
        return Path(file).read_text(encoding="utf-8", errors="replace")


def _tree_sha256(config: str) -> str | None:
    try:
        return json.loads(config).get("tree_sha256")
    except (ValueError, AttributeError):  # no config of ours
        return None


def _is_weights(place: str, subfolder: str) -> bool:
    name = place.rsplit("/", 1)[-1]
    return _WEIGHTS.fullmatch(name) is not None and place == path_in_repository(name, subfolder)
