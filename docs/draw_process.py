"""Draw docs/images/process.png: a text that descends a small tree, under two schedules of the package.

python docs/draw_process.py [--output FILE]
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_treediff import LevelSchedule, TreeDiffConfig, VocabularyTree
from modeling_treediff.files.atomic_files import write_atomically

PICTURE = Path(__file__).parent / "images" / "process.png"
# Three levels below the root: kind of word, part of speech, word.
TREE = {
    "function": {"article": ["the", "a"], "preposition": ["on", "in"]},
    "content": {"noun": ["cat", "dog", "mat"], "verb": ["sat", "slept"], "adjective": ["old", "red"]},
}
TEXT = "the old cat sat on a red mat".split()
SCHEDULES = ("sequential", "binomial")
TIMES = [1, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6, 0]
COLOURS = ["#d9d9d9", "#9ecae1", "#fdd0a2", "#ffffff"]  # by depth, the root first
DEPTHS = ["root (mask)", "depth 1", "depth 2", "token"]
GREY = "#737373"


def make_tree() -> tuple[VocabularyTree, list[str]]:
    """Return the tree and the name of each of its nodes."""
    paths, words = [], []
    for kind, parts in enumerate(TREE.values()):
        for part, leaves in enumerate(parts.values()):
            paths += [[kind, part, slot] for slot in range(len(leaves))]
            words += leaves
    parts_of_speech = [part for parts in TREE.values() for part in parts]
    return VocabularyTree.from_paths(torch.tensor(paths), 3), [*words, "?", *TREE, *parts_of_speech]


def make_schedule(tree: VocabularyTree, name: str) -> LevelSchedule:
    """Return a schedule of the tree's levels."""
    return LevelSchedule.from_config(TreeDiffConfig.from_tree(tree, schedule=name))


def descend(tree: VocabularyTree, schedule: LevelSchedule, tokens: torch.Tensor, seed: int) -> torch.Tensor:
    """(T,) tokens -> (times, T) nodes on the way from the root to them, drawn from the exact reverse process."""
    shape = (len(tokens), tree.tree_depth)
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    reached_TD = schedule.hitting_times(torch.zeros(len(tokens), dtype=torch.long), uniform)
    return torch.stack([tree.ancestors[tokens, (reached_TD >= time).sum(-1)] for time in TIMES])


def draw_tree(axes: Axes, tree: VocabularyTree, names: list[str]) -> None:
    """Draw the tree: every node in the middle above its tokens."""
    places: dict[int, tuple[float, int]] = {}
    for node in range(tree.num_nodes):
        depth = int(tree.depth[node])
        below = (tree.ancestors[:, depth] == node).nonzero().float()
        places[node] = (float(below.mean()), -depth)
    for node, place in places.items():
        if node != tree.root_id:
            above = places[int(tree.parent[node])]
            axes.plot([above[0], place[0]], [above[1], place[1]], color=GREY, linewidth=0.8, zorder=1)
    for node, place in places.items():
        style = {"boxstyle": "round,pad=0.3", "facecolor": COLOURS[-place[1]], "edgecolor": GREY, "linewidth": 0.8}
        axes.text(*place, names[node], ha="center", va="center", bbox=style, zorder=2)
    axes.set(xlim=(-0.7, tree.vocab_size - 0.3), ylim=(-tree.tree_depth - 0.4, 0.4))
    axes.set_title("The tree of a vocabulary of eleven words", loc="left")
    axes.axis("off")


def draw_text(axes: Axes, tree: VocabularyTree, names: list[str], nodes: torch.Tensor) -> None:
    """Draw the text at each time, a row each; time runs from the root at the top to the tokens."""
    for row, line in enumerate(nodes.tolist()):
        for column, node in enumerate(line):
            colour = COLOURS[int(tree.depth[node])]
            axes.fill_between([column, column + 1], row, row + 1, facecolor=colour, edgecolor="white", linewidth=2)
            axes.text(column + 0.5, row + 0.5, names[node], ha="center", va="center", fontsize=8)
    labels = ["1", "5/6", "2/3", "1/2", "1/3", "1/6", "0"]
    axes.set(xlim=(0, nodes.shape[1]), ylim=(len(nodes), 0), xticks=[], ylabel="time t")
    axes.set_yticks([row + 0.5 for row in range(len(nodes))], labels)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def draw_shares(axes: Axes, schedule: LevelSchedule) -> None:
    """Draw the share of positions at each depth over time, stacked."""
    times = torch.linspace(0, 1, 301, dtype=torch.float64)
    alpha = torch.nn.functional.pad(schedule.alpha(times), (0, 1))
    shares = (alpha[:, :-1] - alpha[:, 1:]).T
    axes.stackplot(times, list(shares.numpy()), colors=COLOURS, labels=DEPTHS, edgecolor=GREY, linewidth=0.8)
    axes.set(xlim=(1, 0), ylim=(0, 1), xlabel="time t", ylabel="share of positions")


def main() -> None:
    """Draw tree, texts and shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG (default %(default)s)")
    options = parser.parse_args()
    tree, names = make_tree()
    tokens = torch.tensor([names.index(word) for word in TEXT])
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[1.3, 1.7, 1.2])
    draw_tree(figure.add_subplot(grid[0, :]), tree, names)
    for column, name in enumerate(SCHEDULES):
        schedule = make_schedule(tree, name)
        axes = figure.add_subplot(grid[1, column])
        axes.set_title(f"Generation, {name}", loc="left")
        draw_text(axes, tree, names, descend(tree, schedule, tokens, seed=2))
        axes = figure.add_subplot(grid[2, column])
        draw_shares(axes, schedule)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(DEPTHS), frameon=False)
    write_atomically(options.output, lambda path: figure.savefig(path, format="png", dpi=110))


if __name__ == "__main__":
    main()
