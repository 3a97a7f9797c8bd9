"""Self-contained HTML pages: pictures are data URLs, charts are inline SVG, and nothing else is loaded."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hive_ray.images import ImageError, media_type, to_plain

STYLESHEET = Path(__file__).with_name("pages.css")
VERDICT_MARKS = {None: "", True: "\u2713", False: "\u2717"}
"""The mark of an edit that was not judged, of a right one, and of a wrong one."""


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with its caption."""

    image: bytes
    caption: str
    right: bool | None = None
    """Whether the edit is right; None if it was not judged."""


@dataclass(frozen=True)
class Example:
    """An instruction with a row of pictures: a source and its edits, or the two pictures of a pair."""

    instruction: str
    pictures: tuple[CaptionedPicture, ...]


def page(title: str, finding: str, sections: Iterable[tuple[str, str]], more_findings: Iterable[str] = ()) -> str:
    """A page: title, main finding, more findings, and sections (title, HTML). Empty parts are left out.

    Titles and findings are plain text, the contents of sections are HTML.
    """
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections if content)
    headline = f'<p class="finding">{escape(finding)}</p>' if finding else ""
    headline += "".join(f'<p class="further">{escape(words)}</p>' for words in more_findings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLESHEET.read_text()}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{headline}{body}</main></body></html>"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "numbers") -> str:
    """A table whose cells are HTML; the first cell of a row is its name.

    kind: "numbers", or "words" if the last cell is text.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for name, *cells in rows:
        lines.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = "".join(lines)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def chart(svg: str) -> str:
    """A chart in a frame."""
    return f'<figure class="chart">{svg}</figure>'


def charts(svgs: Iterable[str]) -> str:
    """Charts side by side, if the page is wide enough."""
    return f'<div class="charts">{"".join(chart(svg) for svg in svgs)}</div>'


def note(words: str) -> str:
    """A small note of plain text."""
    return f'<p class="note">{escape(words)}</p>'


def contact_sheet(examples: Sequence[Example]) -> str:
    """Examples as cards of captioned pictures; "" if there are none."""
    parts = []
    for example in examples:
        figures = "".join(_figure(shown, example.instruction) for shown in example.pictures)
        parts.append(f'<div class="example"><h3>\u201c{escape(example.instruction)}\u201d</h3>{figures}</div>')
    kind = "examples short" if all(len(example.pictures) <= 2 for example in examples) else "examples"
    return f'<div class="{kind}">{"".join(parts)}</div>' if parts else ""


def _figure(shown: CaptionedPicture, instruction: str) -> str:
    mark = {None: "", True: " right", False: " wrong"}[shown.right]
    words = f"{VERDICT_MARKS[shown.right]} {shown.caption}".strip()
    address = _address(shown.image)
    alt = escape(f"{shown.caption.splitlines()[0] if shown.caption else 'picture'}: {instruction}", quote=True)
    caption = escape(words).replace("\n", "<br>")
    image = f'<img src="{address}" alt="{alt}">'
    return f'<figure class="shown{mark}">{image}<figcaption>{caption}</figcaption></figure>'


def _address(image: bytes) -> str:
    """A picture as a data URL, as models see it; an empty one if it cannot be read."""
    try:
        plain = to_plain(image)
    except ImageError:
        return "data:,"
    return f"data:{media_type(plain)};base64,{base64.b64encode(plain).decode()}"
