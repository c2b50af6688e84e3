"""The support desk: files are what the generator writes, splits share nothing, the dirt is counted."""

import importlib.util
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "examples" / "support_desk"
HIGH = re.compile(r"urgent|\basap\b|immediately|right (now|away)|\btoday\b|急|马上|尽快")
LOW = re.compile(r"\brush\b|\bhurry\b|\bwhenever\b|take your time|慢慢|有空")
SPLITS = ("train", "test", "october", "november")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("support_desk_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(generator: ModuleType) -> tuple[dict[str, list[str]], list[str]]:
    return generator.build()


@pytest.fixture(scope="module")
def sentences() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "phrasings.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clean(built: tuple[dict[str, list[str]], list[str]]) -> dict[str, list[dict[str, str]]]:
    files, kinds = built
    rows = {name: [json.loads(line) for line in files[f"{name}.jsonl"]] for name in SPLITS[1:]}
    marked = zip(files["train.jsonl"], kinds, strict=True)
    return rows | {"train": [json.loads(line) for line, kind in marked if kind == "clean"]}


def shingles(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)}


def close_pairs(one: list[dict[str, str]], other: list[dict[str, str]]) -> list[tuple[str, str]]:
    def prompts(rows: list[dict[str, str]]) -> list[tuple[str, set[str]]]:
        return [(row["input"], shingles(f"{row['instruction']}\n\n{row['input']}".casefold())) for row in rows]

    ours, theirs = prompts(one), prompts(other)
    return [(a, b) for a, x in ours for b, y in theirs if len(x & y) >= 0.9 * len(x | y)]


def answers(rows: list[dict[str, str]]) -> list[dict[str, str | None]]:
    return [json.loads(row["output"]) for row in rows]


def test_the_files_are_what_the_generator_writes_byte_for_byte(built):
    files, _ = built
    assert {path.name for path in FOLDER.glob("*.jsonl")} == set(files)
    for name, lines in files.items():
        assert (FOLDER / name).read_bytes() == ("\n".join(lines) + "\n").encode(), name


