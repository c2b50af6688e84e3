"""The eight scenarios' recipes in, docs/scenarios.md out: base and candidate before and after, as measured.

`python -m benchmarks.scenarios` runs each recipe to its decision, about 3 minutes each on two quiet cores, without a
network once the base is unpacked. `--only NAME` runs some and keeps what was measured of the others; `--page` runs
none. The page is a function of `benchmarks/results/scenarios.json` and of the scenarios' own READMEs.
"""

import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from benchmarks.results_file import Kept, options
from flows.cli.servers import reach_prefect
from flows.environment import choose_waiting, prepare_environment
from tasks.artifacts import Estimate
from tasks.evaluation.formatting import label
from tasks.project import ROOT
from tasks.recipe.file import load_recipe
from tasks.steps.state import state

if TYPE_CHECKING:
    from flows.retrain import Retrained
    from tasks.recipe.stages import Recipe

TARGET = ROOT / "docs" / "scenarios.md"
SCENARIOS = (
    "code-generation",
    "medical",
    "formal-style",
    "question-answering",
    "summarisation",
    "translation",
    "law",
    "finance",
)
SHOWN_ROWS = 3
SHOWN_METRICS = 3
HEAD = """# The scenarios

Eight recipes in [`recipes/`](../recipes/README.md), each with records of our own making in
[`examples/`](../examples/README.md), each run from records to decision on SmolLM2-135M-Instruct in fp32; made by
`python -m benchmarks.scenarios`. Scores are means over test rows with their 95 % intervals; base and candidate answer
the same rows in the same template. The test rows were fixed before any training. The rows shown are the first of each
suite, whatever came of them. Seconds are of a machine that did other work beside. These are small models trained for
minutes: each section says what they learn, and what the same recipe needs to be of use.

| scenario | metric | base | candidate | gain | decision |
| --- | --- | ---: | ---: | ---: | --- |
"""


class Row(BaseModel):
    """One test row and what both models answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt: str
    reference: str
    base: str
    candidate: str


class Slice(BaseModel):
    """The primary metric on the test rows that share a trait."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    trait: str
    rows: int
    base: Estimate
    candidate: Estimate


class Measured(BaseModel):
    """What one run of a scenario's recipe gave; `seconds` are those of all steps, where none was found done."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    date: str
    method: str
    train_rows: int
    test_rows: int
    steps: int
    tokens: int
    training_seconds: float
    seconds: float | None
    primary: str
    scores: dict[str, dict[str, Estimate]]
    gain: Estimate
    slices: list[Slice]
    rows: list[Row]
    promoted: bool
    reasons: list[str]


RESULTS = Kept(ROOT / "benchmarks" / "results" / "scenarios.json", Measured)


def folder_of(name: str) -> Path:
    """Where a scenario's records and its README are."""
    return ROOT / "examples" / name.replace("-", "_")


def measure(recipe: "Recipe") -> Measured:
    """Run a recipe to its decision."""
    from flows.retrain import retrain

    started = time.monotonic()
    done = retrain(recipe)
    seconds = time.monotonic() - started
    steps = (done.dataset, done.tokenized, done.weights, done.report, done.merged, done.versions)
    return measured(done, None if any(step.reused for step in steps) else round(seconds, 1))


def measured(done: "Retrained", seconds: float | None) -> Measured:
    """What of a finished retraining goes on the page."""
    suite, primary, weights = done.report.suites["test"], done.report.primary_metric, done.weights
    metrics = dict.fromkeys([primary, *list(suite.scores["candidate"])[:SHOWN_METRICS], "stop_rate"])
    gain = next(one for one in suite.comparisons if (one.metric, one.against) == (primary, "base"))
    return Measured(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        method=weights.method,
        train_rows=done.tokenized.rows["train"],
        test_rows=suite.rows,
        steps=weights.steps,
        tokens=weights.tokens,
        training_seconds=round(weights.seconds, 1),
        seconds=seconds,
        primary=primary,
        scores={
            "base": {metric: suite.scores["base"][metric] for metric in metrics},
            "candidate": {metric: suite.scores["candidate"][metric] for metric in metrics},
        },
        gain=gain.difference,
        slices=[
            Slice(
                trait=f"{part.column}: {part.value}",
                rows=part.rows,
                base=part.scores["base"][primary],
                candidate=part.scores["candidate"][primary],
            )
            for part in suite.slices
        ],
        rows=first_rows(done.report.path("rows.parquet")),
        promoted=done.decision.promote,
        reasons=done.decision.reasons,
    )


