"""A hook of mkdocs: brings the documents that lie outside of docs/ onto the site, and leads links to them there.

On GitHub the documents link to each other by their places in the repository. On the site the README is the page
`overview`, and two of its sections have pages of their own, for those who look something up.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent

# The documents of the repository's root, and their pages.
PAGES = {
    "README.md": "overview.md",
    "ARCHITECTURE.md": "architecture.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "licence.md",
}


class Section(NamedTuple):
    """A section of the README that is a page as well."""

    heading: str
    title: str
    page: str

    @property
    def anchor(self) -> str:
        return f"overview.md#{self.heading.lower().replace(' ', '-')}"


SECTIONS = (
    Section("Which forwards", "Forwards", "forwards.md"),
    Section("For scripts", "Exit codes", "exit-codes.md"),
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that have no file in docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if name == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=from_root(text)))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for section in SECTIONS:
        text = f"# {section.title}\n{section_of(readme, section.heading)}"
        if section.title == "Exit codes":
            json = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
            text += f"\n## Which command ends with which\n{section_of(json, 'Exit codes')}"
        files.append(File.generated(config, section.page, content=from_root(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text, with the links that lead out of docs/ led to their pages."""
    return to_pages(re.sub(r"\]\(\.\./([^)\s]+)\)", r"](\1)", markdown))


def section_of(text: str, heading: str) -> str:
    """What stands under the heading, up to the next one of its rank or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading {heading!r}"
    return found[2]


def from_root(text: str) -> str:
    """The text of a document in the root, as if it lay in docs/."""
    text = re.sub(r"\]\(#([^)\s]+)\)", r"](overview.md#\1)", text) if text.startswith("# Forwards") else text
    return re.sub(r"\]\(docs/([^)\s]+)\)", r"](\1)", text)


def to_pages(markdown: str) -> str:
    """The text with links to documents of the root made links to their pages."""
    own = {section.anchor: section.page for section in SECTIONS}

    def link(found: re.Match[str]) -> str:
        name, anchor = found[1], found[2] or ""
        target = PAGES[name] + anchor
        return f"]({own.get(target, target)})"

    names = "|".join(map(re.escape, PAGES))
    return re.sub(rf"\]\(({names})(#[^)\s]*)?\)", link, markdown)
