"""A record of the speed of tiny models."""

import pytest
from helpers.processes import run_python


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """The record of a toy size, by a fresh process."""
    file = tmp_path_factory.mktemp("speed") / "results" / "speed.json"
    turns = ("--turns", "3", "--calls", "2", "--passes", "4", "--vocabularies", "510", "--batch-size", "3")
    ran = run_python(
        "-m", "benchmarks.speed.throughput", "--sizes", "toy", *turns, "--output", file, ACCELERATE_USE_CPU="true"
    )
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in file.parent.iterdir()] == ["speed.json"]  # no partial record is left
    return file