def first_rows(path: Path) -> list[Row]:
    """The first rows of the suite, in its own order: chosen by nobody."""
    import pyarrow.parquet as pq

    names = {"prompt": "prompt", "reference": "reference", "base": "base_answer", "candidate": "candidate_answer"}
    found = pq.read_table(path, columns=list(names.values())).slice(0, SHOWN_ROWS).to_pylist()
    return [Row(**{key: row[column] for key, column in names.items()}) for row in found]


def page(found: dict[str, Measured]) -> str:
    """The whole page; scenarios without a measurement are left out."""
    names = [name for name in SCENARIOS if name in found]
    lines = [
        f"| [{title(name)}](#{title(name).lower().replace(' ', '-')}) | {label(one.primary)} | "
        f"{one.scores['base'][one.primary].mean:.3f} | {one.scores['candidate'][one.primary].mean:.3f} | "
        f"{spread(one.gain, '+')} | {'promoted' if one.promoted else 'refused'} |"
        for name, one in ((name, found[name]) for name in names)
    ]
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(section(name, found[name]) for name in names)


def title(name: str) -> str:
    """The heading of a scenario's README."""
    return folder_of(name).joinpath("README.md").read_text("utf-8").partition("\n")[0].removeprefix("# ")


def section(name: str, one: Measured) -> str:
    """What a scenario is, its scores, three rows, the decision, and what to expect."""
    readme = folder_of(name).joinpath("README.md").read_text("utf-8")
    about = readme.split("\n\n")[1]
    expect = readme.partition("## What to expect\n\n")[2].strip()
    scores = [
        f"| {label(metric)} | {spread(one.scores['base'][metric])} | {spread(one.scores['candidate'][metric])} |"
        for metric in one.scores["candidate"]
    ]
    slices = [
        f"| {part.trait} ({part.rows} rows) | {spread(part.base)} | {spread(part.candidate)} |" for part in one.slices
    ]
    whole = f"; all seven steps {one.seconds:.0f} s" if one.seconds else ""
    rows = [
        f"| {cell(row.prompt)} | {cell(row.reference)} | {cell(row.base)} | {cell(row.candidate)} |" for row in one.rows
    ]
    reasons = "\n".join(f"- {reason}" for reason in dict.fromkeys(one.reasons))
    return f"""## {title(name)}

{about}

[Recipe](../recipes/{name}.yaml), [records](../examples/{folder_of(name).name}/README.md),
[twin for a GPU](../recipes/gpu/{name}.yaml). {one.method}, {one.train_rows} training rows, {one.steps} steps over
{one.tokens:,} tokens in {one.training_seconds:.0f} s{whole} ({one.date}).

| {one.test_rows} test rows | base | candidate |
| --- | --- | --- |
{chr(10).join(scores + slices)}

| asked | wanted | base | candidate |
| --- | --- | --- | --- |
{chr(10).join(rows)}

**{"Promoted" if one.promoted else "Refused"}.**

{reasons}

{expect}
"""


def spread(estimate: Estimate, sign: str = "") -> str:
    """A mean with its interval."""
    return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def cell(text: str, longest: int = 240) -> str:
    """A text as one table cell: set as code, its line breaks shown, cut where it is long."""
    line = re.sub(r"\s*\n\s*", " ⏎ ", text.strip()).replace("|", "\\|").replace("`", "'")
    return f"`{line if len(line) <= longest else line[: longest - 1] + '…'}`" if line else "(nothing)"


def main(words: list[str] | None = None) -> int:
    """Run the scenarios that are asked for, keep what was measured after each, and write the page."""
    told = options("benchmarks.scenarios", __doc__, SCENARIOS, words)
    found = RESULTS.read()
    if not told.page:
        choose_waiting(1.0)
        prepare_environment(state())
        reach_prefect(state())
        found = RESULTS.measure(
            told.only or SCENARIOS,
            lambda name: measure(load_recipe(ROOT / "recipes" / f"{name}.yaml")),
            lambda one: "promoted" if one.promoted else "refused",
        )
    TARGET.write_text(page(found), "utf-8")
    print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
