"""`treediff push`: uploads what a folder holds to the Hub, or shows what would go."""

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
