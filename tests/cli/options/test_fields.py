"""What a field of options says is what its owner says."""

from dataclasses import dataclass, field, fields

import pytest

from modeling_treediff.cli.options.fields import given, help_of, option, same_as


@dataclass
class Owner:
    """Someone.

    Attributes:
        documented: how much, in %, of
            it all.
        other: not this.

    """

    documented: int = 4
    other: str = "a"
    helped: list[str] = field(default_factory=lambda: ["x"], metadata={"help": "names", "choices": ("x", "y")})
    silent: int = 0


@dataclass
class Borrower:
    documented: int = same_as(Owner, "documented")
    helped: list[str] = same_as(Owner, "helped", metavar="NAME")
    own: str | None = option(None, "its own", flag="mine")


def test_default_help_and_metadata_are_the_owners():
    documented, helped, _ = fields(Borrower)
    assert documented.default == 4 and documented.metadata == {"help": "how much, in %%, of it all"}
    assert Borrower().helped == ["x"] and Borrower().helped is not Borrower().helped
    assert helped.metadata == {"help": "names", "choices": ("x", "y"), "metavar": "NAME"}
    with pytest.raises(LookupError, match="Owner does not document silent"):
        help_of(Owner, "silent")


def test_what_is_not_given_is_known():
    assert given(Borrower(5, own="a")) == ["--documented", "--mine"]
    assert given(Borrower(5, own="a"), ["helped", "own"]) == ["--mine"] and not given(Borrower())
