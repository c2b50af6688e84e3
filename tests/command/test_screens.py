import importlib.util
import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from flows.cli import screens
from flows.cli.export import summary
from tasks.artifacts import Basis
from tasks.modeling.exporting import Exported
from tasks.registry.lookup import Version

# importlib mode puts no test folder on the path.
_spec = importlib.util.spec_from_file_location("nouns", Path(__file__).with_name("nouns.py"))
nouns = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(nouns)


def drawn(screen: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(screen)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("champion", [True, False])
def test_the_last_screen_fits_and_says_everything(tmp_path: Path, width: int, champion: bool) -> None:
    text = drawn(
        screens.retrained(nouns.retrained(tmp_path, champion=champion), Path("recipes/quickstart.yaml")), width
    )
    assert max(cell_len(line) for line in text.splitlines()) <= width
    flat = " ".join(text.split())
    for said in (
        "0.910 [0.819, 0.956]",
        "31.4 [28.3, 33.0]",
        "Candidate against base, exact_match: +0.900 [+0.850, +0.940], p = 0.0005; 144 rows won",
        "support-desk-adapter",
        "models:/support-desk@production",
        "PRODUCTION: support-desk v2",
        "1200 train, 150 validation",
        "mlflow models serve -m models:/support-desk@production",
        "tuneline retrain recipes/quickstart.yaml --set evaluation.resamples=5000",
    ):
        assert said.replace(" ", "") in flat.replace(" ", "").replace("│", ""), said
    assert flat.count("asked: My [bold]router[/]") == 3, "three rows, markup in data shown as it is"
    assert "Reused" in flat and "made" in flat
    assert "evaluate │ made │ 61.5 │" in flat, "with what the answers took"
    assert ("0.880 [" in flat) == champion


@pytest.mark.parametrize("width", [80, 140])
def test_a_refusal_is_said_plainly_and_shows_the_way_on(tmp_path: Path, width: int) -> None:
    text = drawn(screens.retrained(nouns.retrained(tmp_path, promote=False), Path("r.yaml")), width)
    assert "NOT PROMOTED: support-desk v2" in text
    assert "✗ not_worse_than_champion: exact_match is 0.300 below" in text
    assert "No serving alias was changed" in text
    assert "models:/support-desk@production" not in text
    assert "tuneline promote support-desk 2 --force --reason" in text


def notices_on(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("! ")]


def test_what_was_cut_not_used_or_not_seen_is_said_on_the_last_screen(tmp_path: Path) -> None:
    done = nouns.retrained(tmp_path)
    assert notices_on(drawn(screens.retrained(done, Path("r.yaml")), 200)) == []
    finding = {"check": "unused_column", "meaning": "column that nothing reads", "count": 7}
    report = {"findings": [{**finding, "offenders": [f"a.jsonl: tool{number}" for number in range(7)]}]}
    (tmp_path / "report.json").write_text(json.dumps(report), "utf-8")
    lengths = {"rows": {"train": 65, "validation": 9}, "truncated": {"train": 32}, "dropped": {"train": 3}}
    done.dataset = done.dataset.model_copy(update={"findings": {"unused_column": 7}})
    done.tokenized = done.tokenized.model_copy(update={**lengths, "max_length": 256})
    done.weights = done.weights.model_copy(update={"steps": 12, "tokens": 8_000})
    lines = notices_on(drawn(screens.retrained(done, Path("r.yaml")), 200))
    assert len(lines) == 4
    assert "tool4; and 2 more" in lines[0] and "tool5" not in lines[0]
    assert "32 of 65 train answers" in lines[1] and "49%" in lines[1] and "256 tokens" in lines[1]
    assert "3 train records were left out" in lines[2]
    assert "12 steps are 8% of one pass" in lines[3] and "raise training.max_steps" in lines[3]
    done.weights = done.weights.model_copy(update={"stopped_early": True})
    (early,) = notices_on(drawn(screens.retrained(done, Path("r.yaml")), 200))[3:]
    assert "early_stopping_patience ended it" in early and "raise" not in early


def test_an_exported_folder_that_lacks_the_system_message_is_said_to(tmp_path: Path) -> None:
    done = Exported(tmp_path, "fp32", 1, 10, 2, 2, 1.0)
    assert "system message" not in summary(done)
    for system, said in (("", ""), ("Answer with [b]colours[/b].", r'send it first: "Answer with \[b]colours\[/b]."')):
        (tmp_path / "origin.json").write_text(json.dumps({"system": system}), "utf-8")
        assert said in summary(done) and ("system message" in summary(done)) == bool(system)


@pytest.mark.parametrize("width", [80, 140])
def test_only_aliases_that_exist_are_named(tmp_path: Path, width: int) -> None:
    done = nouns.retrained(tmp_path, promote=False)
    text = drawn(screens.retrained(done, Path("r.yaml")), width).replace(" ", "")
    assert "models:/support-desk@candidate" in text
    promoted = drawn(screens.retrained(nouns.retrained(tmp_path), Path("r.yaml")), 140)
    assert "production, staging, candidate │ models:/support-desk-adapter@production" in promoted
    assert "models:/support-desk-adapter/2" in text and "support-desk-adapter@" not in text
    bare = done.decision.model_copy(update={"aliases": {}})
    assert screens.aliases_of(bare, "support-desk", 2) == []


def test_a_no_says_what_stays_in_production(tmp_path: Path) -> None:
    def said(number: int) -> str:
        done = nouns.retrained(tmp_path, promote=False, in_production=number)
        return " ".join(drawn(screens.retrained(done, Path("r.yaml")), 140).split())

    assert "NOT PROMOTED: support-desk v2" in said(1) and "production stays v1" in said(1)
    assert "STAYS IN PRODUCTION: support-desk v2" in said(2) and "NOT PROMOTED" not in said(2)
    assert "v2 stays in production; decided on now, it would not have been promoted" in said(2)
    assert "tuneline rollback support-desk --reason" in said(2) and "--force" not in said(2)


def test_a_decision_says_which_policy_and_which_report_it_rests_on(tmp_path: Path) -> None:
    basis = Basis(report="r", report_from="MLflow run 12", policy="/srv/rules.yaml", policy_digest="d")
    decision = nouns.retrained(tmp_path).decision.model_copy(update={"basis": basis})
    assert "policy: /srv/rules.yaml, report: MLflow run 12" in drawn(screens.decision(decision), 140)


def test_the_kept_screen_is_plain_markdown(tmp_path: Path) -> None:
    screen = screens.retrained(nouns.retrained(tmp_path), Path("r.yaml"))
    text = screens.as_markdown(screen, "Last run: support-desk")
    assert text.startswith("# Last run: support-desk\n\n```text\n") and text.endswith("```\n")
    assert "\x1b" not in text and not any(line.endswith(" ") for line in text.splitlines())


def test_a_look_up_shows_tags_as_they_are() -> None:
    tags = {"promoted_because": "[red]better[/]", "digest": "abc"}
    version = Version(name="desk", version=3, run_id="r", source="models:/m-1", tags=tags, description="")
    text = drawn(screens.looked_up(version, "production", "entry [3]"), 80)
    assert "entry [3]" in text
    assert "desk v3 @ production" in text and "[red]better[/]" in text and "models:/m-1" in text
