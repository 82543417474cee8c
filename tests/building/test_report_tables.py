"""Tables of a report."""

from modeling_treediff.building.balanced import random_tree
from modeling_treediff.building.report_tables import report_tables
from modeling_treediff.building.tree_report import report_tree


def test_provenance_cannot_control_a_terminal():
    tree = random_tree(10, 4, 2, metadata={"source": "\x1b[31mred\x07"})
    shown = "".join(cell for table in report_tables(report_tree(tree)) for row in table.rows for cell in row)
    assert "\x1b" not in shown and "\x07" not in shown and "<U+001B>[31mred" in shown
