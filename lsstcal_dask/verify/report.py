"""The report of an acceptance: one HTML file that holds everything, to be read at night and sent by mail."""

import json
from html import escape
from typing import Any, Final

from lsstcal_dask.instrument import Camera
from lsstcal_dask.variables import NOTE
from lsstcal_dask.verify.acceptance import Acceptance, Product
from lsstcal_dask.verify.maps import draw, png
from lsstcal_dask.verify.metric import VERDICTS, Metric, Result, limits_of, number, with_error

__all__ = ["report"]

_STYLE: Final = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2733; background: #f5f6f8; margin: 0 auto; max-width: 1180px;
  padding: 0 1rem 3rem; }
header { padding: 1rem 1.2rem; margin: 1rem 0; border-radius: 8px; color: #fff; }
header h1 { margin: 0 0 .2rem; font-size: 1.45rem; }
header p { margin: .1rem 0; }
h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; }
table { border-collapse: collapse; background: #fff; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .28rem .55rem; border-bottom: 1px solid #e3e6ea; vertical-align: top; }
th { background: #eceff3; position: sticky; top: 0; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
.v { display: inline-block; min-width: 3.2em; text-align: center; border-radius: 4px; color: #fff; font-weight: 600;
  font-size: .8rem; padding: .05rem .3rem; }
.FAIL, .fail { background: #c62828; } .PASS, .pass, .told { background: #2e7d32; }
.WARN, .undecided, .forbidden { background: #b26a00; }
details { background: #fff; border: 1px solid #e3e6ea; border-radius: 6px; margin: .5rem 0; padding: .45rem .8rem; }
summary { cursor: pointer; }
summary .what { color: #5a6675; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0; }
pre, code { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: inherit; }
ul { margin: .3rem 0; }
"""


def report(found: Acceptance, camera: Camera) -> str:
    """HTML page of an acceptance: pictures and style inside, nothing from outside, no scripts."""
    parts = [
        _header(found),
        "<h2>Metrics, worst first</h2>",
        _overview(found),
        _not_measured(found),
        _closed(found),
        "<h2>Every metric on the focal plane</h2>",
        *(_section(result, camera) for result in found.results),
        "<h2>Remarks of the products</h2>",
        *(_remarks(product) for product in found.products),
        "<h2>Where the products come from</h2>",
        _provenance(found),
    ]
    title = f"{found.verdict}: {found.camera}, {found.store}"
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _header(found: Acceptance) -> str:
    newest = max((product.created for product in found.products), default="")[:19].replace("T", " ")
    counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS)
    versions = ", ".join(f"{name} {version}" for name, version in found.software.items())
    bad = [result for result in found.results if result.verdict == "FAIL"]
    names = "; ".join(f"{result.metric.key} ({_where(result, 1) or 'see below'})" for result in bad)
    return (
        f'<header class="{found.verdict}"><h1>{found.verdict} &middot; {escape(found.camera)}</h1>'
        f"<p>{escape(found.store)}</p><p>{counts} metrics; newest product of {escape(newest)} UTC</p>"
        + (f"<p><strong>Failing: {escape(names)}</strong></p>" if names else "")
        + f"<p><small>{escape(versions)}</small></p></header>"
    )


def _overview(found: Acceptance) -> str:
    head = (
        "",
        "product",
        "metric",
        "median",
        "from",
        "to",
        "fails outside",
        "warns outside",
        "out",
        "worst amplifiers",
        "threshold",
    )
    rows = [_row([_cell(c) for c in head], "th")]
    for result in found.results:
        metric, values = result.metric, result.measured
        middle = with_error(result)
        limits = [middle, *(number(float(f(values))) if values.size else "" for f in (min, max))]
        link = f'<a href="#{_anchor(metric)}">{escape(metric.name)}</a>'
        unit = f" <small>{escape(metric.unit)}</small>" if metric.unit else ""
        rows.append(
            "<tr>"
            + f"<td>{_badge(result.verdict)}</td><td>{escape(metric.product)}</td><td>{link}{unit}</td>"
            + "".join(f'<td class="n">{escape(text)}</td>' for text in limits)
            + f'<td class="n">{escape(limits_of(metric, metric.limits))}</td>'
            + f'<td class="n">{escape(limits_of(metric, metric.aim))}</td>'
            + f'<td class="n">{result.off_aim or ""}</td><td>{escape(_where(result, 3))}</td>'
            + f"<td><small>{escape(metric.source)}</small></td></tr>"
        )
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _where(result: Result, most: int) -> str:
    """Worst amplifiers with their values, then how many have none."""
    named = [f"{where} {number(value)}" for where, value in result.worst(most)]
    if lost := result.unmeasured:
        named.append(f"{len(lost)} unmeasured: {', '.join(lost[:most])}{' ...' if len(lost) > most else ''}")
    return "; ".join(named)


def _not_measured(found: Acceptance) -> str:
    if not found.not_measured:
        return ""
    items = "".join(f"<li>{escape(what)}: {escape(why)}</li>" for what, why in found.not_measured.items())
    return f"<h2>Not measured</h2><p>That is no failure.</p><ul>{items}</ul>"


def _closed(found: Acceptance) -> str:
    """Rows of the closed loops that were run for this store."""
    if not found.closed:
        return ""
    rows = [_row([_cell(c) for c in ("", "section", "loop", "target of", "target", "measured", "seeds")], "th")]
    for loop, targets in found.closed.items():
        for one in targets:
            unit = f" <small>{escape(one['unit'])}</small>" if one["unit"] else ""
            badge = f'<span class="v {one["verdict"]}">{one["verdict"]}</span>'
            cells = [_cell(one["section"]), _cell(loop), _cell(one["name"]) + unit]
            rows.append(_row([badge, *cells, *(_cell(one[key]) for key in ("target", "value", "seeds"))]))
    return (
        "<h2>Closed loops</h2><p>Targets measured on the virtual observatory against its truth.</p>"
        f'<div class="scroll"><table>{"".join(rows)}</table></div>'
    )


def _section(result: Result, camera: Camera) -> str:
    """One metric: open where there is something to see."""
    metric = result.metric
    opened = "" if result.verdict == "PASS" else " open"
    unit = f", {metric.unit}" if metric.unit else ""
    limits = "".join(
        f"<li>{word}: {escape(limits_of(metric, pair))}</li>"
        for word, pair in (("fails outside", metric.limits), ("warns outside", metric.aim))
        if limits_of(metric, pair)
    )
    where = _where(result, 20)
    return (
        f'<details id="{_anchor(metric)}"{opened}><summary>{_badge(result.verdict)} '
        f'<strong>{escape(metric.key)}</strong> <span class="what">{escape(metric.prose + unit)}</span></summary>'
        f"{_image(result, camera)}<ul>{limits}<li>threshold: {escape(metric.source)}</li>"
        + f"<li>{result.measured.size} amplifiers measured, {result.off_aim} out"
        + (f": {escape(where)}" if where else "")
        + "</li></ul></details>"
    )


def _image(result: Result, camera: Camera) -> str:
    """Map and histogram; of nothing there is none."""
    if not result.measured.size:
        return "<p>Nothing was measured: no amplifier has a value.</p>"
    data = png(draw(result, camera))
    return f'<img alt="{escape(result.metric.key)}: map and histogram" src="data:image/png;base64,{data}">'


def _remarks(product: Product) -> str:
    warnings = [remark for remark in product.remarks if not remark.startswith(NOTE)]
    notes = [remark for remark in product.remarks if remark.startswith(NOTE)]
    lines = [f"was {product.outdated}: build it again"] if product.outdated else []
    lines += [f"{detector} could not be made: {why}" for detector, why in product.failed.items()]
    lines += [*warnings, *notes]
    opened = " open" if lines and len(lines) <= 12 and product.verdict != "PASS" else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines) or "<li>none</li>"
    return (
        f"<details{opened}><summary>{_badge(product.verdict)} <strong>{escape(product.name)}</strong> "
        f'{escape(product.version)} <span class="what">remarks: {len(lines)}</span></summary>'
        f"<ul>{items}</ul></details>"
    )


def _provenance(found: Acceptance) -> str:
    head = ("product", "version", "made", "valid from", "until", "CCDs", "exposures", "made with", "settings, software")
    rows = [_row([_cell(c) for c in head], "th")]
    for product in found.products:
        settings = json.dumps(product.configuration, indent=1, sort_keys=True)
        versions = ", ".join(f"{name} {version}" for name, version in product.software.items())
        rows.append(
            _row(
                [
                    _cell(product.name),
                    f"<code>{_cell(product.version)}</code>",
                    _cell(product.created[:19]),
                    _cell(product.valid_from),
                    _cell(product.valid_until or "open"),
                    _cell(len(product.detectors)),
                    _fold(str(len(product.exposures)), "\n".join(product.exposures)),
                    "<br>".join(_cell(use) for use in product.made_with),
                    _fold("show", f"{settings}\n{versions}"),
                ]
            )
        )
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _fold(label: str, text: str) -> str:
    return f"<details><summary>{escape(label)}</summary><pre>{escape(text)}</pre></details>"


def _row(cells: list[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _cell(value: Any) -> str:
    return escape(str(value))


def _badge(verdict: str) -> str:
    return f'<span class="v {verdict}">{verdict}</span>'


def _anchor(metric: Metric) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in metric.key)
