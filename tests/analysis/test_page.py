from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from diffssl.analysis.chart import Chart, Line
from diffssl.analysis.page import Heat, Part, Picture, Pictures, Section, Table, Words, render
from PIL import Image

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._inside.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if not self._inside or self._inside[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def heat(words: str = "b", tags: dict[str, str] | None = None) -> Heat:
    values = np.array([[1.0, np.nan], [55.25, 100.0]])
    return Heat(
        words, [words, "24"], ["10", words], "block", words, values, [[words, ""], ["", words]], 0, 100, tags=tags or {}
    )


def page(*parts: Part) -> Reader:
    return Reader(render("study", "of a store", [Section("Maps", parts, "how to read it")]))


def test_everything_from_data_is_text() -> None:
    line = Line(EVIL, [1, 2], [1, 2], [0, 1], [2, 3], [EVIL, EVIL])
    parts: list[Part] = [
        Words(EVIL),
        Words(EVIL, "note"),
        Words(EVIL, "code"),
        Table(EVIL, [EVIL], [[EVIL], [1]]),
        heat(EVIL, {"head": EVIL}),
        heat(EVIL, {"head": "other"}),
        Chart(EVIL, EVIL, EVIL, [line], {"head": EVIL}),
        Pictures(EVIL, [EVIL, EVIL], [(EVIL, [Picture(EVIL, PIXELS), None])]),
    ]
    html = render(EVIL, EVIL, [Section(EVIL, parts, EVIL)])
    read = Reader(html)
    assert len(read.all("script")) == 1, "the page's own"
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert "".join(read.text).count(EVIL) >= 15, "it is shown as it is"


def test_the_page_loads_nothing() -> None:
    html = render("study", "of a store", [Section("Maps", [Pictures("p", [], [("a", [Picture("c", PIXELS)])])])])
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", html)
    assert "default-src 'none'" in html
    addresses = [str(one["src"]) for one in Reader(html).all("img")]
    assert len(addresses) == 1
    assert addresses[0].startswith("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(addresses[0].partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image), PIXELS)


def test_numbers_sort_as_numbers_and_are_readable() -> None:
    table = Table("t", ["a", "b"], [["x", 0.123456], ["y", None], ["z", float("nan")], ["v", 7]])
    read = page(table)
    assert [one["data-value"] for one in read.all("td") if "data-value" in one] == ["0.123456", "nan", "7"]
    assert [text for text in read.text if text in ("0.1235", "7", "nan")] == ["0.1235", "7"]


def test_a_heat_shows_numbers_on_colours_that_they_can_be_read_on() -> None:
    cells = heat().cells()
    assert [[text for text, *_ in line] for line in cells] == [["1.0", ""], ["55.2", "100.0"]]
    assert cells[0][1][1] == "", "nothing has no colour"
    assert cells[0][0][1:3] == ("#450457", "#fff")
    assert cells[1][1][1:3] == ("#fde725", "#000")


def test_equal_values_have_a_colour() -> None:
    one = Heat("h", ["1"], ["1"], "r", "c", np.array([[3.0]]), [[""]], 3, 3)
    assert one.cells()[0][0][1] == "#440154"


def test_choices_are_what_differs() -> None:
    parts = [heat(tags={"head": head, "pool": "1"}) for head in ("linear", "logreg", "linear")]
    assert Section("Maps", parts).choices() == {"head": ["linear", "logreg"]}
    read = page(*parts)
    assert [one["data-choice"] for one in read.all("select")] == ["head"]
    assert [one["data-tag-head"] for one in read.all("figure")] == ["linear", "logreg", "linear"]


def test_without_javascript_all_is_there() -> None:
    read = page(*(heat(tags={"head": head}) for head in ("linear", "logreg")))
    assert all("hidden" not in one for one in read.all("figure"))
    assert [one["hidden"] for one in read.all("div") if one.get("class") == "choices"] == [None]


def test_sections_are_linked() -> None:
    read = Reader(render("s", "t", [Section("What was run", [Words("x")]), Section("Maps", [Words("y")])]))
    assert [one["href"] for one in read.all("a")] == ["#what-was-run", "#maps"]
    assert [one["id"] for one in read.all("section")] == ["what-was-run", "maps"]
