"""The layout of the house: a file is one noun of bounded size, imports flow one way, tests have their module's name."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

import pytest
from helpers.processes import REPOSITORY, TESTS

PACKAGE = REPOSITORY / "modeling_treediff"
PACKAGES = ("modeling_treediff", "benchmarks")
LONGEST_FILE, MEDIAN_FILE, LONG_FUNCTION = 450, 200, 30  # lines
# Modules that no test is named after. Each is used by tests of others; the list may only shrink.
WITHOUT_NAMESAKE: set[str] = set()
# The import by which transformers finds all of a checkpoint's code, for type checkers alone.
NEVER_RUN = {"modeling_treediff.configuration_treediff": "modeling_treediff.modeling_treediff"}


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (REPOSITORY / folder).rglob("*.py"))


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def modules(package: str) -> dict[str, Path]:
    """Files by the name under which they are imported."""
    names = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in python_files(package)}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imported(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """Modules among the known ones that a module imports, also those that it imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")
            base = base[: len(base) - node.level + (file.name == "__init__.py")] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {inner if (inner := f"{source}.{alias.name}") in known else source for alias in node.names}
    return (found & known.keys()) - {name, NEVER_RUN.get(name)}


def import_graph(package: str) -> dict[str, set[str]]:
    known = modules(package)
    return {name: imported(name, file, known) for name, file in known.items()}


def room(module: str) -> str:
    """The folder that a module lies in, such as `modeling_treediff.training.run`."""
    return module if (REPOSITORY / Path(*module.split("."))).is_dir() else module.rpartition(".")[0]


def by_room(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {room(module): set() for module in graph}
    for module, targets in graph.items():
        rooms[room(module)] |= {room(target) for target in targets} - {room(module)}
    return rooms


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, its first node once more at the end; nothing if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_test_imports_another():
    importing = re.compile(r"\b(?:from|import) test" + "_")  # also in code that a test hands to a fresh process
    assert [file for file in TESTS.rglob("*.py") if importing.search(file.read_text(encoding="utf-8"))] == []


def test_every_module_has_a_test_of_its_name():
    own = {file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if not file.name.startswith("__")}
    without = {str(file) for file in own if not (TESTS / file.parent / f"test_{file.name}").exists()}
    assert without == WITHOUT_NAMESAKE


@pytest.mark.parametrize("folder", ["modeling_treediff", "benchmarks", "examples", "tests"])
def test_files_are_short(folder):
    assert {file: lines(file) for file in python_files(folder) if lines(file) > LONGEST_FILE} == {}
    assert median(map(lines, python_files(folder))) <= MEDIAN_FILE


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short(package):
    lengths = [
        node.end_lineno - node.lineno + 1
        for file in python_files(package)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert quantiles(lengths, n=10)[-1] <= LONG_FUNCTION


def test_cycles_are_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(cycle({"a": {"b"}, "b": {"a"}, "c": {"a"}})) == {"a", "b"}
    graph = import_graph("modeling_treediff")
    assert "modeling_treediff.vocabulary_tree" in graph["modeling_treediff"]
    assert "modeling_treediff" in by_room(graph)["modeling_treediff.text"]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_flow_one_way(package):
    graph = import_graph(package)
    assert cycle(graph) == []
    assert cycle(by_room(graph)) == []
