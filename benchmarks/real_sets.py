"""Run the whole path on real sets that others wrote, and write what was measured to docs/results.md.

`python -m benchmarks.real_sets`: about half an hour on two quiet cores. The sets are read from ../shared/data; without
that folder nothing is run and nothing is written.
"""

import sys
from datetime import UTC, datetime

from flows.cli.servers import reach_prefect
from flows.environment import prepare_environment
from tasks.project import ROOT
from tasks.steps.state import state

DATA = ROOT.parent / "shared" / "data"
RECIPES = [*sorted((ROOT / "benchmarks" / "real").glob("*.yaml")), ROOT / "recipes" / "quickstart.yaml"]
TARGET = ROOT / "docs" / "results.md"
HEAD = """# Results on real sets

Every row below is one `tuneline retrain` of SmolLM2-135M-Instruct through the same seven steps, on two CPU cores in
fp32; made by `python -m benchmarks.real_sets` ({date}). Scores are means over the test rows with their 95 % intervals;
the base is asked in the same template. A step limit keeps each run to minutes: these are no records, they show
that the path works on data that others wrote, and what a few minutes of it give. "Answers" counts the different
answers of the training rows: a set with few of them is soon learned by heart.

| set | format | train / test rows | answers | steps | metric | base | candidate | decision |
| --- | --- | ---: | ---: | ---: | --- | --- | --- | --- |
"""


def main() -> int:
    """Run every recipe and write the table; 0 also where the data is not there."""
    if not DATA.is_dir():
        print(f"{DATA} is not there: the real sets are not run, docs/results.md stays as it is.")
        return 0
    prepare_environment(state())
    reach_prefect(state())
    from flows.retrain import retrain
    from tasks.data.dataset import load_split
    from tasks.recipe.file import load_recipe

    lines, notes = [], []
    for path in RECIPES:
        done = retrain(load_recipe(path))
        suite = done.report.suites["test"]
        shown = dict.fromkeys([done.report.primary_metric, "token_f1", "chrf"])
        for metric in shown:
            cells = [
                f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
                for found in (suite.scores["base"][metric], suite.scores["candidate"][metric])
            ]
            answers = len({record.answer for record in load_split(done.dataset.path("train.jsonl"))})
            rows = f"{done.dataset.rows['train']:,} / {suite.rows:,} | {answers:,} | {done.weights.steps}"
            decision = "promoted" if done.decision.promote else "refused"
            lines.append(
                f"| {done.dataset.name} | {done.dataset.format} | {rows} | {metric} | "
                f"{' | '.join(cells)} | {decision} |"
            )
        findings = ", ".join(f"{count:,} {name}" for name, count in done.dataset.findings.items() if count)
        reason = done.decision.reasons[0]
        notes.append(f"- **{done.dataset.name}**: found in the data: {findings or 'nothing'}. {reason}")
    head = HEAD.format(date=f"{datetime.now(UTC):%Y-%m-%d}")
    TARGET.write_text(head + "\n".join(lines) + "\n\n## What validation found\n\n" + "\n".join(notes) + "\n", "utf-8")
    print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
