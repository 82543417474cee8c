"""Tables of trees: exponents of growth, and every recorded tree."""

import pytest

from benchmarks.trees.artifacts import RECIPES
from benchmarks.trees.tables import growths, sections


def test_exponents_are_those_of_a_power():
    assert growths([(size, 3 * size**1.5) for size in (100.0, 200.0, 1000.0)]) == "1.50, 1.50"
    with pytest.raises(ZeroDivisionError):
        growths([(100.0, 1.0), (100.0, 2.0)])


def test_every_recorded_tree_has_its_rows():
    tables = "".join(sections().values())
    assert all(tables.count(f"| {name} | ") == 2 for name in RECIPES)
