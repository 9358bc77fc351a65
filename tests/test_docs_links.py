"""Links and anchors of the documents lead somewhere, here and on the site."""

import re
import runpy
import tomllib
import unicodedata
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/*.md")),
    # A template lies elsewhere than the page that is made of it.
    *(p for p in sorted(ROOT.glob("benchmarks/**/*.md")) if ".template" not in p.name),
]
FENCE = re.compile(r"^(```+).*?^\1$", re.M | re.S)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """What the page links to, addresses with a scheme left out."""
    found: list[str] = LINK.findall(CODE.sub("`code`", prose(page)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def on_a_forge(heading: str) -> str:
    """The anchor that GitHub and GitLab make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def on_the_site(heading: str) -> str:
    """The anchor that Python-Markdown makes of a heading."""
    ascii_ = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_).strip().lower())


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors that are the same in both places, and of one heading only."""
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", h) for h in headings(page)]
    made = [on_a_forge(h) for h in shown if on_a_forge(h) == on_the_site(h)]
    return frozenset(name for name in made if made.count(name) == 1)


def headings(page: Path) -> list[str]:
    return HEADING.findall(prose(page))


def faults(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    assert faults(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other\n\n## Twice\n\n## Twice\n", "utf-8")
    (tmp_path / "folder").mkdir()
    good = "[a](other.md) [b](other.md#other) [c](#here) `[no](link)` [d](https://x.y)"
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{good}\n\n```\n[no](link)\n```\n", "utf-8")
    assert faults(page) == []
    bad = ["missing.md", "other.md#nowhere", "other.md#twice", "#else", "folder"]
    page.write_text("# Here\n\n" + " ".join(f"[x]({t})" for t in bad), "utf-8")
    assert faults(page) == bad


def nav(entries: list[object]) -> list[str]:
    """The pages of the navigation, in order."""
    found = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += nav(value) if isinstance(value, list) else [str(value)]
    return found


def test_the_navigation_has_every_document_once() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    listed = nav(project["nav"])
    documents = {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")}
    assert sorted(listed) == sorted(documents | {"README.md", "CHANGELOG.md"})


def test_the_site_has_every_document_and_what_they_show(tmp_path: Path) -> None:
    SITE["gather"](tmp_path / "pages")
    for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.svg")]:
        copy = tmp_path / "pages" / page.relative_to(ROOT)
        assert copy.read_bytes() == page.read_bytes(), page
