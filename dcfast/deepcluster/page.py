"""The frame of a report: document, style sheet, header, figures and tables, how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["command", "figure", "number", "page", "table"]

# Browsers enforce this: no script runs and nothing is fetched, whatever a file name may contain.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #5c6675; --line: #e1e5eb;
  --s0: #2f6fde; --s1: #bf5f0b; --s2: #2a9d6f; --s3: #b0479c; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12151b; --card: #1a1f28; --ink: #e6e9ef; --soft: #98a2b3; --line: #2c3340;
  --s0: #6ea3ff; --s1: #f2a154; --s2: #5cc99a; --s3: #d98acb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
.lead { color: var(--soft); margin: 6px 0 20px; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 10px; margin: 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dd { margin: 0; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
.facts dt { color: var(--soft); font-size: 12.5px; line-height: 1.35; }
nav { margin: 18px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; }
nav a { color: var(--s0); text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px;
  margin: 18px 0; scroll-margin-top: 12px; }
figure { margin: 0; min-width: 0; }
figcaption, .note { color: var(--soft); font-size: 13px; line-height: 1.45; margin: 4px 0 0; }
.note { margin: 0 0 14px; max-width: 78ch; }
section > h3, .clusters + h3, ul + h3 { margin-top: 18px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 24px 26px; }
.chart { display: block; width: 100%; height: auto; overflow: visible; color: var(--soft);
  stroke-linejoin: round; }
.chart text { font-family: inherit !important; font-variant-numeric: tabular-nums;
  paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 18px 26px; }
.pair + .pair { margin-top: 18px; }
.pixels { width: 100%; height: auto; max-width: 480px; image-rendering: pixelated; display: block; }
.clusters { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; }
.cluster { border: 1px solid var(--line); border-radius: 10px; padding: 8px 10px 10px; }
.cluster figcaption { margin: 0 0 6px; display: flex; gap: 8px; flex-wrap: wrap; align-items: baseline; }
.cluster b { color: var(--ink); }
.share { margin-left: auto; color: var(--s2); font-weight: 600; }
.cluster div { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; }
.thumb { width: 100%; height: auto; border-radius: 4px; display: block; }
.gone { font-size: 11px; color: var(--soft); align-self: center; text-align: center; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 22px 34px;
  align-items: start; }
.scroll { overflow-x: auto; margin-top: 16px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 4px 8px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
.numbers { max-width: 620px; }
.numbers th:not(:first-child), .numbers td { text-align: right; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  margin: 4px 0 14px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
section > p { margin: 0 0 4px; }
footer { color: var(--soft); font-size: 12.5px; padding-bottom: 32px; }
@media print { section { break-inside: avoid-page; } nav { display: none; } }
"""


def number(value: float) -> str:
    """Write a value with four significant digits, thousands separated."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits <= 6 else f"{value:.3g}"


def page(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[tuple[str, str, str]]) -> str:
    """Return the whole document.

    Parameters
    ----------
    title, lead : str
        Heading and the line under it, plain text.
    facts : sequence of (value, name)
        The key numbers, plain text.
    sections : sequence of (anchor, heading, body)
        In order; the bodies are HTML.

    Returns
    -------
    str
        HTML 5 without a reference to anything outside it.
    """
    cards = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for value, name in facts)
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    bodies = "\n".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>' for anchor, heading, body in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><dl class="facts">{cards}</dl>'
        f"<nav>{links}</nav></header>\n<main>\n{bodies}\n</main>\n"
        "<footer>Everything on this page is in this one file.</footer>\n</body>\n</html>\n"
    )


def figure(title: str, body: str, caption: str) -> str:
    """Return a figure; ``body`` and ``caption`` are HTML."""
    return f"<figure><h3>{escape(title)}</h3>{body}<figcaption>{caption}</figcaption></figure>"


def table(title: str, values: Mapping[str, Any]) -> str:
    """Return names and values under a title, all of them plain."""
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(_plain(name, value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<div><h3>{title}</h3><table><tbody>{rows}</tbody></table></div>"


def command(what: str, line: str) -> str:
    """Return a command line under what it does, both of them plain text."""
    return f"<p>{escape(what)}</p><pre><code>{escape(line)}</code></pre>"


def _plain(name: str, value: Any) -> str:
    if value is None:
        return "all" if name == "limit" else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
