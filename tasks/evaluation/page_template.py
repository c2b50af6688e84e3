"""The report page as a Jinja template, style and script inside: nothing is fetched, so a sandbox shows it."""

from tasks.evaluation.page_style import SCRIPT, STYLE

MACROS = """
{% macro cell(metric, estimate) %}
{% if estimate %}{{ formatting.number(metric, estimate.mean) }}
<small>{{ formatting.interval(metric, estimate) }}</small>{% endif %}
{% endmacro %}
{% macro shown(row) %}
<article data-groups="{{ row.groups }}">
<header><small>{{ row.id }}{% for name, value in row.columns.items() if value %}
 · {{ name }} {{ value }}{% endfor %}</small>
{{- row.prompt }}</header>
<div class="answers">
<div><h4>Reference</h4><pre>{{ row.reference }}</pre></div>
{% for found in row.answers %}
<div><h4><span class="dot {{ found.who }}"></span>{{ found.who }}
<span class="mark-{{ 'right' if found.right else 'wrong' }}">{{ '✓' if found.right else '✗' }}
{{- ' %.2f'|format(found.score) if 0 < found.score < 1 }}</span>
{% if not found.answer.stopped %} · cut at {{ found.answer.tokens }} tokens{% endif %}</h4>
<pre>{{ found.text or '(nothing)' }}</pre></div>
{% endfor %}
</div>
</article>
{% endmacro %}
"""

SECTION = """
{% for part in sections %}
{% set primary = report.primary_metric %}
<section>
{% if sections|length > 1 %}<h2>Suite {{ part.name }}</h2>{% endif %}
<div class="verdict"><p>{{ part.verdict }}</p><ul>
{% for found in part.primary %}
{% set how = formatting.outcome(found) %}
<li>Candidate: <span class="{{ how }}">{{ how }}</span>{{ formatting.reading(found)[how|length:] }}.</li>
{% endfor %}
</ul></div>
<h3>Scores</h3>
<div class="card"><table><tr><th>Metric</th>
{% for who in part.who %}<th><span class="dot {{ who }}"></span>{{ who }}</th>{% endfor %}
{% for found in part.primary %}<th>against {{ found.against }}</th>{% endfor %}</tr>
{% for metric in part.report.scores.candidate %}
<tr{% if metric == primary %} class="primary"{% endif %}><td>{{ formatting.label(metric) }}</td>
{% for who in part.who %}<td>{{ cell(metric, part.report.scores[who].get(metric)) }}</td>{% endfor %}
{% for other in part.primary %}<td>
{% for found in part.report.comparisons if found.metric == metric and found.against == other.against %}
<span class="{{ formatting.outcome(found) }}">{{ '%+.3f'|format(found.difference.mean) }}</span>
<small>p {{ formatting.p_value(found.p_value) }}</small>{% endfor %}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="soft small">Means over {{ part.report.rows }} rows with {{ '%g'|format(report.confidence * 100) }} %
bootstrap intervals (the exact bound where all rows are 0 or 1);
p of a paired sign-flip test. Lower is better for perplexity (of the reference answer).
{% if part.corpus.candidate.bleu is defined %}Over the whole corpus instead of averaged:
{% for who in part.who %}
{{ who }} BLEU {{ '%.3f'|format(part.corpus[who].bleu) }}{{ ', ' if not loop.last else '.' }}
{% endfor %}
{% endif %}</p>
<h3>Scores with their intervals</h3><div class="card">{{ part.plots.scores }}</div>
{% if part.plots.differences is defined %}
<h3>Candidate minus the others, on the same rows</h3><div class="card">{{ part.plots.differences }}</div>
<p class="soft small">Right of zero the candidate is better. The colour says against whom.</p>{% endif %}
{% if part.plots.slices is defined %}
<h3>Slices, by {{ formatting.label(primary) }}</h3><div class="card">{{ part.plots.slices }}</div>
<details><summary>All slices as a table</summary><div class="card"><table><tr><th>Slice</th><th>Rows</th>
{% for who in part.who %}<th><span class="dot {{ who }}"></span>{{ who }}</th>{% endfor %}</tr>
{% for found in part.report.slices %}<tr><td>{{ found.column }}: {{ found.value }}</td><td>{{ found.rows }}</td>
{% for who in part.who %}<td>{{ cell(primary, found.scores[who].get(primary)) }}</td>{% endfor %}</tr>{% endfor %}
</table></div></details>{% endif %}
<h3>Answers by length, in tokens</h3><div class="card">{{ part.plots.lengths }}</div>
<h3>Where the candidate is worst</h3>
<p class="soft small">In the candidate's answer, <ins>red</ins> is not in the reference;
<del>struck green</del> is, and the answer lacks it.</p>
{% for row in part.worst %}{{ shown(row) }}{% else %}<p>Nowhere: every row has full marks.</p>{% endfor %}
<h3>Where the candidate gained most</h3>
{% for row in part.best %}{{ shown(row) }}{% endfor %}
{% if part.rows %}
<h3>Every row</h3>
<details data-rows><summary>All {{ part.rows|length }} rows, with every answer</summary>
<div class="filter">
<input type="search" placeholder="Find in prompts and answers" aria-label="Find in prompts and answers">
<select aria-label="Which rows"><option value="">all</option><option value="right">candidate right</option>
<option value="wrong">candidate wrong</option><option value="gained">better than another</option>
<option value="lost">worse than another</option></select><output class="soft small"></output></div>
{% for row in part.rows %}{{ shown(row) }}{% endfor %}</details>{% endif %}
</section>
{% endfor %}
"""

TEMPLATE = f"""{MACROS}<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{{{ title }}}}</title><style>{STYLE}</style></head>
<body><main><h1>{{{{ title }}}}</h1>
<p class="soft">{{% for part in sections %}}Suite {{{{ part.name }}}}, {{{{ part.report.rows }}}} rows
{{{{ ', ' if not loop.last }}}}{{% endfor %}}
{{% if report.champion %}} · champion {{{{ report.champion }}}}{{% endif %}}</p>
{SECTION}
<footer class="soft small">Candidate {{{{ report.candidate_digest[:12] }}}}, base {{{{ report.base_digest[:12] }}}}
{{% if report.champion_digest %}}, champion {{{{ report.champion_digest[:12] }}}}{{% endif %}}.
Every row with every answer and metric: rows.parquet.</footer>
</main><script>{SCRIPT}</script></body></html>
"""
