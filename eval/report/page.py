"""report.html: results, plots and the worst errors in one file, which needs neither a network nor scripts."""

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape

from data.images import encode_png
from eval.protocol import PairError
from eval.report.tables import Table
from utils.files import write_text

_LABELS = {"the same person, rejected": True, "different people, accepted": False}  # wrong decision -> is_same
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 75rem; margin: 0 auto; padding: 1rem }
nav a { margin-right: 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap }
th:first-child { text-align: left }
tbody th { font-weight: normal }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }
dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 0; break-inside: avoid }
figcaption { font-size: .95rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem }
.plots img { width: 100%; height: auto }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem }
.pairs img { width: 112px; height: 112px }
h2, h3, h4 { break-after: avoid }
@media (max-width: 40rem) { dl { display: block } dd { margin-left: 1rem } }
@media print {
  nav { display: none }
  .plots { grid-template-columns: 1fr 1fr }
  table { font-size: .7rem }
  th, td { white-space: normal; padding: .1rem .3rem }
}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
{sections}
</body>
</html>
"""
_FRAMES = {  # the HTML around the contents of each section
    "About": "<dl>{}</dl>",
    "Notes": "<ul>{}</ul>",
    "Results": "{}",
    "Plots": '<div class="plots">{}</div>',
    "Errors": "<p>Errors farthest from the threshold come first. Pairs are numbered from 0.</p>{}",
}


def write_page(
    path: str | os.PathLike,
    title: str,
    about: Mapping[str, str],
    tables: Sequence[Table],
    plots: Sequence[tuple[str, bytes]],
    errors: Mapping[str, Sequence[PairError]],
    notes: Sequence[str],
) -> None:
    """Write the page.

    about: facts about the run, by name; plots: (caption, contents of a PNG file); errors: by set; notes: sentences. All
    texts are escaped. A section without contents is left out, but a set without errors is listed as such.
    """
    bodies = {
        "About": "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in about.items()),
        "Notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "Results": "".join(map(_table, tables)),
        "Plots": "".join(_plot(caption, png) for caption, png in plots),
        "Errors": "".join(_errors_of_set(target, pairs) for target, pairs in errors.items()),
    }
    bodies = {heading: body for heading, body in bodies.items() if body}
    links = "".join(f'<a href="#{heading.lower()}">{heading}</a>' for heading in bodies)
    sections = "\n".join(
        f'<section id="{heading.lower()}"><h2>{heading}</h2>{_FRAMES[heading].format(body)}</section>'
        for heading, body in bodies.items()
    )
    page = _PAGE.format(title=escape(title), style=_STYLE, links=links, sections=sections)
    write_text(path, page)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = ""
    for row, cells in enumerate(table.rows):
        texts = [
            f"<strong>{escape(cell)}</strong>" if (row, column) in table.best else escape(cell)
            for column, cell in enumerate(cells)
        ]
        rows += f'<tr><th scope="row">{texts[0]}</th>' + "".join(f"<td>{text}</td>" for text in texts[1:]) + "</tr>"
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    note = f"<p>{escape(table.footnote)}</p>" if table.footnote else ""
    return f'<h3>{escape(table.title)}</h3><div class="scroll">{grid}</div>{note}'


def _plot(caption: str, png: bytes) -> str:
    return f"<figure>{_image(png, caption)}</figure>"  # the caption is the title in the picture


def _errors_of_set(target: str, pairs: Sequence[PairError]) -> str:
    groups = [(label, [pair for pair in pairs if pair.is_same == same]) for label, same in _LABELS.items()]
    parts = [
        f'<h4>{label.capitalize()}</h4><div class="pairs">{"".join(_pair(pair, label) for pair in chosen)}</div>'
        if chosen
        else f"<p>{label.capitalize()}: none.</p>"
        for label, chosen in groups
    ]
    return f"<h3>{escape(target)}</h3>{''.join(parts)}"


def _pair(pair: PairError, label: str) -> str:
    images = ""
    for which, image in (("first", pair.first), ("second", pair.second)):
        images += _image(encode_png(image), f"pair {pair.number}, {which} image: {label}")
    caption = f"pair {pair.number}<br>cosine {pair.score:.3f}, threshold {pair.threshold:.3f}"
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
