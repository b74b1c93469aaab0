"""A page as a browser reads it, held to be valid."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from ftcli.report.page import write_report
from ftcli.runs.folder import RunFolder

VOID = {"meta", "link", "input", "br", "hr", "img", "source"}


class Outline(HTMLParser):
    """Strict reader of a page: every tag is closed in order, ids are unique."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.faults: list[str] = []
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> never closes" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.faults.append(f"<{tag}/> closes itself, which HTML does not know")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else, at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """The text with spaces between elements, except before punctuation."""
        return re.sub(r" (?=[,.:;)])", "", " ".join(" ".join(self.words).split()))


def outline(run: RunFolder) -> Outline:
    """The outline of a run's page, which must be valid."""
    write_report(run)
    found = Outline(run.report.read_text(encoding="utf-8"))
    assert found.faults == []
    ids = [each["id"] for _, each in found.elements if "id" in each]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby", "for"):
        for _, each in found.elements:
            assert set((each.get(name) or "").split()) <= set(ids), each
    links = {(each.get("href") or "")[1:] for each in found.all("a")}
    assert links <= set(ids)
    return found
