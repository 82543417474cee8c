"""A hook of mkdocs: files outside docs/ become part of the site, and links lead to where they lead in the repository.

In the site a file has the path that it has in the repository, less the leading `docs/`; README.md is the first page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
OUTSIDE = (
    "*.md",
    "benchmarks/*.md",
    "benchmarks/figures/*.png",
    "tree_artifacts/**/README.md",
    "tree_artifacts/**/LICENSE*",
    "CITATION.cff",
    "examples/*.ipynb",
)
EXCEPT = ("model_card.md",)  # a template
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s#]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie outside docs/."""
    found = {file.relative_to(REPOSITORY).as_posix() for pattern in OUTSIDE for file in REPOSITORY.glob(pattern)}
    for path in sorted(found.difference(EXCEPT)):
        files.append(File.generated(config, path, abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the links of a page, paths in the repository, into paths in the site; a folder's is that of its README."""
    here = page.file.src_uri
    folder = posixpath.dirname(here if page.file.generated_by else f"docs/{here}")

    def in_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        if (REPOSITORY / target).is_dir():
            target = f"{target}/README.md"
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")

    return LINK.sub(in_the_site, markdown)
