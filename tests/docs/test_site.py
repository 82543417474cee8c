"""The site that `make docs` builds: strict, without a network, with every public name and without a dead link."""

import importlib
import inspect
import pkgutil
import re
import zlib
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from helpers.processes import run_python

import modeling_treediff

NO_NETWORK = """
import socket
def refuse(*_, **__): raise OSError("the build asked for a network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    ran = run_python("build", "--strict", "--site-dir", folder, code=NO_NETWORK)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def public_things():
    """Every class and function that `__all__` of the package or of one of its rooms names, and the two names it has."""
    rooms = pkgutil.walk_packages(modeling_treediff.__path__, "modeling_treediff.")
    for room in ("modeling_treediff", *(room.name for room in rooms if room.ispkg)):
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            if inspect.isclass(thing := getattr(module, name)) or inspect.isfunction(thing):
                yield f"{room}.{name}", f"{thing.__module__}.{thing.__qualname__}"


def test_every_public_name_is_described(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    described = {line.split(" ", 1)[0] for line in inventory.splitlines()}
    assert [names[0] for names in public_things() if not described.intersection(names)] == []


class Links(HTMLParser):
    """What a page names, and what it asks for."""

    def __init__(self, page):
        super().__init__()
        self.names, self.links, self.loaded = set(), [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag in ("img", "script", "link") and (target := attributes.get("src") or attributes.get("href")):
            self.loaded.append(target)


def test_all_links_of_the_site_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert {"index.html", "tutorial.html", "concepts.html", "api/index.html", "benchmarks/index.html"} <= {
        page.relative_to(site).as_posix() for page in pages
    }
    for page, found in pages.items():
        for target in found.links + found.loaded:
            if re.match(r"https?:|mailto:|data:", target):
                assert target in found.links, f"{page.name} loads {target}"
                continue
            path, _, section = unquote(target).partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if section and file in pages:
                assert section in pages[file].names, f"{page.name}: {target}"


def test_formulas_are_drawn_by_the_browser(site):
    text = (site / "concepts.html").read_text(encoding="utf-8")
    article = text[text.index("<article") : text.index("</article>")]
    assert article.count("<math") > 10 and "$" not in article


def test_lists_are_lists(site):
    for page in site.rglob("*.html"):
        assert not (found := re.findall(r"<p>[^<]*\n- .*", page.read_text(encoding="utf-8"))), f"{page.name}: {found}"