def test_the_files_have_the_sizes_and_the_share_of_chinese_that_the_readme_says(built, clean):
    files, _ = built
    readme = dict(re.findall(r"\| `(\w+\.jsonl)` \| (\d+) \|", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert {name: int(count) for name, count in readme.items()} == {name: len(lines) for name, lines in files.items()}
    assert {name: len(rows) for name, rows in clean.items()} == {
        "train": 912,
        "test": 192,
        "october": 192,
        "november": 152,
    }
    for name, rows in clean.items():
        assert 0.1 < sum(row["language"] == "zh" for row in rows) / len(rows) < 0.13, name


def test_the_record_that_the_readme_shows_is_in_the_training_file(built):
    shown = re.findall(r"```json\n(.*)\n```", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(shown) == 1
    assert shown[0] in built[0]["train.jsonl"]


def test_products_and_order_numbers_of_the_test_split_are_in_no_training_file(clean, sentences):
    def values(name: str, key: str) -> set[str | None]:
        return {answer[key] for answer in answers(clean[name])} - {None}

    for name in ("train", "october", "november"):
        assert not values("test", "product") & values(name, "product")
        assert not values("test", "order") & values(name, "order")
    assert not values("train", "product") & values("october", "product")
    assert len(values("train", "product")) >= 250
    assert len(values("test", "product")) >= 15
    named = {split: set(sentences[split]["products"]["en"]) for split in SPLITS}
    new = {split: len(products - named["train"]) for split, products in named.items()}
    assert new == {"train": 0, "test": 20, "october": 12, "november": 5}
    orders = [answer["order"] for name in SPLITS for answer in answers(clean[name]) if answer["order"]]
    assert len(set(orders)) == len(orders) > 1000


def test_no_sentence_is_in_two_splits_and_training_has_many(sentences, generator):
    for slot in ("openers", "closings", "orders", "orders_first", "high", "low"):
        counted = Counter(text for split in SPLITS for texts in sentences[split][slot].values() for text in texts)
        assert max(counted.values()) == 1, (slot, counted.most_common(2))
    problems = [
        (split, intent, language, text)
        for split in SPLITS
        for intent in generator.INTENTS
        for language in ("en", "zh")
        for text in sentences[split]["problems"][intent][language]
    ]
    assert max(Counter(re.sub(r"\W", "", text).casefold() for *_, text in problems).values()) == 1
    counts = Counter(problem[:3] for problem in problems)
    sizes = {("train", "en"): 50, ("train", "zh"): 12, ("test", "en"): 9, ("test", "zh"): 4}
    sizes |= {("october", "en"): 11, ("october", "zh"): 4, ("november", "en"): 8, ("november", "zh"): 2}
    for (split, language), least in sizes.items():
        assert all(counts[split, intent, language] >= least for intent in generator.INTENTS), (split, language)


def test_no_prompt_of_one_split_is_nearly_a_prompt_of_another(clean):
    for one, other in combinations(SPLITS, 2):
        assert close_pairs(clean[one], clean[other]) == [], (one, other)


def test_an_answer_is_compact_json_whose_facts_stand_in_the_message(clean, generator):
    for rows in clean.values():
        for row, answer in zip(rows, answers(rows), strict=True):
            assert list(answer) == ["intent", "product", "order", "priority"]
            assert row["output"] == json.dumps(answer, separators=(",", ":"))
            assert row["instruction"] == "Ticket to JSON."
            assert answer["intent"] in generator.INTENTS
            assert (answer["product"] is None) == (answer["intent"] == "login")
            assert all(answer[key] is None or answer[key] in row["input"] for key in ("product", "order"))
            assert (answer["order"] is None) == (not re.search(r"\d", row["input"])), row["input"]


def test_the_priority_follows_from_the_words_of_the_message(clean):
    seen = Counter()
    for rows in clean.values():
        for row, answer in zip(rows, answers(rows), strict=True):
            text = row["input"].casefold()
            assert not (LOW.search(text) and HIGH.search(text)), text
            assert answer["priority"] == ("low" if LOW.search(text) else "high" if HIGH.search(text) else "normal"), (
                text
            )
            seen[answer["priority"]] += 1
    assert min(seen.values()) > 300


def test_every_intent_is_as_frequent_as_any_other(clean):
    for rows in clean.values():
        assert len(set(Counter(answer["intent"] for answer in answers(rows)).values())) == 1


def test_chinese_messages_are_short(clean):
    lengths = [len(row["input"]) for rows in clean.values() for row in rows if row["language"] == "zh"]
    assert len(lengths) == 176
    assert max(lengths) <= 25


def test_the_dirt_is_counted_by_kind_in_the_readme(built):
    _, kinds = built
    table = (FOLDER / "README.md").read_text(encoding="utf-8").partition("## The bad lines")[2]
    told = {kind: int(count) for kind, count in re.findall(r"^\| ([\w -]+?) \| (\d+) \|", table, re.MULTILINE)}
    counted = Counter(kinds)
    assert counted.pop("clean") == 912
    assert told == counted
    assert told == {
        "empty output": 14,
        "exact duplicate": 14,
        "near duplicate": 12,
        "contradictory answers": 12,
        "broken encoding": 9,
        "over-long": 4,
        "e-mail address": 6,
        "card number": 4,
        "broken JSON": 1,
    }
    assert 0.07 < sum(counted.values()) / len(kinds) < 0.09


def luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def test_each_kind_of_dirt_can_be_found_in_the_file_by_its_own_sign(built):
    files, kinds = built
    found = Counter()
    prompts: dict[str, set[str]] = {}
    for line, kind in zip(files["train.jsonl"], kinds, strict=True):
        try:
            row = json.loads(line)
        except ValueError:
            found["broken JSON"] += kind == "broken JSON"
            continue
        text = row["input"]
        numbers = [re.sub(r"\D", "", number) for number in re.findall(r"\b\d[\d -]{11,21}\d\b", text)]
        found["empty output"] += not row["output"]
        found["over-long"] += len(text) > 2000
        found["broken encoding"] += bool(re.search("Ã.|\ufffd", text))
        found["e-mail address"] += "@" in text
        found["card number"] += any(luhn(number) for number in numbers)
        prompts.setdefault(text, set()).add(row["output"])
    found["exact duplicate"] = sum(count - 1 for count in Counter(files["train.jsonl"]).values())
    found["contradictory answers"] = sum(len(told) for told in prompts.values() if len(told) > 1)
    expected = Counter(kinds)
    assert found == {kind: expected[kind] for kind in found}
    assert len(found) == 8


def test_a_near_duplicate_is_one_slip_from_exactly_one_clean_record(built, clean):
    files, kinds = built
    near = [
        json.loads(line) for line, kind in zip(files["train.jsonl"], kinds, strict=True) if kind == "near duplicate"
    ]
    assert len(close_pairs(near, clean["train"])) == len(near) == 12
    assert close_pairs(clean["train"][:300], clean["train"][300:]) == []


def test_no_mislabelled_record_keeps_its_own_answer(generator, sentences):
    tickets = generator.Writer("check", sentences["train"], [], set()).tickets(4, 1)
    given = [json.loads(line)["output"] for line in generator.shuffled_answers(tickets)]
    own = [ticket.answer for ticket in tickets]
    assert sorted(given) == sorted(own)
    assert not any(one == other for one, other in zip(given, own, strict=True))


def test_the_order_numbers_in_the_mislabelled_answers_are_not_those_of_the_messages(built):
    rows = [json.loads(line) for line in built[0]["mislabelled.jsonl"]]
    orders = [(answer["order"], row["input"]) for row, answer in zip(rows, answers(rows), strict=True)]
    assert len(rows) == 304
    assert not any(order in text for order, text in orders if order)
