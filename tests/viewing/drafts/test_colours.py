"""Colours of levels."""

from modeling_treediff.viewing.drafts.colours import depth_colour


def test_levels_have_colours_of_their_own():
    for tree_depth in (1, 2, 3, 6):
        assert len({depth_colour(depth, tree_depth) for depth in range(tree_depth + 1)}) == tree_depth + 1
    assert [depth_colour(depth, 20) for depth in (1, 19)] == [depth_colour(depth, 6) for depth in (1, 5)]
