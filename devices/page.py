"""The parts that reports are made of: one HTML document with its style inside, figures, tables, charts in cards."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from devices.text import plain_text

_STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, slots=True)
class Html:
    """What is markup already."""

    text: str


Cell = str | Html


def clean(text: str) -> str:
    """Any text, as text of a page or of an attribute."""
    return escape(plain_text(text))


def html(cell: Cell) -> str:
    """The markup of a cell."""
    return cell.text if isinstance(cell, Html) else clean(cell)


def document(title: str, parts: Sequence[str], *, wide: bool = False) -> str:
    """The whole page; it asks for nothing else, and is well-formed XML too. wide: for tables of many columns."""
    kind = ' class="wide"' if wide else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{clean(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main{kind}>{''.join(parts)}</main></body></html>\n"
    )


def figures(entries: Sequence[tuple[str, str, str]]) -> str:
    """Large figures: what, the value, and a note."""
    items = "".join(
        f"<div><dt>{clean(name)}</dt><dd><strong>{clean(value)}</strong><span>{clean(note)}</span></dd></div>"
        for name, value, note in entries
    )
    return f'<dl class="figures">{items}</dl>'


def card(title: str, note: str, chart: str, legend: str) -> str:
    """A chart with its title and legend."""
    caption = f"<figcaption><h2>{clean(title)}</h2><span>{clean(note)}</span></figcaption>"
    return f'<figure>{caption}{chart}<ul class="legend">{legend}</ul></figure>'


def legend(*entries: tuple[str, str]) -> str:
    """Entries of a class of the style sheet and a text."""
    return "".join(f'<li class="{style}">{clean(text)}</li>' for style, text in entries)


def table(name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table whose first column names the row."""
    assert all(len(row) == len(head) for row in rows)
    top = "".join(f'<th scope="col">{clean(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html(row[0])}</th>{"".join(f"<td>{html(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    # A table wider than a phone scrolls inside its own frame, and the keyboard can reach it.
    return (
        f'<div class="table" role="region" aria-label="{clean(name)}" tabindex="0">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(title: str, content: str) -> str:
    """What shows when it is asked for."""
    return f"<details><summary><h2>{clean(title)}</h2></summary>{content}</details>"
