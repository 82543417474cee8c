"""Markdown tables, and the marks of a page between which they stand."""


def marks(name: str) -> tuple[str, str]:
    """Return the comments between which a part of a page stands."""
    return f"<!-- {name} -->\n", f"<!-- end of {name} -->"


def fill(text: str, marks: tuple[str, str], content: str) -> str:
    """Put content between two marks."""
    before, rest = text.split(marks[0])
    return before + marks[0] + content + marks[1] + rest.split(marks[1])[1]


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
