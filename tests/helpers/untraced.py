"""A mark for slow tests whose lines run in others as well: counting coverage would double their time."""

import pytest

untraced = pytest.mark.no_cover
