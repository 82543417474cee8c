"""The numbers in README.md, docs/ and on two more pages are the recorded ones."""

from helpers.processes import run_python


def test_pages_show_the_recorded_results():
    ran = run_python("-m", "benchmarks.report.render", "--check")
    assert ran.returncode == 0, ran.stderr
