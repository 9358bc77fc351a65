"""Reads a page as a browser would: elements, rows of tables, facts; refuses scripts."""

import re
from html.parser import HTMLParser

VOID = ("meta", "line", "rect", "polyline", "use", "path", "br", "image")
REFUSED = {"script", "link", "img", "iframe", "object", "base", "b"}
ADDRESSES = ("src", "href", "xlink:href", "action")


class Page(HTMLParser):
    """What a page shows; AssertionError where it is not whole, or needs another place.

    Attributes:
        tags: Each element's name, in order.
        links: Where links lead that leave the page; only to a file beside it.
        rows: The cells of each row of each table.
        facts: Values by their labels.
        text: All text that is shown, one line for each element.
        by_tag: The same, by the name of the element.
        drawn: The text of all charts.
        headings: The text of h1 and h2.
        marks: The classes that are used.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.facts: dict[str, str] = {}
        self.text: list[str] = []
        self.by_tag: dict[str, str] = {}
        self.drawn: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.marks: set[str] = set()
        self._open: list[str] = []
        assert not re.search(r"url\((?!#)|@import|javascript:", html)
        assert "default-src 'none'" in html
        self.feed(html)
        assert self._open == [], "every element is closed"
        assert len(self.ids) == len(set(self.ids))
        assert not REFUSED & set(self.tags)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not {name for name in given if name.startswith("on")}
        for address in (given[name] or "" for name in ADDRESSES if name in given):
            if not address.startswith("#"):
                assert tag == "a" and re.fullmatch(r"[\w.-]+/[\w.-]+", address), address
                self.links.append(address)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.marks |= set((given.get("class") or "").split())
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        self.by_tag[inside] = self.by_tag.get(inside, "") + data
        if inside in ("td", "th"):
            self.rows[-1][-1] += data
        if inside == "dt":
            self.facts[data] = ""
        if inside == "dd":
            self.facts[list(self.facts)[-1]] = data
        if inside == "text":
            self.drawn.append(data)
        if inside in ("h1", "h2"):
            self.headings.append(data)
        if inside != "style" and data.strip():
            self.text.append(data)
