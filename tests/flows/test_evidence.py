"""What a promotion rests on: this machine's policy, and a report that is local or fits the version's bytes."""

import json

import pytest

from flows.promote import promote_version
from tasks.errors import InvalidRecipe, WorkRefused
from tasks.promotion.claims import in_ledger
from tasks.promotion.evidence import evidence_for
from tasks.recipe.stages import PromotionTarget
from tasks.registry import client, ledger, lookup, runs, versions
from tasks.steps.state import State
from tasks.steps.store import digest, model_digest


def elsewhere(monkeypatch, shop, folder) -> State:
    """Another machine: a state folder of its own over the same registry."""
    monkeypatch.setenv("TUNELINE_HOME", str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.uri)
    return State(folder)


def test_a_report_of_another_machine_counts_where_it_fits_the_bytes_and_lookup_says_whose_ledger_has_it(
    released, shop, monkeypatch, tmp_path
):
    uri = shop.uri
    there = elsewhere(monkeypatch, shop, tmp_path / "there")
    decision = promote_version("colours", 1, PromotionTarget.candidate)
    assert decision.promote, decision.reasons
    run_id = released.versions.mlflow_run_id
    assert decision.basis.report_from == f"MLflow run {run_id}, whose digests fit the version's bytes"
    assert {check.rule: check.passed for check in decision.checks}["parity"]
    assert in_ledger(lookup.find(uri, "colours", version=1), there).entry["basis"] == decision.basis.model_dump()
    assert "has no such decision" in in_ledger(lookup.find(uri, "colours", version=1), State(tmp_path / "third")).text


class Invented:
    """Versions with real bytes and whatever somebody who may write to the registry says of them."""

    def __init__(self, shop, done, state):
        self.shop, self.state = shop, state
        self.report = json.loads(done.report.path("report.json").read_text("utf-8"))
        self.model = done.merged.path("model")
        self.digests = {
            "weights": model_digest(self.model),
            "model": model_digest(self.model),
            "base": self.report["base_digest"],
        }

    def version(self, kind="full", tags=None, release=None, **changes):
        """A version of `invented` whose report and release say what `changes` and `release` say."""
        mark = digest([kind, tags, release, changes])
        store = client.connect(self.shop.uri)
        run = runs.open_run(self.shop.uri, "tuneline", mark, "invented", {})
        report = {**self.report, "candidate_digest": self.digests["weights"], **changes}
        merge = {"digest": "", "kind": kind, "model_digest": self.digests["model"]}
        store.log_dict(run.run_id, report, "evaluation/report.json")
        store.log_dict(run.run_id, {"merge": merge, "parity": None, **(release or {})}, "release/release.json")
        digests = {**self.digests, **(tags or {})}
        return versions.register_model(run, "invented", kind, self.model, mark, digests)


@pytest.fixture
def invented(released, shop, monkeypatch, tmp_path):
    return Invented(shop, released, elsewhere(monkeypatch, shop, tmp_path / "there"))


def test_the_policy_is_the_promoting_machines_and_never_the_one_that_an_artifact_names(invented, tmp_path, monkeypatch):
    (tmp_path / "lax.yaml").write_text("minimum_scores: {stop_rate: 0.01}\n")
    (tmp_path / "strict.yaml").write_text("minimum_scores: {exact_match: 1}\nmin_rows: 1000\n")
    monkeypatch.chdir(tmp_path)
    number = invented.version(release={"recipe": {"promotion": {"policy": "lax.yaml"}}})
    decision = promote_version("invented", number, policy="strict.yaml")
    assert not decision.promote and lookup.aliases(invented.shop.uri, "invented") == {"candidate": number}
    assert decision.basis.policy == str(tmp_path / "strict.yaml")
    assert promote_version("invented", number).basis.policy.endswith("mlflow/promotion_policy.yaml")
    (entry, *_) = [entry for entry in ledger.entries(invented.state.ledger) if entry["kind"] == "decision"]
    assert entry["basis"] == decision.basis.model_dump()
    with pytest.raises(InvalidRecipe, match=r"none\.yaml"):
        promote_version("invented", number, policy="none.yaml")


LIES = {
    "other weights": ({"candidate_digest": "c" * 64}, "about other weights"),
    "another base": ({"base_digest": "b" * 64}, "its base has the digest"),
    "a champion that is not there": ({"champion": "invented/77"}, "invented/77, is not in the registry"),
    "a champion of another name": ({"champion": "colours/1"}, "colours/1, is not in the registry"),
    "a champion with other weights": ({"champion": "invented/1", "champion_digest": "a"}, "invented/1, is not in"),
    "no suite": ({"suites": {}}, "it has no suite"),
    "another format": ({"secret": 1}, "not a report of this release"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_report_that_does_not_fit_the_bytes_is_no_evidence(invented, case):
    changes, said = LIES[case]
    known = evidence_for("invented", invented.version(**changes), invented.state)
    assert known.report is None and said in known.unverified


@pytest.mark.parametrize(
    ("tag", "said"), [("weights", "the tag weights names the digest f"), ("model", "holds other bytes than were reg")]
)
def test_tags_that_the_bytes_do_not_have_are_refused(invented, tag, said):
    number = invented.version()
    client.connect(invented.shop.uri).set_model_version_tag("invented", str(number), tag, "f" * 64)
    with pytest.raises(WorkRefused, match=said):
        evidence_for("invented", number, invented.state)


def test_a_promotion_without_evidence_moves_nothing_and_names_the_way_on(invented):
    number = invented.version(candidate_digest="c" * 64)
    before = lookup.aliases(invented.shop.uri, "invented")
    with pytest.raises(WorkRefused, match=rf"about other weights.*`tuneline evaluate RECIPE --version {number}`"):
        promote_version("invented", number, PromotionTarget.staging)
    assert lookup.aliases(invented.shop.uri, "invented") == before
    assert ledger.entries(invented.state.ledger) == []


def test_a_merged_version_without_a_parity_on_record_is_refused(invented):
    for number in (invented.version(kind="merged"), invented.version(release={"merge": {}})):
        decision = promote_version("invented", number)
        assert not decision.promote
        assert [check.rule for check in decision.checks if not check.passed] == ["parity"]
