"""The documentation: the site builds without a warning and loads nothing from elsewhere; links and commands mean something."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
PACKAGES = ("store", "extract", "probe", "analysis")
COMMANDS = {
    "diffssl-store": ("store", "group"),
    "diffssl-extract": ("extract", "command"),
    "diffssl-probe": ("probe", "command"),
    "diffssl-analyze": ("analysis", "group"),
}

each_text = pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class Loaded(HTMLParser):
    """Collects the addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values.get("href") or "")


def is_elsewhere(address: str) -> bool:
    return re.match(r"([a-z]+:)?//", address) is not None


def test_every_page_is_built(site: Path) -> None:
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert {path.relative_to(ROOT / "docs").with_suffix("") for path in PAGES} <= built
    assert Path("notebook") in built


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert len(loaded.found) > 1
        assert [one for one in loaded.found if is_elsewhere(one)] == [], page
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        fetched = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", style.read_text(encoding="utf-8"))
        assert [one for one in fetched if is_elsewhere(one)] == [], style


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(site: Path, package: str) -> None:
    page = (site / "api" / f"{package}.html").read_text(encoding="utf-8")
    module = importlib.import_module(f"diffssl.{package}")
    there = set(re.findall(rf'id="diffssl\.{package}\.([\w.]+)"', page))
    for name in (name for name in module.__all__ if callable(getattr(module, name))):
        assert {name, f"{name}.{name}"} & there  # the second where a module hides the function it is named after
    assert not re.search(r":(class|func|meth|attr|mod):", page)


@each_text
def test_links_lead_somewhere(text: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8")):
        if not is_elsewhere(target):
            assert (text.parent / target.partition("#")[0]).exists(), target


def commands(text: Path) -> Iterator[tuple[str, str]]:
    """Name and arguments of every diffssl command in the shell blocks of a page, without comments."""
    for block in re.findall(r"^```sh\n(.*?)^```", text.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        joined = re.sub(r"\\\n\s*", " ", block)
        yield from re.findall(r"\b(diffssl-(?:store|extract|probe|analyze)) ([^\n#&]*)", joined)


@each_text
def test_options_of_commands_are_there(text: Path) -> None:
    for name, arguments in commands(text):
        folder, attribute = COMMANDS[name]
        command = getattr(importlib.import_module(f"diffssl.{folder}.cli"), attribute)
        if isinstance(command, click.Group):
            assert arguments.split()[0] in command.commands, (name, arguments)
            command = command.commands[arguments.split()[0]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", arguments)) - known == set(), (name, arguments)


def test_commands_are_found() -> None:
    assert len([found for text in TEXTS for found in commands(text)]) > 50
