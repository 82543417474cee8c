"""Timing in turns."""

from benchmarks import timing


def test_turns_interleave_and_warm_up_does_not_count():
    called = []
    actions = [lambda: called.append("a"), lambda: called.append("b")]
    seconds = timing.seconds_in_turns(actions, turns=3, warm_up=2, device="cpu")
    assert "".join(called) == "ab" * 5 and [len(some) for some in seconds] == [3, 3]


def test_quartiles_of_one_value_are_that_value():
    assert timing.quartiles("x", [5.0]) == {"x": 5, "x_lower_quartile": 5, "x_upper_quartile": 5}
