"""Names of models, trees and texts: a file or folder on this machine, or a repository of the Hub."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id


def public_name(source: str) -> str:
    """Return a name to publish: of a local file or folder its last part alone, a Hub id as it is.

    Where it lies says who works on this machine, and on what; its hash, where a record has one, says what it was.
    """
    path = Path(source)
    local = path.is_absolute() or path.parts[:1] in (("~",), ("..",)) or path.exists()
    return path.expanduser().resolve().name if local else source


def check_source(name: str, what: str) -> str:
    """Return the name of a folder or of a Hub repository as it is.

    Args:
        name: what a user typed.
        what: the thing that it should name, such as "model", for the error.

    Raises:
        OSError: no folder is there, and the name is none that the Hub would take.

    """
    if not Path(name).is_dir():
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            said = f"There is no folder {name}: name the folder of a {what}, or user/name on the Hub."
            raise OSError(said) from error
    return name
