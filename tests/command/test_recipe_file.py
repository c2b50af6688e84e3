from pathlib import Path

import pytest
import yaml

from tasks.errors import InvalidRecipe
from tasks.recipe.file import build_recipe, load_recipe
from tasks.recipe.methods import FullMethod, LoraMethod
from tasks.recipe.page import recipe_page
from tasks.recipe.stages import Precision

KINDS = (
    "lora, qlora, lora_8bit, full, ia3, prompt_tuning, prefix_tuning, p_tuning, adaption_prompt, peft, combine, auto"
)
SMALL = "name: desk\ndata:\n  train: [a.jsonl]\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> Path:
        path = Path("x.yaml")
        path.write_text(text, "utf-8")
        return path

    return to_file


def faults(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InvalidRecipe) as refused:
        load_recipe(path, overrides)
    return str(refused.value).splitlines()


def test_a_recipe_of_three_lines_has_every_default(write) -> None:
    recipe = load_recipe(write(SMALL))
    assert recipe.training.method == LoraMethod()
    assert recipe.base.model == "smollm2-135m-instruct"


def test_every_fault_is_in_one_message_from_top_to_bottom(write) -> None:
    path = write("""name: Support Desk
bse: qwen
training:
  method: {type: lora, rnk: 8, rank: 0}
  schedule: lineer
  epochs: 2
  epochs: 3
  max_steps: many
prompt: 5
data:
  train: []
  validation_fraction: 0.7
""")
    assert faults(path) == [
        "x.yaml:1: name: found 'Support Desk'; allowed: text that matches ^[a-z0-9][a-z0-9._-]{0,99}$",
        "x.yaml:2: bse: found 'qwen'; no such key; did you mean 'base'? allowed: name, base, data, prompt, training, "
        "compute, evaluation, merging, serving, promotion, seed",
        "x.yaml:4: training.method.lora.rank: found 0; allowed: at least 1 and at most 1024",
        "x.yaml:4: training.method.lora.rnk: found 8; no such key; did you mean 'rank'? "
        "allowed: type, rank, alpha, dropout, target_modules, rslora, dora, initialisation",
        "x.yaml:5: training.schedule: found 'lineer'; did you mean 'linear'? allowed: linear, cosine, constant",
        "x.yaml:7: training.epochs: found twice, first on line 6; keep one",
        "x.yaml:8: training.max_steps: found 'many'; allowed: a whole number",
        "x.yaml:9: prompt: found 5; allowed: a mapping with keys template, custom_template, system, max_length",
        "x.yaml:11: data.train: found []; allowed: at least 1 long",
        "x.yaml:12: data.validation_fraction: found 0.7; allowed: at least 0 and less than 0.5",
    ]


def test_a_missing_key_names_the_nearest_line_and_what_it_is_for(write) -> None:
    assert faults(write("name: desk\ndata:\n  limit: 5\n")) == [
        "x.yaml:2: data.train: found nothing; this key is needed: "
        "Files, folders, globs, or Hugging Face dataset names (hf:org/name or hf:org/name:split)."
    ]


@pytest.mark.parametrize(
    ("method", "finding"),
    [
        (
            "{type: lorra}",
            f"training.method.type: found 'lorra'; did you mean 'lora'? allowed: {KINDS}",
        ),
        (
            "{rank: 3}",
            f"training.method.type: found nothing; say which kind; allowed: {KINDS}",
        ),
        ("{type: full, rank: 3}", "training.method.full.rank: found 3; no such key; allowed: type"),
    ],
)
def test_a_wrong_kind_of_method_says_which_there_are(write, method: str, finding: str) -> None:
    assert faults(write(SMALL + f"training:\n  method: {method}\n")) == [f"x.yaml:5: {finding}"]


def test_parts_that_contradict_each_other_are_refused(write) -> None:
    (fault,) = faults(write(SMALL + "prompt: {max_length: 4096}\n"))
    assert fault.startswith("x.yaml:1: recipe: training.batch_tokens (1024) is smaller than prompt.max_length (4096)")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("name: [a\n", "x.yaml:2: not YAML: "),
        ("", "x.yaml: the file is empty; "),
        ("- a\n", "x.yaml:1: found ['a']; a recipe is a mapping"),
        ("name: !!python/name:os.system x\n", "x.yaml:1: not YAML: "),
    ],
)
def test_a_file_that_is_no_recipe_says_so(write, text: str, start: str) -> None:
    assert faults(write(text))[0].startswith(start)


def test_a_missing_recipe_names_those_beside_it(write) -> None:
    write(SMALL)
    assert faults(Path("y.yaml")) == ["y.yaml: no such file or directory; there are x.yaml"]


def test_overrides_are_typed_and_reach_what_the_file_leaves_out(write) -> None:
    told = ["training.max_steps=5", "compute.precision=fp32", "base.model=folder", "training.method={type: full}"]
    recipe = load_recipe(write("base: some-model\n" + SMALL), told)
    assert (recipe.training.max_steps, recipe.compute.precision) == (5, Precision.fp32)
    assert (recipe.base.model, recipe.training.method) == ("folder", FullMethod())


def test_a_wrong_override_is_reported_as_an_override(write) -> None:
    assert faults(write(SMALL), "training.max_steps=-1", "seed", "data.train.x=1") == [
        "--set seed: found no key=value; write for example --set training.max_steps=5",
        "--set data.train.x=1: data.train is ['a.jsonl'] and has no keys; set data.train as a whole",
        "--set training.max_steps=-1: training.max_steps: found -1; allowed: at least 0",
    ]


def test_a_recipe_of_the_command_line_is_checked_like_a_file() -> None:
    with pytest.raises(InvalidRecipe, match=r"^command line: data.format: found 'alpacca'; did you mean 'alpaca'\?"):
        build_recipe({"name": "desk", "data": {"train": ["a"], "format": "alpacca"}})


def test_a_shown_recipe_reads_back_as_the_same_recipe_and_explains_every_key(write) -> None:
    recipe = load_recipe(
        write(SMALL), ["prompt.system='yes: \"no\"\n#x'", "data.columns.output=答案", "serving.description='1'"]
    )
    page = recipe_page(recipe)
    assert load_recipe(write(page)) == recipe
    assert yaml.safe_load(page)["training"]["schedule"] == "linear"
    assert "    # Rank of the update matrices.\n    rank: 16\n" in page
    keys = [line for line in page.splitlines() if ":" in line and not line.lstrip().startswith("#")]
    comments = [line for line in page.splitlines() if line.lstrip().startswith("#")]
    assert len(keys) == len(comments) >= 60
