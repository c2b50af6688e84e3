"""YAML that stands for more than it says, or for nothing: refused with its line and exit code 2 in every file read."""

import pytest

from flows.cli.main import run
from tasks.errors import InvalidRecipe
from tasks.promotion import policy
from tasks.recipe.file import load_recipe
from tasks.recipe.stages import EvaluationRecipe, MergingRecipe, ServingRecipe, TrainingRecipe

GOOD = "name: desk\ndata:\n  train: [a.jsonl]\n"
LAYERS = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "an alias bomb": ("a: &a [x, x]\n" + LAYERS, 1, "anchors and aliases"),
    "an anchor alone": ("name: desk\nseed: &seed 3\n", 2, "anchors and aliases"),
    "an alias of itself": ("data: &d {again: *d}\n", 1, "anchors and aliases"),
    "a merge key": ("name: desk\ndata:\n  <<: {train: [a]}\n", 3, "merge keys"),
    "deep brackets": ("name: desk\ndata: " + "[" * 3000, 2, "nested deeper than 32 levels"),
    "deep keys": ("".join(f"{' ' * level}k:\n" for level in range(60)), 32, "nested deeper than 32 levels"),
    "very many values": ("name: desk\ndata: [" + "a, " * 25_000 + "]\n", 2, "more than 20,000 values"),
    "a number of 6000 digits": ("name: desk\nseed: " + "9" * 6000, 2, "a number of 6,000 characters"),
    "a hexadecimal number of 5000 digits": ("seed: 0x" + "f" * 5000, 1, "a number of 5,002 characters"),
    "a date that is none": ("name: 2024-13-45\n", 1, "is no timestamp (month must be in 1..12)"),
    "an explicit number that is none": ("name: desk\nseed: !!int abc\n", 2, "is no int"),
    "an explicit date that is none": ("name: !!timestamp abc\n", 1, "is no timestamp"),
    "half a character": ('name: desk\nserving: {description: "\\ud800"}\n', 2, "half a character"),
    "a control character": ("name: desk\nseed: \x07\n", 2, "character U+0007 is not allowed"),
    "a list as a key": ("? [a, b]\n: c\n", 1, "a key is one word"),
    "a tag that makes objects": ("name: !!python/name:os.system x\n", 1, "could not determine a constructor"),
    "bytes that are not UTF-8": (b"name: desk\nseed: \xff\n", 2, "is not UTF-8"),
    "a large file": ("name: " + "a" * 2_000_000, 0, "more than 1 MB"),
}


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("load", [load_recipe, policy.load], ids=["recipe", "policy"])
def test_a_file_that_is_no_plain_yaml_is_refused_with_its_line(tmp_path, case, load):
    content, line, said = BAD[case]
    path = written(tmp_path, "x.yaml", content)
    with pytest.raises(InvalidRecipe) as refused:
        load(path)
    first = str(refused.value).splitlines()[0]
    assert first.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert said in first
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("case", ["an alias bomb", "deep brackets", "a number of 6000 digits", "a date that is none"])
def test_such_a_recipe_ends_with_exit_code_2_and_no_unexpected_error(tmp_path, capsys, case):
    assert run(["show-recipe", str(written(tmp_path, "x.yaml", BAD[case][0]))]) == 2
    shown = capsys.readouterr().err
    assert "Unexpected" not in shown and "InvalidRecipe" in shown


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("*a", "anchors and aliases"),
        ("&d {again: *d}", "anchors and aliases"),
        ("[" * 3000, "nested deeper than 32 levels"),
        ("9" * 6000, "a number of 6,000 characters"),
        ("2024-13-45", "is no timestamp"),
        ('"\\ud800"', "half a character"),
        ("{a: 1, a: 2}", "seed.a: found twice; keep one"),
    ],
)
def test_the_value_of_an_option_is_read_within_the_same_bounds(tmp_path, value, said):
    path = written(tmp_path, "x.yaml", GOOD)
    with pytest.raises(InvalidRecipe) as refused:
        load_recipe(path, [f"seed={value}"])
    first = str(refused.value).splitlines()[0]
    assert first.startswith("--set seed=") and said in str(refused.value)
    assert all(len(line) < 600 for line in str(refused.value).splitlines())


def test_a_key_that_is_there_twice_is_refused_in_a_policy_too_with_both_lines(tmp_path):
    path = written(
        tmp_path,
        "policy.yaml",
        "better_than_base: {}\nmin_rows: 1000000\nslices: {min_rows: 30, min_rows: 1}\nmin_rows: 1\n",
    )
    with pytest.raises(InvalidRecipe) as refused:
        policy.load(path)
    assert str(refused.value).splitlines() == [
        f"{path}:3: slices.min_rows: found twice, first on line 3; keep one.",
        f"{path}:4: min_rows: found twice, first on line 2; keep one.",
    ]


def test_a_fault_of_a_policy_names_its_line_and_a_short_value(tmp_path):
    path = written(tmp_path, "policy.yaml", f"suite: test\nslices:\n  max_drop: [{'a, ' * 500}]\n")
    with pytest.raises(InvalidRecipe) as refused:
        policy.load(path)
    assert str(refused.value).startswith(f"{path}:3: slices.max_drop: found [")
    assert len(str(refused.value)) < len(str(path)) + 200


NUMBERS = [
    "training.epochs",
    "serving.temperature",
    "merging.max_mean_kl",
    "training.max_grad_norm",
    "evaluation.confidence",
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_without_an_end_is_refused_in_every_part_of_a_recipe(tmp_path, key, value):
    with pytest.raises(InvalidRecipe) as refused:
        load_recipe(written(tmp_path, "x.yaml", GOOD), [f"{key}={value}"])
    assert f"{key}: found" in str(refused.value)


def test_a_number_without_an_end_is_refused_among_the_options_of_peft_too(tmp_path):
    method = "{type: peft, peft_type: LOHA, options: {r: 4, rank_dropout: .inf}}"
    with pytest.raises(InvalidRecipe, match=r"options\.rank_dropout: found inf"):
        load_recipe(written(tmp_path, "x.yaml", GOOD), [f"training.method={method}"])


def test_no_stage_of_a_recipe_takes_an_infinite_number():
    for stage in (TrainingRecipe, EvaluationRecipe, MergingRecipe, ServingRecipe, policy.PromotionPolicy):
        assert stage.model_config["allow_inf_nan"] is False


def test_terminal_escapes_of_a_key_are_written_out(tmp_path, capsys):
    path = written(tmp_path, "x.yaml", GOOD + '"\\e]0;evil\\a": 1\n')
    assert run(["show-recipe", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and "\x07" not in shown
    assert "\\u001b]0;evil\\u0007" in shown
