"""Every fine-tuning method on the quickstart's records in, docs/methods.md out: cost, score and merge parity, measured.

`python -m benchmarks.methods` runs validate, preprocess, train, evaluate and merge of each method on
SmolLM2-135M-Instruct, about 3 minutes each on two quiet cores. `--only NAME` runs some and keeps what was measured of
the others; `--page` runs none. The page and its plot are functions of `benchmarks/results/methods.json`.
"""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.gpu.page import Results
from benchmarks.methods.page import page, plot
from benchmarks.results_file import Kept, options
from flows.cli.servers import reach_prefect
from flows.environment import choose_waiting, prepare_environment
from tasks.artifacts import Estimate, MergeCandidate, Parity
from tasks.project import ROOT
from tasks.recipe.file import load_recipe
from tasks.recipe.stages import Recipe
from tasks.steps.state import state

TARGET = ROOT / "docs" / "methods.md"
PLOT = ROOT / "docs" / "screenshots" / "methods.svg"
ROWS, ASKED = 240, 64
QV = {"target_modules": ["q_proj", "v_proj"]}
# One learning rate each, from the method's paper or PEFT's examples scaled to a few minutes; none was searched for.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"type": "full"}, 2e-4),
    "lora": ({"type": "lora", "dropout": 0}, 2e-3),
    "lora, the guide's q and v": ({"type": "lora", "rank": 8, "alpha": 16, "dropout": 0, **QV}, 2e-3),
    "dora": ({"type": "lora", "dora": True, "dropout": 0}, 2e-3),
    "rslora": ({"type": "lora", "rslora": True, "dropout": 0}, 1e-3),
    "pissa": ({"type": "lora", "initialisation": "pissa", "dropout": 0}, 1e-3),
    "qlora": ({"type": "qlora", "dropout": 0}, 2e-3),
    "lora_8bit": ({"type": "lora_8bit", "dropout": 0}, 2e-3),
    "ia3": ({"type": "ia3"}, 2e-2),
    "prompt_tuning": ({"type": "prompt_tuning"}, 5e-2),
    "prefix_tuning": ({"type": "prefix_tuning"}, 3e-2),
    "p_tuning": ({"type": "p_tuning"}, 5e-3),
    "adaption_prompt": ({"type": "adaption_prompt"}, 1e-2),
    "loha": ({"type": "peft", "peft_type": "LOHA", "options": {"r": 8, "alpha": 16, **QV}}, 5e-3),
    "oft": ({"type": "peft", "peft_type": "OFT", "options": {"oft_block_size": 32, **QV}}, 2e-3),
    "miss": ({"type": "peft", "peft_type": "MISS", "options": {"r": 32, **QV}}, 1e-3),
}


class Measured(BaseModel):
    """What one method gave; sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    date: str
    learning_rate: float
    rows: int
    steps: int
    trainable: int
    peak_memory: int
    tokens_per_second: float
    saved: int
    base: Estimate
    score: Estimate
    kind: str
    rule: str = ""
    parity: Parity | None = None
    candidates: list[MergeCandidate] = []


RESULTS = Kept(ROOT / "benchmarks" / "results" / "methods.json", Measured)


def recipe_of(name: str) -> Recipe:
    """The quickstart's recipe with another method, and fewer records so that all methods take an hour."""
    method, rate = METHODS[name]
    plain = load_recipe(ROOT / "recipes" / "quickstart.yaml").model_dump(mode="json")
    plain["name"] = f"method-{name.split(',')[0].replace('_', '-')}"
    plain["data"]["limit"], plain["evaluation"]["limit"], plain["evaluation"]["perplexity_rows"] = ROWS, ASKED, 8
    plain["training"] |= {"method": method, "learning_rate": rate}
    return Recipe.model_validate(plain)


def main(words: list[str] | None = None) -> int:
    """Run the methods that are asked for, keep what was measured after each, and write the page."""
    told = options("benchmarks.methods", __doc__, METHODS, words)
    found = RESULTS.read()
    if not told.page:
        choose_waiting(1.0)
        os.environ.setdefault("TUNELINE_HOME", str(ROOT / ".tuneline" / "methods"))
        _share_bases(ROOT / ".tuneline" / "bases", state().root / "bases")
        prepare_environment(state())
        reach_prefect(state())
        from benchmarks.methods.flow import measure

        names = told.only or METHODS
        found = RESULTS.measure(names, lambda name: measure(recipe_of(name)), lambda one: f"{one.score.mean:.3f}")
    ordered = {name: found[name] for name in METHODS if name in found}
    gpu = max((ROOT / "benchmarks" / "results").glob("gpu-*.json"), default=None)
    TARGET.write_text(page(ordered, ROWS, ASKED, Results.read(gpu) if gpu else None), "utf-8")
    PLOT.write_text(plot(ordered), "utf-8")
    print(f"written: {TARGET}")
    return 0


def _share_bases(there: Path, here: Path) -> None:
    """A state folder of its own keeps twenty-odd measured models out of the user's; the base is not unpacked twice."""
    here.parent.mkdir(parents=True, exist_ok=True)
    if there.is_dir() and not here.exists():
        here.symlink_to(there)


if __name__ == "__main__":
    sys.exit(main())
