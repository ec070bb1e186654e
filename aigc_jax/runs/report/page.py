"""Self-contained HTML report, with embedded pictures."""

import base64
import dataclasses
import html
from collections.abc import Sequence


@dataclasses.dataclass
class MetricRow:
    """A metric and its reference values.

    Attributes:
      name: name of the metric, with its unit.
      value: its value.
      better: "lower" or "higher".
      references: `{name: value}`.
    """

    name: str
    value: float
    better: str = "lower"
    references: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Section:
    """Section of one family.

    Attributes:
      title: the heading.
      about: one or two sentences.
      rows: metrics.
      alarms: (step, metric, message) of failed health checks, shown first.
      pictures: `{caption: path of a PNG}`.
      texts: text samples.
      facts: small print, such as the command and the time it took.
    """

    title: str
    about: str
    rows: Sequence[MetricRow] = ()
    alarms: Sequence[tuple[int, str, str]] = ()
    pictures: dict[str, str] = dataclasses.field(default_factory=dict)
    texts: Sequence[str] = ()
    facts: Sequence[str] = ()


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
td.value { font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: #666; font-size: .9rem; }
img { max-width: 100%; image-rendering: pixelated; }
img.curves { image-rendering: auto; }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap;
      font-size: .85rem; }
.alarms { border-left: 4px solid #c33; background: #fdf0f0; padding: .6rem 2rem; }
.facts { color: #666; font-size: .9rem; }
"""


def write_page(path: str, title: str, about: str, sections: Sequence[Section]) -> str:
    """Writes the page and returns its path."""
    body = "".join(_section(s) for s in sections)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>{body}"
        "</html>\n"
    )
    with open(path, "w", encoding="utf-8") as f:
        f.write(page)
    return path


def _section(section: Section) -> str:
    parts = [f"<section><h2>{html.escape(section.title)}</h2><p>{html.escape(section.about)}</p>"]
    if section.alarms:
        parts.append('<ul class="alarms">')
        parts += [
            f"<li>step {step}: {html.escape(message)} ({html.escape(metric)})</li>"
            for step, metric, message in section.alarms
        ]
        parts.append("</ul>")
    if section.rows:
        parts.append("<table><tr><th>held-out measure</th><th>this run</th><th>reference</th></tr>")
        parts += [_row(row) for row in section.rows]
        parts.append("</table>")
    for caption, path in section.pictures.items():
        with open(path, "rb") as f:
            data = base64.b64encode(f.read()).decode("ascii")
        kind = ' class="curves"' if "curve" in path else ""
        parts.append(
            f'<figure><img{kind} alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    parts += [f"<pre>{html.escape(text)}</pre>" for text in section.texts]
    parts += [f'<p class="facts">{html.escape(fact)}</p>' for fact in section.facts]
    return "".join(parts) + "</section>"


def _row(row: MetricRow) -> str:
    references = " · ".join(f"{name} {value:.3f}" for name, value in row.references.items())
    return (
        f"<tr><td>{html.escape(row.name)} ({row.better} is better)</td>"
        f'<td class="value">{row.value:.3f}</td><td>{html.escape(references)}</td></tr>'
    )
