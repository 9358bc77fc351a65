"""Gather the pages of the site in build/pages, as they lie in the repository.

`make docs-site` builds build/site from them by `zensical.toml`. Each page keeps its
place, and so does each file that a page links to. So relative links work on the site as
they do in the repository.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
# A link or an image of Markdown; an address with a scheme is not a file.
LINK = re.compile(r"\]\((?P<target>[^)#:\s]+)(?:#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def linked_files(page: Path) -> list[Path]:
    """The files that ``page`` links to, in the order of its links."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = (match["target"] for match in LINK.finditer(text))
    return [(page.parent / target).resolve() for target in targets]


def site_files() -> list[Path]:
    """The documents and every file that links lead to from there, sorted."""
    found = {ROOT / "docs" / "site.css"}
    waiting = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue  # the build reports a link that leads nowhere
        found.add(file)
        if file.suffix == ".md":
            waiting += linked_files(file)
    return sorted(found)


def gather(pages: Path = PAGES) -> None:
    """Make ``pages`` anew with a copy of each file, at its place in the repository."""
    shutil.rmtree(pages, ignore_errors=True)
    for file in site_files():
        copy = pages / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


if __name__ == "__main__":
    gather()
