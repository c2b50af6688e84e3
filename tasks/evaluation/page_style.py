"""The report page's style, light and dark, and the script of its filter."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1d2126; --soft: #646b75; --rule: #e3e4e0;
  --base: #8a8f98; --candidate: #1f6feb; --champion: #b7791f; --good: #18794e; --bad: #b42318;
  --good-wash: #dff3e6; --bad-wash: #fde7e4; --quiet: #f3f4f1; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1b1f24; --ink: #e6e8ea; --soft: #9aa3ad;
  --rule: #2e343b; --base: #8d96a0; --candidate: #6cabff; --champion: #e0ac57; --good: #62c896; --bad: #ff8f84;
  --good-wash: #173a2a; --bad-wash: #4a211d; --quiet: #22272d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Hiragino Sans GB",
  "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 48px 0 10px; } h3 { font-size: 1rem; margin: 34px 0 8px; }
p { max-width: 90ch; } .soft { color: var(--soft); } .small { font-size: .85rem; }
.verdict { background: var(--card); border: 1px solid var(--rule); border-left: 4px solid var(--candidate);
  border-radius: 8px; padding: 18px 22px; margin: 18px 0; }
.verdict p { margin: 0 0 6px; font-size: 1.15rem; font-weight: 600; } .verdict ul { margin: 0; padding-left: 18px; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 18px;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child > td { border-bottom: 0; } td small { color: var(--soft); white-space: nowrap; margin-left: .35em; }
tr.primary td { font-weight: 600; } tr.primary small { font-weight: 400; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .label { text-anchor: end; } svg .tick { text-anchor: middle; fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); stroke-opacity: .5; }
svg .zero { stroke: var(--ink); stroke-dasharray: 3 3; } svg .whisker { stroke-width: 2.5; stroke-linecap: round; }
svg .base { fill: var(--base); stroke: var(--base); }
svg .candidate { fill: var(--candidate); stroke: var(--candidate); }
svg .champion { fill: var(--champion); stroke: var(--champion); } svg text.value { stroke: none; font-size: 11px; }
svg circle { stroke: var(--card); stroke-width: 1; } svg rect { stroke: none; fill-opacity: .85; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
.dot.base { background: var(--base); } .dot.candidate { background: var(--candidate); }
.dot.champion { background: var(--champion); }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; margin: 12px 0;
  overflow: hidden; }
article header { padding: 12px 16px; background: var(--quiet); white-space: pre-wrap; overflow-wrap: anywhere; }
article header small { display: block; color: var(--soft); margin-bottom: 2px; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.answers > div { padding: 10px 16px 14px; border-top: 1px solid var(--rule); box-shadow: -1px 0 0 var(--rule);
  min-width: 0; }
.answers h4 { margin: 0 0 4px; font-size: .8rem; font-weight: 600; color: var(--soft); }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22em; overflow-y: auto;
  font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono CJK SC", "Noto Sans CJK SC",
  "PingFang SC", "Microsoft YaHei", monospace; }
ins { background: var(--bad-wash); color: var(--bad); text-decoration: none; border-radius: 2px; }
del { background: var(--good-wash); color: var(--good); border-radius: 2px; }
.mark-right { color: var(--good); } .mark-wrong { color: var(--bad); }
details > summary { cursor: pointer; font-weight: 600; padding: 6px 0; }
.filter { display: flex; gap: 10px; flex-wrap: wrap; align-items: center; margin: 10px 0; }
.filter input, .filter select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 6px 10px; } .filter input { flex: 1 1 260px; }
footer { margin-top: 56px; border-top: 1px solid var(--rule); padding-top: 14px; }
@media print { body { background: #fff; } details[open] .filter { display: none; } article { break-inside: avoid; } }
"""

SCRIPT = """
for (const part of document.querySelectorAll("[data-rows]")) {
  const text = part.querySelector("input"), group = part.querySelector("select"), count = part.querySelector("output");
  const rows = [...part.querySelectorAll("article")].map(
    row => [row, row.textContent.toLowerCase(), row.dataset.groups.split(" ")]);
  const show = () => {
    let shown = 0;
    for (const [row, content, groups] of rows) {
      row.hidden = !content.includes(text.value.toLowerCase()) || (group.value && !groups.includes(group.value));
      shown += !row.hidden;
    }
    count.textContent = shown + " of " + rows.length + " rows";
  };
  text.addEventListener("input", show); group.addEventListener("change", show); show();
}
"""
