"""Methods beside LoRA through the whole path: what is registered loads, answers, and is promoted."""

import pytest

from tasks.errors import InvalidRecipe, UnknownVersion
from tasks.registry import lookup, smoke_test
from tasks.registry.client import connect

METHODS = {
    "prompt_tuning": ({"type": "prompt_tuning", "virtual_tokens": 16}, 1e-1, "adapter"),
    "qlora": ({"type": "qlora", "rank": 32, "alpha": 64, "dropout": 0.0}, 3e-3, "merged"),
    "lora_8bit": ({"type": "lora_8bit", "rank": 32, "alpha": 64, "dropout": 0.0}, 3e-3, "merged"),
    "prefix_tuning": ({"type": "prefix_tuning", "virtual_tokens": 16}, 1e-1, "adapter"),
    "p_tuning": ({"type": "p_tuning", "virtual_tokens": 16}, 1e-2, "adapter"),
    "adaption_prompt": ({"type": "adaption_prompt"}, 5e-2, "adapter"),
    "ia3": ({"type": "ia3"}, 5e-2, "merged"),
    "dora": ({"type": "lora", "rank": 8, "dora": True, "dropout": 0.0}, 5e-3, "merged"),
    "pissa": ({"type": "lora", "rank": 8, "initialisation": "pissa", "dropout": 0.0}, 3e-3, "merged"),
    "loha": ({"type": "peft", "peft_type": "LOHA", "options": {"r": 8, "target_modules": ["q_proj"]}}, 1e-2, "merged"),
}
QUICK = {"qlora"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in METHODS])
def test_a_method_goes_the_whole_path_and_its_version_answers_as_it_was_scored(name, shop, retrain):
    method, rate, kind = METHODS[name]
    recipe = shop.recipe(f"colours-{name}".replace("_", "-"), training={"method": method, "learning_rate": rate})
    done = retrain(recipe)
    found = lookup.find(shop.uri, recipe.name, version=done.versions.version)
    assert (found.tags["kind"], found.tags["method"]) == (kind, method["type"])
    assert done.merged.kind == kind
    # P-tuning learns too little in these steps to beat its base: its version is there, answers, and waits.
    promoted = {found.version} if name != "p_tuning" else set()
    assert done.decision.promote == bool(promoted)
    for registered in (recipe.name, f"{recipe.name}-adapter"):
        there = lookup.aliases(shop.uri, registered)
        assert {number for alias, number in there.items() if alias == "production"} == promoted
    assert kind == "merged" or done.merged.reason
    rows = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in done.report.examples]
    given = smoke_test.ask(shop.uri, recipe.name, found.version, rows, shop.state.root / "cache")
    assert given == [row["candidate"] for row in done.report.examples]


@pytest.mark.slow
def test_what_cannot_be_merged_within_the_bounds_answers_on_its_quantised_base(shop, retrain):
    method, rate, _ = METHODS["qlora"]
    recipe = shop.recipe(
        "colours-bound", training={"method": method, "learning_rate": rate}, merging={"max_mean_kl": 1e-30}
    )
    done = retrain(recipe)
    assert (done.merged.kind, done.merged.rule, done.merged.parity) == ("adapter", "", None)
    assert "mean KL" in done.merged.reason and len(done.merged.candidates) == 3
    assert done.decision.promote and lookup.aliases(shop.uri, "colours-bound")["production"] == done.versions.version
    card = done.versions.path("MODEL_CARD.md").read_text("utf-8")
    assert "stays an adapter: folded, it answers differently (nearest rule: dequantised)" in card
    rows = [{"messages": [{"role": "user", "content": row["prompt"]}]} for row in done.report.examples]
    given = smoke_test.ask(shop.uri, recipe.name, done.versions.version, rows, shop.state.root / "cache")
    assert given == [row["candidate"] for row in done.report.examples]


@pytest.mark.slow
def test_an_adapter_that_is_not_merged_is_the_champion_of_the_next_release(shop, retrain):
    method, rate, _ = METHODS["prompt_tuning"]
    training = {"method": method, "learning_rate": rate}
    assert retrain(shop.recipe("colours-prompt-tuning", training=training)).decision.promote
    after = retrain(shop.recipe("colours-prompt-tuning"))
    assert after.report.champion == "colours-prompt-tuning/1"
    assert "champion" in after.report.suites["test"].scores
    again = retrain(shop.recipe("colours-prompt-tuning"))
    assert all(step.reused for step in (again.weights, again.report, again.versions))


@pytest.mark.slow
def test_two_registered_adapters_become_one_that_is_gated_like_any_candidate(released, shop, retrain):
    method = {"type": "lora", "rank": 32, "alpha": 64, "dropout": 0.0}
    other = retrain(shop.recipe("colours-second", training={"method": method, "max_steps": 60}))
    addresses = [f"models:/colours-adapter/{released.versions.adapter_version}", str(other.weights.path("weights"))]
    training = {"method": {"type": "combine", "adapters": addresses, "combination": "svd", "weights": [0.8, 0.2]}}
    done = retrain(shop.recipe("colours-combined", training=training))
    assert (done.weights.method, done.weights.steps) == ("combine", 0)
    assert done.merged.parity.mean_kl < 1e-3
    assert lookup.find(shop.uri, "colours-combined", version=done.versions.version).tags["method"] == "combine"
    assert retrain(shop.recipe("colours-combined", training=training)).weights.reused


def test_an_adapter_that_is_not_there_is_refused_before_anything_starts(shop, retrain):
    training = {"method": {"type": "combine", "adapters": ["models:/nobody-adapter@production", "nowhere"]}}
    with pytest.raises(UnknownVersion, match="nobody-adapter@production: no such version"):
        retrain(shop.recipe("colours-nothing", training=training))


def test_a_method_left_open_is_chosen_by_memory_once_and_its_prediction_is_told(shop, retrain):
    training = {"method": {"type": "auto", "memory_gib": 40}, "learning_rate": 3e-3, "max_steps": 20}
    done = retrain(shop.recipe("colours-auto", training=training))
    assert done.weights.method == "full"
    points = connect(shop.uri).get_run(done.versions.mlflow_run_id).data.metrics
    assert points["plan/measured_memory"] == done.weights.peak_memory
    assert abs(points["plan/error"]) < 0.5
    assert retrain(shop.recipe("colours-auto", training=training)).weights.reused


def test_a_method_left_open_that_nothing_fits_is_refused_with_what_each_would_take(shop, retrain):
    training = {"method": {"type": "auto", "memory_gib": 0.01}}
    with pytest.raises(InvalidRecipe, match=r"nothing fits into 0.01 GiB[\s\S]*qlora: "):
        retrain(shop.recipe("colours-none", training=training))
