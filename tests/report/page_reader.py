"""Reads a report page back: its elements, its text and the exact numbers in its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {'meta', 'link', 'img', 'br', 'path', 'use', 'rect', 'circle', 'line'}


@dataclass
class Table:
    """A table: where it stands, its label, and the cells of each row."""

    section: str
    label: str
    rows: list[list[Cell]] = field(default_factory=list)

    def numbers(self) -> list[list[list[float]]]:
        """The exact numbers of every cell that is no head, row by row; empty rows left out."""
        rows = [[cell.numbers for cell in row if cell.tag == 'td'] for row in self.rows]
        return [row for row in rows if row]


@dataclass
class Cell:
    """A cell: ``td`` or ``th``, its text, the exact numbers in it and the label that it has where it stands alone."""

    tag: str
    label: str = ''
    text: str = ''
    numbers: list[float] = field(default_factory=list)


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        elements: tag and attributes of every element.
        text: what the reader sees, in order.
        data: exact value and printed text of every ``<data>``.
        tables: all tables.
        unclosed: tags without an end, or ends without a start.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.text = ''
        self.data: list[tuple[float, str]] = []
        self.tables: list[Table] = []
        self.unclosed: list[str] = []
        self._open: list[str] = []
        self._section = self._label = ''
        self.feed(text)
        self.close()
        self.unclosed += self._open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == 'section':
            self._section = attributes.get('id', '')
        elif attributes.get('role') == 'region':
            self._label = attributes.get('aria-label', '')
        elif tag == 'table':
            self.tables.append(Table(self._section, self._label))
        elif tag == 'tr':
            self.tables[-1].rows.append([])
        elif tag in ('td', 'th'):
            self.tables[-1].rows[-1].append(Cell(tag, attributes.get('data-label', '')))
        elif tag == 'data':
            self.data.append((float(attributes['value']), ''))
            if self._cell is not None:
                self._cell.numbers.append(float(attributes['value']))

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self._open or self._open[-1] != tag:
            self.unclosed.append(f'/{tag}')
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if 'style' in self._open:
            return
        self.text += data
        if self._open and self._open[-1] == 'data':
            value, text = self.data[-1]
            self.data[-1] = (value, text + data)
        if self._cell is not None:
            self._cell.text += data

    @property
    def _cell(self) -> Cell | None:
        if 'td' in self._open or 'th' in self._open:
            return self.tables[-1].rows[-1][-1]
        return None

    def of_section(self, section: str) -> list[Table]:
        """The tables of one section."""
        return [table for table in self.tables if table.section == section]
