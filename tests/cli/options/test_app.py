"""Where the page is served."""

from helpers.options import parse, refusal


def test_only_this_machine_sees_the_page_unless_it_is_shared():
    (service,) = parse("app", "m")
    assert (service.host, service.port, service.share) == ("127.0.0.1", 7860, False)
    (service,) = parse("app", "--share", "m", "--port", "8000")
    assert (service.model, service.port, service.share) == ("m", 8000, True)
    assert "invalid int value" in refusal("app", "m", "--port", "http")
