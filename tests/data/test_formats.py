"""Every format becomes messages, is detected and said; a row of the wrong shape is named."""

import json

import pytest

from tasks.errors import InvalidData
from tests.data.small_files import alpaca, hash_words, write_lines

FILLER = alpaca(60)


def conversation(n, *turns, **more):
    return {"conversations": [{"from": who, "value": f"{text} {hash_words(n)}"} for who, text in turns], **more}


def test_alpaca_keeps_instruction_and_input_apart(tmp_path, validate):
    rows = [{"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}, *FILLER]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    prompt = found.record("a.jsonl:1").prompt[0]
    assert (prompt.instruction, prompt.input, prompt.content) == ("Translate.", "Guten Tag", "Translate.\n\nGuten Tag")
    assert found.noun.format == "alpaca (instruction, input, output)"


def test_alpaca_may_call_its_answer_response_and_have_a_system_message(tmp_path, validate):
    rows = [{"instruction": row["instruction"], "response": row["output"], "system": "Be brief."} for row in FILLER]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert found.noun.format == "alpaca (instruction, input, response)"
    assert [message.role for message in found.train[0].messages] == ["system", "user", "assistant"]


def test_chat_messages_keep_every_turn(tmp_path, validate):
    roles = ["system", "user", "assistant", "user", "assistant"]
    rows = [{"messages": [{"role": role, "content": f"{role} {hash_words(n)}"} for role in roles]} for n in range(60)]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert found.noun.format == "messages (messages)"
    assert [message.role for message in found.record("a.jsonl:1").messages] == roles
    assert len(found.record("a.jsonl:1").prompt) == 4


def test_sharegpt_maps_calls_and_observations_and_reports_what_it_does_not_read(tmp_path, validate):
    turns = ("human", "hi"), ("function_call", "{}"), ("observation", "42"), ("gpt", "it is 42")
    found = validate(write_lines(tmp_path / "a.jsonl", [conversation(n, *turns, tools="[]") for n in range(60)]))
    assert found.noun.format == "sharegpt (conversations)"
    assert [message.role for message in found.train[0].messages] == ["user", "assistant", "tool", "assistant"]
    assert found.report["sources"][0]["unused_columns"] == ["tools"]


@pytest.mark.parametrize(
    ("prompt", "answer"), [("prompt", "completion"), ("prompt", "response"), ("question", "answer")]
)
def test_pairs_are_known_by_their_names(tmp_path, validate, prompt, answer):
    rows = [{prompt: row["instruction"], answer: row["output"]} for row in FILLER]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert found.noun.format == f"prompt_completion ({prompt}, {answer})"


def test_columns_are_mapped_with_one_instruction_for_all_and_slices_kept_as_text(tmp_path, validate):
    rows = [{"text": row["instruction"], "label": n % 3, "channel": None if n else 7} for n, row in enumerate(FILLER)]
    mapping = {"input": "text", "output": "label", "instruction_text": "Which label?"}
    found = validate(write_lines(tmp_path / "a.jsonl", rows), columns=mapping, slice_columns=["channel"])
    record = found.record("a.jsonl:1")
    assert found.noun.format == "columns (text, label)"
    assert record.prompt[0].content == f"Which label?\n\n{FILLER[0]['instruction']}"
    assert (record.answer, record.columns) == ("0", {"channel": "7"})
    assert found.record("a.jsonl:2").columns == {"channel": ""}


def test_a_slice_column_that_no_row_has_is_refused(tmp_path, validate):
    with pytest.raises(InvalidData, match="no good row has anything in column 'langauge'"):
        validate(write_lines(tmp_path / "a.jsonl", FILLER), slice_columns=["langauge"])


def test_a_blank_input_under_a_constant_instruction_is_an_empty_prompt(tmp_path, validate):
    rows = [{"text": " ", "label": "a"}, *({"text": row["instruction"], "label": "a"} for row in FILLER)]
    mapping = {"input": "text", "output": "label", "instruction_text": "Which label?"}
    assert validate(write_lines(tmp_path / "a.jsonl", rows), columns=mapping).reasons() == {"a.jsonl:1": "empty"}


def test_a_told_format_is_not_replaced_by_a_guess(tmp_path, validate):
    with pytest.raises(InvalidData, match="sharegpt needs conversations"):
        validate(write_lines(tmp_path / "a.jsonl", FILLER), format="sharegpt")
    with pytest.raises(InvalidData, match=r"data\.columns\.output"):
        validate(write_lines(tmp_path / "a.jsonl", FILLER), format="columns")


def test_sources_of_different_formats_go_together(tmp_path, validate):
    one = write_lines(tmp_path / "one.jsonl", FILLER)
    two = write_lines(tmp_path / "two.jsonl", [conversation(n, ("human", "a"), ("gpt", "b")) for n in range(40)])
    found = validate([one, two])
    assert found.noun.format == "alpaca (instruction, input, output); sharegpt (conversations)"
    assert len(found.everything) == 100


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": "hello"}, "a list of turns expected, found str"),
        ({"conversations": []}, "found nothing"),
        ({"conversations": [{"from": "human"}]}, "'from' and 'value' expected"),
        (conversation(1, ("wizard", "a")), "unknown role 'wizard'"),
        (conversation(1, ("human", "a"), ("gpt", "b"), ("human", "c")), "the last turn is from user, not an answer"),
        (conversation(1, ("gpt", "a"), ("human", "b"), ("gpt", "c")), "begins with assistant"),
        (conversation(1, ("human", "a"), ("system", "b"), ("gpt", "c")), "a system turn after the first"),
        (
            {"conversations": [{"from": "human", "value": ["x"]}, {"from": "gpt", "value": "y"}]},
            "text expected, found list",
        ),
        ({"other": 1}, "found nothing"),
        (["not", "an", "object"], "3 cells where as many"),
        ("text", "an object expected, found str"),
    ],
)
def test_a_row_of_the_wrong_shape_is_quarantined_with_what_is_wrong(tmp_path, validate, row, said):
    good = [conversation(n, ("human", "a"), ("gpt", "b")) for n in range(60)]
    (tmp_path / "a.json").write_text(json.dumps([row, *good]))
    found = validate(tmp_path / "a.json")
    assert found.reasons() == {"a.json:#1": "schema"}
    assert said in found.quarantine[0]["detail"]
