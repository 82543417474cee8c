"""The files about the project agree with the package: version, title and license."""

import re
import tomllib

import yaml
from helpers.processes import REPOSITORY, TESTS

import modeling_treediff

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert citation["title"] == modeling_treediff.__name__ and citation["license"] == PROJECT["license"]
    assert str(citation["version"]) == modeling_treediff.__version__
    for paper in citation["references"]:
        assert {"type", "title", "authors"} <= paper.keys()
        assert paper["url"].rsplit("/", 1)[1] == paper["identifiers"][0]["value"].removeprefix("arXiv:")


def test_the_newest_section_of_the_changelog_is_of_this_version():
    sections = re.findall(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == modeling_treediff.__version__
    numbers = [tuple(map(int, version.split("."))) for version in sections]
    assert numbers == sorted(set(numbers), reverse=True)


def test_what_contributing_names_is_there():
    text = " ".join((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    named = re.findall(r"`(\w+)` (?:in|of) `([\w/.]+\.py)`|[Ii]n `([\w/.]+\.py)`, add its name to `(\w+)`", text)
    pairs = {(one or other, file or of) for one, file, of, other in named}
    assert len(pairs) >= 4
    for name, file in pairs:
        (path,) = [path for path in (REPOSITORY / file, REPOSITORY / "modeling_treediff" / file) if path.exists()]
        assert re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")), (name, file)


def test_the_workflow_runs_the_pythons_that_are_supported():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run" and (REPOSITORY / ".ci/run").stat().st_mode & 0o100
    assert PROJECT["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"


def test_the_scheduled_tests_are_there():
    named = re.findall(r"tests/[\w./*]+", (REPOSITORY / ".ci/scheduled").read_text(encoding="utf-8"))
    assert named and [path for path in named if not list(REPOSITORY.glob(path))] == []


def test_what_the_page_about_tests_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (TESTS / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^ *def {test}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), (file, test)
