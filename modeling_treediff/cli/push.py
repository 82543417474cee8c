"""`treediff push`: uploads a folder's model or tree to the Hub, or lists what would be uploaded."""

from huggingface_hub.errors import HTTPError  # of whichever HTTP library it uses

from modeling_treediff.hub import preview_push, push

from .options.push import Upload


def run(upload: Upload) -> None:
    """Load, list, and upload or show."""
    if upload.dry_run:
        print(preview_push(upload.folder, upload.repository, upload.subfolder))
        return
    try:
        commit = push(
            upload.folder,
            upload.repository,
            subfolder=upload.subfolder,
            commit_message=upload.message,
            private=upload.private or None,
            revision=upload.revision,
            create_pr=upload.create_pr,
        )
    except HTTPError as error:
        raise ConnectionError(str(error)) from error
    print(commit.pr_url or commit)
