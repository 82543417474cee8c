"""Names of models, trees and texts: a file or folder on this machine, or a repository of the Hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library it uses
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from transformers.utils import find_adapter_config_file

SECONDS_TO_ANSWER = 10.0  # for the Hub


def public_name(source: str) -> str:
    """Return a name to publish: of a local file or folder its last part alone, a Hub id as it is.

    Where it lies says who works on this machine, and on what; its hash, where a record has one, says what it was.
    """
    path = Path(source)
    local = path.is_absolute() or path.parts[:1] in (("~",), ("..",)) or path.exists()
    return path.expanduser().resolve().name if local else source


def check_source(name: str, what: str, repo_type: str = "model") -> str:
    """Return the name of a folder or of a Hub repository as it is; the Hub is asked once, and not for what is cached.

    Args:
        name: what a user typed.
        what: the thing that it should name, such as "model", for the error.
        repo_type: of a repository: "model" or "dataset".

    Raises:
        OSError: neither a folder nor a repository of this name can be found.

    """
    if Path(name).is_dir():
        return name
    if repo_type == "dataset":
        missing = f"There is no file, folder or Hub dataset {name}: name a text or a table, or user/name on the Hub"
    else:
        missing = f"There is no folder or Hub repository {name}: name the folder of a {what}, or user/name on the Hub"
    try:
        validate_repo_id(name)
        if not _is_cached(name, repo_type):
            HfApi().repo_info(name, repo_type=repo_type, timeout=SECONDS_TO_ANSWER)
    except GatedRepoError:
        return name  # it is there; whoever loads it is told how to ask for access
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise OSError(f"{missing}.") from error
    except HfHubHTTPError:
        return name  # the Hub has a trouble of its own, which loading tells
    except (HTTPError, OSError) as error:
        raise OSError(f"{missing} (which cannot be reached: only what was downloaded before is found).") from error
    return name


def refuse_adapter(source: str, **hub_kwargs: Any) -> None:
    """Raise ValueError if what a folder or repository holds is an adapter; call it where no whole model was found."""
    if find_adapter_config_file(source, **hub_kwargs) is not None:
        raise ValueError(
            f"{source} is an adapter, not a whole model: merge it into its model (docs/how_to/training.md), name that."
        )


def _is_cached(name: str, repo_type: str) -> bool:
    """Tell whether something of a repository was downloaded before, by the Hub's library or by `datasets`."""
    folders = [Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=repo_type)]
    if repo_type == "dataset":
        from datasets.config import HF_DATASETS_CACHE

        folders.append(Path(HF_DATASETS_CACHE) / name.replace("/", "___"))
    return any(folder.is_dir() for folder in folders)
