"""Text that is no Unicode: bytes of a command line that are not UTF-8, which Python keeps as half characters."""

SHOWN = 20  # characters before and after the first that is none


def check_utf8(text: str) -> None:
    """Raise ValueError, with the bytes as code points, unless a text can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - SHOWN) : error.start + SHOWN]
        shown = around.encode(errors="backslashreplace").decode()
        raise ValueError(
            f"The text '{shown}' is not UTF-8 (character {error.start + 1}): set the terminal, or the program that it "
            "comes from, to UTF-8."
        ) from error
