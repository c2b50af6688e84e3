"""A merged model's record in, its candidates as a table out: Markdown for pages and cards, Parquet for MLflow."""

from tasks.artifacts import MergedModel
from tasks.output.escaping import markdown_text

RULES = {
    "full_precision": "folded into the base in full precision",
    "dequantised": "folded into the base after it was quantised and passed back",
    "requantised": "folded into the quantised layers (for information: needs bitsandbytes)",
}


def markdown(merged: MergedModel) -> str:
    """What was measured, a row a rule, or why nothing was folded; empty for full weights."""
    stays = f"The adapter stays an adapter: {markdown_text(merged.reason)}." if merged.reason else ""
    if not merged.candidates:
        return stays
    lines = [
        f"| rule | mean KL | max KL | equal top-1 | equal answers | {merged.metric} |",
        "| --- |" + " ---: |" * 5,
    ]
    for each in merged.candidates:
        parity, name = each.parity, f"**{each.rule}**" if each.saved else each.rule
        lines.append(
            f"| {name}: {RULES[each.rule]} | {parity.mean_kl:.2e} | {parity.max_kl:.2e} | {parity.top1_agreement:.2%} "
            f"| {parity.answer_agreement:.2%} | {each.score:.3f} |"
        )
    shared = merged.candidates[0].parity
    adapter = f" ({merged.adapter_score:.3f})" if merged.adapter_score is not None else ""
    return (
        "\n".join(lines)
        + f"\n\nAgainst base plus adapter as trained{adapter}, on {shared.prompts} prompts and {shared.tokens:,} "
        f"tokens. KL in nats a token. {stays or 'The rule in bold is the merged model.'}"
    )
