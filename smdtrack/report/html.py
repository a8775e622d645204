"""HTML elements as text: every name and number is escaped here."""

import re
from collections.abc import Iterable, Sequence
from html import escape

#: A name of more characters may be broken anywhere.
_LONG_NAME = 48


def text(value: object) -> str:
    """Returns a value as escaped text."""
    return escape(str(value), quote=True)


def section(name: str, title: str, body: str) -> str:
    """Returns a section with an anchor and a heading."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{body}</section>'


def details(title: str, body: str, is_open: bool = False, rest: str = "") -> str:
    """Returns a part that opens with a click. A title that is written from right to left turns nothing around it."""
    return (
        f"<details{' open' if is_open else ''}><summary><bdi>{text(title)}</bdi>{text(rest)}</summary>{body}</details>"
    )


def table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]], left: bool = False) -> str:
    """Returns a table.

    Args:
        titles: Text of the column heads; the first column heads the rows.
        rows: Cells as HTML: `cell()`, or `text()` for the first of a row.
        left: Whether the column heads stand on the left, as over text.
    """
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in titles)
    body = "".join(f"<tr>{_row_head(first)}{''.join(rest)}</tr>" for first, *rest in rows)
    kind = ' class="left"' if left else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table{kind}>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row_head(first: str) -> str:
    kind = ' class="long"' if len(re.sub("<[^>]*>", "", first)) > _LONG_NAME else ""
    return f'<th scope="row"{kind}>{first}</th>'


def cell(value: object, kind: str = "") -> str:
    """Returns a table cell; `kind` is a class of the style sheet: text, good or off."""
    return f'<td class="{kind}">{text(value)}</td>' if kind else f"<td>{text(value)}</td>"


def tiles(numbers: Sequence[tuple[str, str]]) -> str:
    """Returns a few important numbers, each with its name."""
    entries = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in numbers)
    return f'<dl class="numbers">{entries}</dl>'
