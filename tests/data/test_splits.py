"""A record is in one split, the same one tomorrow; what is alike stays together; nothing leaks."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.checks import prompt_key
from tasks.data.duplicates import Prompt, groups, nearest
from tasks.data.records import Message, Record
from tasks.data.splits import assign, leaks, near_groups
from tasks.errors import InvalidData
from tests.data.small_files import alpaca, write_lines

LONG = "Please tell me in a few plain words how the old harbour crane near the market was repaired last winter"


def near(count):
    """Rows whose prompts differ in a letter at the end."""
    return [{"instruction": f"{LONG}{chr(97 + n)}", "output": f"answer {n}"} for n in range(count)]


def where(found):
    return {
        record.id: name
        for name, records in (("train", found.train), ("validation", found.validation), ("test", found.test))
        for record in records
    }


def test_fractions_are_kept_within_what_chance_allows(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a.jsonl", alpaca(1500)), test_fraction=0.2, validation_fraction=0.1)
    assert 230 <= len(found.test) <= 370
    assert 105 <= len(found.validation) <= 195
    assert len(where(found)) == 1500


def test_new_data_move_no_record_to_another_split(tmp_path, validate):
    before = where(validate(write_lines(tmp_path / "a.jsonl", alpaca(150))))
    rows = alpaca(400)
    random.Random(3).shuffle(rows)
    after = where(validate(write_lines(tmp_path / "b.jsonl", rows)))
    assert {one: after[one] for one in before} == before
    assert set(after.values()) == {"train", "validation", "test"}


def test_the_seed_draws_other_splits(tmp_path, validate):
    path = write_lines(tmp_path / "a.jsonl", alpaca(200))
    assert where(validate(path, seed=1)) != where(validate(path, seed=2))
    assert validate(path, seed=1).noun.digest == validate(path, seed=1).noun.digest


def test_near_duplicates_are_reported_and_share_one_split(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a.jsonl", [*near(12), *alpaca(120)]))
    alike = {record.id for record in found.everything if record.prompt[0].content.startswith(LONG)}
    assert len(alike) == 12
    assert len({where(found)[one] for one in alike}) == 1
    assert found.noun.findings["near_duplicate"] == 11
    assert found.quarantine == []


def test_rows_under_one_long_instruction_are_told_apart_by_their_inputs():
    prompts = [Prompt(main=text, instruction=LONG) for text in ("lost my card", "where is my card", "lostmycard!")]
    assert len(set(groups(prompts, 0.9))) == 3
    assert groups([Prompt("same", LONG), Prompt("same", LONG)], 0.9) == [0, 0]


def test_one_text_under_different_instructions_is_not_a_near_duplicate():
    assert groups([Prompt(LONG, "translate it"), Prompt(LONG, "summarise it")], 0.9) == [0, 1]


def test_chinese_prompts_are_compared_by_their_characters():
    text = "请问高血压患者平时可以吃党参泡水喝吗会不会影响血压的控制呢谢谢医生"
    assert groups([Prompt(text, ""), Prompt(text + "您", ""), Prompt(text[::-1], "")], 0.9) == [0, 0, 2]


def test_many_rows_on_one_text_or_under_one_instruction_stay_fast():
    draw = random.Random(1)
    one_text = [Prompt(LONG, f"{draw.randrange(10**12)} question {n}") for n in range(2000)]
    one_instruction = [Prompt(str(draw.randrange(10**9)), LONG) for _ in range(2000)]
    started = time.monotonic()
    assert len(set(groups(one_text, 0.9))) > 1900
    assert len(set(groups(one_instruction, 0.9))) > 1900
    assert time.monotonic() - started < 20


def test_a_training_prompt_that_is_in_the_test_is_quarantined_and_the_test_stays(tmp_path, validate):
    train = write_lines(tmp_path / "train.jsonl", alpaca(100))
    rows = [{"instruction": row["instruction"].upper(), "output": "other"} for row in alpaca(7)]
    test = write_lines(tmp_path / "test.jsonl", [*rows, *alpaca(20, start=200)])
    found = validate(train, test=[str(test)])
    assert len(found.test) == 27
    assert found.reasons() == {f"train.jsonl:{line}": "leak" for line in range(1, 8)}
    assert found.quarantine[0]["detail"] == "same prompt as held-out test.jsonl:1"
    assert found.noun.findings["leak"] == 7
    assert not {prompt_key(record) for record in found.test} & {prompt_key(record) for record in found.train}


def test_a_near_leak_is_found_at_the_recipes_similarity(tmp_path, validate):
    train = write_lines(tmp_path / "train.jsonl", [*near(1), *alpaca(60)])
    test = write_lines(tmp_path / "test.jsonl", [{"instruction": f"{LONG} today", "output": "b"}, *alpaca(5, 300)])
    assert validate(train, test=[str(test)]).reasons() == {"train.jsonl:1": "leak"}
    assert validate(train, test=[str(test)], near_duplicate_similarity=1.0).reasons() == {}


def test_a_validation_row_that_is_in_the_test_leaves_the_validation(tmp_path, validate):
    train = write_lines(tmp_path / "train.jsonl", alpaca(60))
    validation = write_lines(tmp_path / "validation.jsonl", alpaca(10, start=100))
    test = write_lines(tmp_path / "test.jsonl", alpaca(10, start=105))
    found = validate(train, validation=[str(validation)], test=[str(test)])
    assert (len(found.train), len(found.validation), len(found.test)) == (60, 5, 10)


def test_the_limit_takes_the_same_training_records_whatever_their_order(tmp_path, validate):
    rows = alpaca(300)
    one = validate(write_lines(tmp_path / "a.jsonl", rows), limit=50)
    other = validate(write_lines(tmp_path / "b.jsonl", rows[::-1]), limit=50)
    assert len(one.train) == 50
    assert [record.id for record in one.train] == [record.id for record in other.train]
    assert len(one.test) == len(validate(tmp_path / "a.jsonl").test)


def test_a_split_without_rows_is_refused_with_what_to_change(tmp_path, validate):
    few = write_lines(tmp_path / "few.jsonl", alpaca(3, start=500))
    many = write_lines(tmp_path / "many.jsonl", alpaca(100))
    empty = write_lines(tmp_path / "bad.jsonl", [{"instruction": "a", "output": ""}])
    with pytest.raises(InvalidData, match=r"test split has no rows .* raise data.test_fraction \(now 0.0"):
        validate(many, test_fraction=0.0)
    with pytest.raises(InvalidData, match=r"validation split has no rows .* raise data.validation_fraction"):
        validate(few, test=[str(many)], validation_fraction=0.001, near_duplicate_similarity=1.0)
    with pytest.raises(InvalidData, match=r"no row of data.test passed the checks"):
        validate(many, test=[str(empty)])
    with pytest.raises(InvalidData, match="the training split has no rows"):
        validate(empty, test=[str(many)])


def test_no_validation_is_allowed_when_nobody_asked_for_one(tmp_path, validate):
    assert validate(write_lines(tmp_path / "a.jsonl", alpaca(100)), validation_fraction=0.0).validation == []


WORDS = st.text(st.sampled_from("abc 你好"), min_size=1, max_size=40).filter(str.strip)


def record(prompt, number):
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=f"answer {number}"))
    return Record.of(turns, f"a.jsonl:{number}")


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=40), st.floats(0, 0.49), st.floats(0, 0.49), st.integers(0, 5))
def test_no_prompt_is_in_two_splits_and_every_record_in_one(prompts, test, validation, seed):
    records = [record(prompt, number) for number, prompt in enumerate(prompts)]
    grouped = near_groups(records, 0.9)
    assert sorted(place for places in grouped for place in places) == list(range(len(records)))
    chosen = assign(records, grouped, test, validation, seed)
    split_of: dict[str, set[str]] = {}
    for one, name in zip(records, chosen, strict=True):
        split_of.setdefault(prompt_key(one), set()).add(name)
    assert all(len(names) == 1 for names in split_of.values())
    held_out = [one for one, name in zip(records, chosen, strict=True) if name == "test"]
    rest = [one for one, name in zip(records, chosen, strict=True) if name != "test"]
    assert leaks(rest, held_out, 0.9) == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=30), st.randoms())
def test_groups_do_not_depend_on_the_order_of_the_records(prompts, draw):
    records = [record(prompt, number) for number, prompt in enumerate(prompts)]
    shuffled = draw.sample(records, len(records))

    def as_sets(some):
        return {frozenset(some[place].id for place in places) for places in near_groups(some, 0.8)}

    assert as_sets(records) == as_sets(shuffled)


def test_the_nearest_held_out_prompt_is_the_one_that_is_named():
    held_out = [Prompt("something else entirely", ""), Prompt(LONG, "")]
    assert nearest([Prompt(LONG + "x", ""), Prompt("unrelated words here", "")], held_out, 0.9) == {0: 1}
