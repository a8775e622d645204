"""HTML elements as text: every name and number is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape


def text(value: object) -> str:
    """Returns a value as escaped text."""
    return escape(str(value), quote=True)


def section(name: str, title: str, body: str) -> str:
    """Returns a section with an anchor and a heading."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{body}</section>'


def details(title: str, body: str, is_open: bool = False) -> str:
    """Returns a part that opens with a click."""
    return f"<details{' open' if is_open else ''}><summary>{text(title)}</summary>{body}</details>"


def table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table.

    Args:
        titles: Text of the column heads; the first column heads the rows.
        rows: Cells as HTML: `cell()`, or `text()` for the first of a row.
    """
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in titles)
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(rest)}</tr>' for first, *rest in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def cell(value: object, kind: str = "") -> str:
    """Returns a table cell; `kind` is a class of the style sheet: text, good or off."""
    return f'<td class="{kind}">{text(value)}</td>' if kind else f"<td>{text(value)}</td>"


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Returns a few important numbers, each with its name."""
    entries = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in numbers)
    return f'<dl class="numbers">{entries}</dl>'
