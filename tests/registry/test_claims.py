"""What tags claim, and what this machine's ledger knows of it."""

import pytest

from tasks.promotion.claims import in_ledger
from tasks.registry import ledger
from tasks.registry.lookup import Version
from tasks.steps.state import State


def version(decision="yes: better", description=""):
    tags = {"decision": decision} if decision else {}
    return Version(name="desk", version=3, run_id="r", source="s", tags=tags, description=description)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return State(tmp_path)


def decide(home, **changes):
    entry = {"kind": "decision", "name": "desk", "version": 3, "promote": True, "registry": home.tracking_uri}
    return ledger.append(home.ledger, {**entry, **changes})


def test_a_decision_of_this_machine_is_found_with_its_number(home):
    decide(home, promote=False)
    number = decide(home)
    claim = in_ledger(version(), home)
    assert claim.entry["n"] == number and claim.text.startswith(f"entry {number}, 20")
    assert in_ledger(version("no: worse"), home).entry["n"] == 1


def test_a_password_in_the_address_makes_no_other_registry(home, monkeypatch):
    decide(home, registry="postgresql://old:password@mlflow.internal/registry")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://tuneline:secret@mlflow.internal/registry")
    assert in_ledger(version(), home).entry["n"] == 1


def test_an_entry_of_an_earlier_release_counts(home):
    ledger.append(home.ledger, {"kind": "decision", "name": "desk", "version": 3, "promote": True})
    assert in_ledger(version(), home).entry["n"] == 1


@pytest.mark.parametrize("other", [{"version": 2}, {"name": "other"}, {"promote": False}, {"registry": "elsewhere"}])
def test_a_claim_that_the_ledger_does_not_hold_is_said(home, other):
    decide(home, **other)
    for claimed in (version(), version("", "Promoted to production: it is good\n\nCard.")):
        claim = in_ledger(claimed, home)
        assert claim.entry is None
        assert "the ledger of this machine has no such decision" in claim.text


def test_without_a_claim_nothing_is_said_and_a_damaged_ledger_is(home):
    assert in_ledger(version("", "A card."), home) == (None, "")
    home.ledger.write_text('{"n": 1, "kind": "move"}\nnot json\n')
    assert "ledger.jsonl:2: damaged" in in_ledger(version(), home).text
