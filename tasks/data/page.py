"""What validation found in, one self-contained HTML page out: no scripts, no files beside it, fit for a sandbox."""

from html import escape

from tasks.data.checks import Finding
from tasks.data.quality import Labels, Lengths
from tasks.data.report import DataReport

SHOWN_LABELS = 24
COLOURS = {"train": "#4c6ef5", "validation": "#20a4a4", "test": "#e8910c", "quarantine": "#c2c8d0"}
SCRIPTS = {"Chinese": "#4c6ef5", "Latin": "#20a4a4", "other": "#c2c8d0"}

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f6f7f9;color:#1f2933;font:15px/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans",
"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:26px;font-weight:650;margin:0 0 4px}h2{font-size:17px;font-weight:620;margin:0 0 14px}
h3{font-size:13px;font-weight:600;margin:0 0 8px;color:#52606d}
.muted{color:#697586}code{font:12.5px ui-monospace,Menlo,Consolas,monospace;color:#52606d}
section{background:#fff;border:1px solid #e6e9ee;border-radius:12px;padding:20px 22px;margin-top:18px;overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin-top:22px}
.tile{background:#fff;border:1px solid #e6e9ee;border-radius:12px;padding:14px 18px;border-top:3px solid var(--c)}
.tile b{display:block;font-size:26px;font-weight:640;line-height:1.25;font-variant-numeric:tabular-nums}
.bar{display:flex;height:12px;border-radius:6px;overflow:hidden;background:#eef0f3;margin:16px 0 4px}
.bar span{display:block}
.legend{display:flex;gap:18px;flex-wrap:wrap;font-size:13px;color:#52606d;margin-top:8px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:600;text-align:left;color:#697586;font-size:12.5px;padding:0 12px 8px 0;white-space:nowrap}
td{padding:8px 12px 8px 0;border-top:1px solid #eef0f3;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;padding-right:20px;white-space:nowrap}
.tag{font-size:12px;padding:1px 8px;border-radius:9px;background:#eef0f3;color:#52606d;white-space:nowrap}
.tag.quarantined{background:#fdecea;color:#a8322a}.tag.dropped,.tag.redacted{background:#fff4de;color:#8a5a00}
details summary{cursor:pointer;color:#3b5bdb;font-size:13px}
ul{margin:6px 0 0;padding-left:18px;font-size:13px;color:#52606d;overflow-wrap:anywhere}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:28px}
svg{display:block;width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#697586}
.labels{display:grid;grid-template-columns:max-content 1fr max-content;gap:5px 12px;align-items:center;font-size:13px}
.labels div{height:10px;border-radius:5px;background:#4c6ef5;opacity:.8;min-width:2px}
.labels span{max-width:320px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.labels em{font-style:normal;font-variant-numeric:tabular-nums;color:#697586;text-align:right}
.record{border:1px solid #eef0f3;border-radius:10px;margin-top:12px;overflow:hidden}
.turn{display:grid;grid-template-columns:92px 1fr;padding:10px 14px}.turn+.turn{border-top:1px solid #eef0f3}
.turn b{font-size:12.5px;font-weight:600;color:#697586;padding-top:1px}.turn.assistant{background:#f3f6ff}
.turn p{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
"""


def page(report: DataReport) -> str:
    """The page as text; every text of the data is escaped."""
    title = f"Data of {escape(report.name)}"
    body = "".join([_head(report), _sources(report), _checks(report), _numbers(report), _samples(report)])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )


def _head(report: DataReport) -> str:
    tiles = "".join(
        f'<div class="tile" style="--c:{COLOURS[name]}"><span class="muted">{name}</span><b>{count:,}</b></div>'
        for name, count in report.rows.items()
    )
    return (
        f'<div class="muted">{report.rows_read:,} rows read · digest <code>{report.digest[:16]}</code> · '
        f"sources <code>{report.source_digest[:16]}</code></div>"
        f'<div class="tiles">{tiles}</div>{_bar(report.rows, COLOURS)}'
    )


def _bar(parts: dict[str, int] | dict[str, float], colours: dict[str, str]) -> str:
    total = sum(parts.values()) or 1
    spans = "".join(
        f'<span style="width:{100 * part / total:.3f}%;background:{colours[name]}"></span>'
        for name, part in parts.items()
    )
    legend = "".join(
        f'<span><i style="background:{colours[name]}"></i>{name} {part / total:.1%}</span>'
        for name, part in parts.items()
    )
    return f'<div class="bar">{spans}</div><div class="legend">{legend}</div>'


def _sources(report: DataReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(source.name)}</td><td>{source.role}</td><td>{source.kind}</td><td>{source.encoding}</td>"
        f'<td>{escape(source.format)}</td><td class="n">{source.rows:,}</td>'
        f'<td class="muted">{escape(", ".join(source.unused_columns)) or "–"}</td></tr>'
        for source in report.sources
    )
    return (
        "<section><h2>Sources</h2><table><tr><th>source</th><th>role</th><th>kind</th><th>encoding</th><th>format</th>"
        f'<th class="n">rows</th><th>columns not used</th></tr>{rows}</table></section>'
    )


def _checks(report: DataReport) -> str:
    rows = "".join(_check(finding) for finding in report.findings if finding.count)
    clean = [finding.check.replace("_", " ") for finding in report.findings if not finding.count]
    table = (
        f'<table><tr><th>check</th><th class="n">rows</th><th>what was done</th><th>where</th></tr>{rows}</table>'
        if rows
        else ""
    )
    rest = f'<p class="muted">Nothing found by: {", ".join(clean)}.</p>' if clean else ""
    return f"<section><h2>Checks</h2>{table}{rest}</section>"


def _check(finding: Finding) -> str:
    name = f'{finding.check.replace("_", " ")}<br><span class="muted">{escape(finding.meaning)}</span>'
    lines = "".join(f"<li>{escape(line)}</li>" for line in finding.offenders)
    some = "show" if len(finding.offenders) >= finding.count else "show the first"
    where = f"<details><summary>{some} {len(finding.offenders)}</summary><ul>{lines}</ul></details>"
    tag = f'<span class="tag {finding.action.split()[0]}">{finding.action}</span>'
    return f'<tr><td>{name}</td><td class="n">{finding.count:,}</td><td>{tag}</td><td>{where}</td></tr>'


def _numbers(report: DataReport) -> str:
    quality = report.quality
    histograms = "".join(
        f"<div><h3>{name}: median {lengths.median:,}, 95 % under {lengths.p95:,}, longest {lengths.longest:,}</h3>"
        f"{_histogram(lengths, colour)}</div>"
        for name, lengths, colour in (
            ("Prompts", quality.prompt_characters, "#4c6ef5"),
            ("Answers", quality.answer_characters, "#20a4a4"),
        )
    )
    labels = _labels(quality.labels) if quality.labels else ""
    return (
        f'<section><h2>Lengths, in characters</h2><div class="two">{histograms}</div></section>'
        f"<section><h2>Letters by script</h2>{_bar(quality.languages, SCRIPTS)}</section>{labels}"
    )


def _histogram(lengths: Lengths, colour: str) -> str:
    width, height, foot, top = 460, 150, 18, 14
    step = width / len(lengths.counts)
    highest = max(lengths.counts)
    drawn = []
    for place, (bound, count) in enumerate(zip(lengths.upper_bounds, lengths.counts, strict=True)):
        tall = (height - foot - top) * count / highest
        left, centre = place * step, (place + 0.5) * step
        low = height - foot - tall
        drawn.append(
            f'<rect x="{left + 2:.1f}" y="{low:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" rx="3" fill="{colour}" '
            f'opacity=".8"><title>{bound // 2:,} to {bound - 1:,} characters: {count:,}</title></rect>'
            f'<text x="{centre:.1f}" y="{low - 4:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text x="{centre:.1f}" y="{height - 4}" text-anchor="middle">&lt;{bound:,}</text>'
        )
    line = f'<line x1="0" x2="{width}" y1="{height - foot}" y2="{height - foot}" stroke="#d9dee5"/>'
    return f'<svg viewBox="0 0 {width} {height}" role="img">{line}{"".join(drawn)}</svg>'


def _labels(labels: Labels) -> str:
    highest = max(labels.counts.values())
    rows = "".join(
        f'<span title="{escape(label)}">{escape(label)}</span><div style="width:{100 * count / highest:.1f}%"></div>'
        f"<em>{count:,}</em>"
        for label, count in list(labels.counts.items())[:SHOWN_LABELS]
    )
    more = len(labels.counts) - SHOWN_LABELS
    rest = f'<p class="muted">and {more} more, down to {min(labels.counts.values()):,} records</p>' if more > 0 else ""
    return (
        f"<section><h2>Balance of {len(labels.counts)} labels: the most frequent is {labels.imbalance:.1f} × the rarest"
        f'</h2><div class="labels">{rows}</div>{rest}</section>'
    )


def _samples(report: DataReport) -> str:
    records = "".join(
        '<div class="record">'
        + "".join(f'<div class="turn {role}"><b>{role}</b><p>{escape(text)}</p></div>' for role, text in turns)
        + "</div>"
        for turns in report.samples
    )
    return f"<section><h2>Three training records</h2>{records}</section>"
