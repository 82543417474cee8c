"""A vocabulary tree as a few lines of text, for places that show nothing but text."""

import json
from collections.abc import Callable, Iterator

import torch

from modeling_treediff.text.token_kinds import printable
from modeling_treediff.vocabulary_tree import VocabularyTree

BRANCHES, TOKENS = 6, 8  # shown of a node's children, and of the tokens below it
LEVELS = 2  # of internal nodes, below the root


def sketch_tree(tree: VocabularyTree, text_of: Callable[[int], str] | None = None) -> str:
    """Draw the root, its first children and theirs, each with some of the tokens below it.

    Args:
        tree: any tree.
        text_of: text of a token id; without it, ids are shown. Parts of characters and control characters are left out.

    """
    lines = _node_lines(tree, tree.root_id, text_of)
    return "\n".join([f"root, the mask: {next(lines)}", *lines])


def _node_lines(tree: VocabularyTree, node: int, text_of: Callable[[int], str] | None) -> Iterator[str]:
    """Yield what is below a node: first the tokens, in one line, then a line or more for each child shown."""
    level = int(tree.depth[node])
    below = torch.nonzero(tree.ancestors[:, level] == node)[:, 0].tolist()
    if level == min(LEVELS, tree.tree_depth - 1):
        yield f"{len(below):,}: {_some_tokens([int(tree.representative[node]), *below], text_of)}"
        return
    yield f"{len(below):,}"
    children = [child for child in tree.children[node - tree.vocab_size].tolist() if child >= 0]
    more = len(children) - BRANCHES
    for child in children[:BRANCHES]:
        last = child == children[-1]
        first, *others = _node_lines(tree, child, text_of)
        yield f"{'└' if last else '├'}── {first}"
        yield from (f"{' ' if last else '│'}   {line}" for line in others)
    if more > 0:
        yield f"└── and {more:,} more"


def _some_tokens(token_ids: list[int], text_of: Callable[[int], str] | None) -> str:
    """Return the first tokens in quotes, each once; those without a text of their own are passed over."""
    distinct = list(dict.fromkeys(token_ids))
    if text_of is None:
        shown = [str(token) for token in distinct[:TOKENS]]
    else:
        texts = (text_of(token) for token in distinct)
        readable = filter(_is_readable, texts)
        shown = [
            printable(json.dumps(text, ensure_ascii=False)) for text, _ in zip(readable, range(TOKENS), strict=False)
        ]
    return " ".join([*shown, *(["…"] if len(distinct) > len(shown) else [])])


def _is_readable(text: str) -> bool:
    return any(map(str.isprintable, text)) and "\N{REPLACEMENT CHARACTER}" not in text
