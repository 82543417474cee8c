"""Web pages hold everything and let nothing become markup."""

import json
import re

import pytest

from modeling_treediff.viewing.web_page import fill, render_web_page

HOSTILE = ["</script><script>alert(1)</script>", "<!--", "{{body}}", "&amp;"]


def test_data_arrive_and_no_string_becomes_markup():
    page = render_web_page(HOSTILE[0], "p { color: red }", "<p>text</p>", {"names": HOSTILE}, "run();")
    (data,) = re.findall(r'(?s)id="data"[^>]*>(.*?)</script>', page)
    assert json.loads(data) == {"names": HOSTILE}
    assert page.count("<script") == render_web_page("title", "", "", {}, "").count("<script")
    assert "<p>text</p>" in page and "run();" in page and "default-src 'none'" in page


def test_what_is_filled_in_is_not_filled_again():
    assert fill("{{a}} {{b}}", {"a": "{{b}}", "b": "c"}) == "{{b}} c"


def test_data_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError):
        render_web_page("title", "", "", float("nan"), "")
