"""Requests to a served version: every form MLflow hands on is answered, every limit is said, nothing is shared."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from tasks.registry import versions

TEXTS = ["Where is it?", "Cancel the order, please."]
ROWS = [{"instruction": text} for text in TEXTS]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
CONTEXT = 512
LONG = "a" * 440
"""A prompt that leaves less than a hundred tokens."""


@pytest.fixture(scope="module")
def version(registry, tiny_base):
    """(tracking_uri, folder) of a version without a system message, whose answers have 8 tokens by default."""
    uri, run = registry
    number = versions.register_model(run, "desk", "full", tiny_base, "f" * 64, {}, max_tokens=8)
    return uri, versions.version_folder(uri, "desk", number, Path("unused"))


@pytest.fixture(scope="module")
def model(version):
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(version[1]))


def refusal(model: Any, rows: Any, **params: Any) -> str:
    with pytest.raises(MlflowException) as refused:
        model.predict(rows, params=params)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    return str(refused.value.message)


FORMS: dict[str, Any] = {
    "rows": ROWS,
    "rows of messages": [{"messages": chat} for chat in CHATS],
    "rows that differ": [ROWS[0], {"messages": CHATS[1]}],
    "texts": TEXTS,
    "texts and rows": [TEXTS[0], ROWS[1]],
    "columns": {"instruction": TEXTS},
    "columns of messages": {"messages": CHATS},
    "an array of texts": np.array(TEXTS),
    "columns as arrays": {"instruction": np.array(TEXTS, dtype=object)},
    "a series": pd.Series(TEXTS),
    "a table": pd.DataFrame(ROWS),
    "a table of texts": pd.DataFrame(TEXTS),
    "a table with gaps": pd.DataFrame([ROWS[0], {"messages": CHATS[1]}]),
    "a table of messages": pd.DataFrame({"messages": CHATS}),
    "a row with empty material": [{**ROWS[0], "input": ""}, {**ROWS[1], "input": None}],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_two_questions_gets_the_same_two_answers(model, form):
    expected = [model.predict([row])[0] for row in ROWS]
    assert model.predict(FORMS[form]) == expected
    assert all(expected) and len(set(expected)) == 2


@pytest.mark.parametrize("one", [TEXTS[0], ROWS[0], {"messages": CHATS[0]}])
def test_one_question_may_stand_alone(model, one):
    assert model.predict(one) == model.predict(ROWS[:1])


ASK = {"role": "user", "content": "Where is it?"}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no rows": ([], {}, "No rows"),
    "no columns": ({"instruction": []}, {}, "No rows"),
    "too many rows": (ROWS * 129, {}, "258 rows: at most 256"),
    "a number": ([TEXTS[0], 3.5], {}, "Row 2 is 3.5: give a text"),
    "no question": ([{"input": "only"}], {}, "Row 1 needs 'messages'"),
    "an empty text": ([TEXTS[0], ""], {}, "Row 2: 'instruction' is empty"),
    "a column that is not read": ([{**ROWS[0], "imput": "A-1"}], {}, "Row 1: imput: not read"),
    "two kinds in a row": ([{**ROWS[0], "messages": CHATS[0]}], {}, "Row 1 has 'messages' and 'instruction'"),
    "columns of two lengths": ({"instruction": TEXTS, "input": ["a"]}, {}, "Columns of different lengths"),
    "empty messages": ([{"messages": []}], {}, "Row 1: 'messages' is empty"),
    "an unknown role": ([{"messages": [{**ASK, "role": "user<|end|>"}]}], {}, "'role' is one of system, user"),
    "the assistant last": ([{"messages": [ASK, {"role": "assistant", "content": "a"}]}], {}, "is the assistant's"),
    "parts as content": ([{"messages": [{**ASK, "content": [{"text": "a"}]}]}], {}, "message 1: 'content' is text"),
    "a key in a message": ([{"messages": [{**ASK, "name": "a"}]}], {}, "and nothing else"),
    "more tokens than the context": (["order " * 300], {}, "tokens; this model reads fewer than 512"),
    "more characters than are read": (["a" * 9000], {}, "9,000 characters; at most 8,192 are read"),
    "no new token": (ROWS, {"max_tokens": 0}, "max_tokens is 0"),
    "a temperature that is no number": (ROWS, {"temperature": float("nan")}, "temperature is nan"),
    "an infinite temperature": (ROWS, {"temperature": float("inf")}, "temperature is inf"),
    "a negative temperature": (ROWS, {"temperature": -1.0}, "temperature is -1.0"),
    "a top_p that is no number": (ROWS, {"top_p": float("nan")}, "top_p is nan"),
    "a parameter that is null": (ROWS, {"max_tokens": None}, "max_tokens is null"),
    "nine stop strings": (ROWS, {"stop": list("abcdefghi")}, "9 stop strings: at most 8"),
    "a long stop string": (ROWS, {"stop": ["a" * 65]}, "1 to 64 characters"),
    "an empty stop string": (ROWS, {"stop": [""]}, "1 to 64 characters"),
    "messages that say nothing": ([{"messages": [{**ASK, "content": ""}] * 9000}], {}, "9,000 messages, and this"),
    "what the template writes around messages": ([{"messages": [{**ASK, "content": ""}] * 500}], {}, "characters; at"),
    "half a character": (["order \ud800"], {}, "Row 1: half a character"),
    "half a character in a stop string": (ROWS, {"stop": ["\ud800"]}, "stop: half a character"),
    "a request nested without end": (json.loads("[" * 700 + "]" * 700), {}, "nested deeper"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_answered_is_refused_with_the_reason(model, case):
    rows, params, words = REFUSED[case]
    assert words in refusal(model, rows, **params)


def test_a_refusal_repeats_names_of_a_request_only_as_far_as_they_can_be_read(model):
    for rows in (
        [{**ROWS[0], "k" * 10_000: 1}],
        [{**ROWS[0], **dict.fromkeys(map(str, range(10_000)), 1)}],
        {"instruction": TEXTS, **{f"k{number}": [1] * (number % 3) for number in range(10_000)}},
    ):
        assert len(refusal(model, rows)) < 2000


def test_an_answer_ends_at_the_context_whatever_is_asked_for(model, version):
    inside = model.unwrap_python_model()
    prompts = [inside.prompt_ids(number, row) for number, row in enumerate([LONG, *TEXTS], 1)]
    whole = inside.answers(prompts, 10**9)
    assert CONTEXT - 100 < len(prompts[0]) < CONTEXT
    for prompt, answer in zip(prompts, whole, strict=True):
        ids = inside.generated([prompt], CONTEXT - len(prompt), [], [])[0]
        assert answer == inside.text(ids, [])
    assert model.predict([LONG, *TEXTS], params={"max_tokens": 10**9}) == whole


def test_rows_with_less_room_do_not_shorten_the_answers_beside_them(model):
    together = model.predict([LONG, TEXTS[0]], params={"max_tokens": 120})
    assert together == [model.predict(row, params={"max_tokens": 120})[0] for row in (LONG, TEXTS[0])]
    assert len(together[0]) < len(together[1])


def test_a_seed_gives_the_same_answer_and_no_seed_another_one(model):
    hot = {"temperature": 1.5, "max_tokens": 12}
    seeded = [model.predict(ROWS, params={**hot, "seed": 7}) for _ in range(2)]
    assert seeded[0] == seeded[1] != model.predict(ROWS, params={**hot, "seed": 8})
    assert len({tuple(model.predict(ROWS, params=hot)) for _ in range(3)}) == 3
    same = model.predict([ROWS[0]] * 3, params={**hot, "seed": 7})
    assert len(set(same)) == 3 and same[0] == seeded[0][0]


def test_sampling_leaves_the_process_and_the_requests_beside_it_alone(model):
    hot = {"temperature": 1.5, "max_tokens": 12}
    expected = [model.predict(ROWS, params={**hot, "seed": seed}) for seed in range(6)]
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: model.predict(ROWS, params={**hot, "seed": seed}), range(6)))
    assert together == expected
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tokens_are_drawn_with_the_models_own_probabilities(model):
    inside = model.unwrap_python_model()
    prompt = inside.prompt_ids(1, ROWS[0])
    draws = 4000
    with torch.inference_mode():
        scores = inside.model(torch.tensor([prompt])).logits[0, -1].float() / 0.7
    import runpy

    sampler = runpy.run_path(str(Path(inside.__class__.answers.__code__.co_filename)))["sampler"]
    drawn = [int(sampler(seed, 0, 0.7, 1.0, "cpu")(0.7 * scores[None]).argmax()) for seed in range(draws)]
    seen = torch.bincount(torch.tensor(drawn), minlength=len(scores)) / draws
    assert float((seen - scores.softmax(-1)).abs().sum()) / 2 < 0.12


def test_a_stop_string_is_looked_for_in_the_answer_alone(model):
    text = model.predict(ROWS[0], params={"max_tokens": 40})[0]
    stop = next(character for character in text[3:] if character.isascii() and character.isalpha())
    assert model.predict(ROWS[0], params={"max_tokens": 40, "stop": [stop]})[0] == text[: text.find(stop)]
    # The prompt ends with a line's end; the first half of this stop string is in it.
    assert model.predict(ROWS[0], params={"max_tokens": 40, "stop": ["\n" + text[:1]]})[0] == text


def test_the_limits_are_changed_by_the_model_config(version, monkeypatch):
    import mlflow.pyfunc

    changed = mlflow.pyfunc.load_model(str(version[1]), model_config={"limits": {"rows": 1, "max_tokens": 3}})
    assert "2 rows: at most 1" in refusal(changed, ROWS)
    whole = mlflow.pyfunc.load_model(str(version[1])).predict(ROWS[0], params={"max_tokens": 3})
    assert changed.predict(ROWS[0], params={"max_tokens": 50}) == whole
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"limits": {"stops": 1}}')
    assert "2 stop strings: at most 1" in refusal(mlflow.pyfunc.load_model(str(version[1])), ROWS, stop=["a", "b"])
    monkeypatch.undo()
    for limits, words in (({"row": 1}, "row: known are rows"), ({"rows": 0}, "rows: whole numbers from 1")):
        with pytest.raises(MlflowException, match=words):
            mlflow.pyfunc.load_model(str(version[1]), model_config={"limits": limits})


def test_a_fault_of_the_model_is_a_servers_error_without_its_trace(model, monkeypatch):
    inside = model.unwrap_python_model()
    monkeypatch.setattr(type(inside), "answers", lambda *_: 1 / 0)
    with pytest.raises(MlflowException) as fault:
        model.predict(ROWS)
    body = json.loads(fault.value.serialize_as_json())
    assert fault.value.get_http_status_code() == 500
    assert body["message"] == "The model failed: ZeroDivisionError: division by zero" and "Traceback" not in str(body)


@pytest.fixture(scope="module")
def address(version, tmp_path_factory) -> Iterator[str]:
    """Of a real `mlflow models serve`."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "-m", str(version[1])]
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "-p", str(port)],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=tmp_path_factory.mktemp("serve"),
        start_new_session=True,
    )
    try:
        for _ in range(180):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def post(address: str, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


BODIES: dict[str, Any] = {
    "dataframe_records": {"dataframe_records": ROWS},
    "dataframe_records that differ": {"dataframe_records": [ROWS[0], {"messages": CHATS[1]}]},
    "dataframe_split": {"dataframe_split": {"columns": ["instruction"], "data": [[text] for text in TEXTS]}},
    "inputs as rows": {"inputs": ROWS},
    "inputs that differ": {"inputs": [ROWS[0], {"messages": CHATS[1]}]},
    "inputs as texts": {"inputs": TEXTS},
    "inputs as columns": {"inputs": {"instruction": TEXTS}},
    "inputs as columns of messages": {"inputs": {"messages": CHATS}},
    "instances as rows": {"instances": ROWS},
    "instances of messages": {"instances": [{"messages": chat} for chat in CHATS]},
    "instances as texts": {"instances": TEXTS},
    "instances as columns": {"instances": {"instruction": TEXTS}},
}


@pytest.mark.slow
def test_every_form_of_request_is_answered_over_http(address, model):
    expected = model.predict(ROWS)
    answers = {name: post(address, {**body, "params": {"max_tokens": 8}}) for name, body in BODIES.items()}
    assert answers == {name: (200, {"predictions": expected}) for name in BODIES}
    assert post(address, {"messages": CHATS[0], "max_tokens": 8}) == (200, expected[:1])
    assert post(address, "instruction\n" + "\n".join(f'"{text}"' for text in TEXTS), "text/csv")[0] == 200


@pytest.mark.slow
def test_the_message_of_an_http_error_is_the_reason_alone(address):
    status, body = post(address, {"inputs": [7]})
    assert (status, body["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert body["message"].startswith("Row 1 is 7: give a text")
    for rows, params, words in (
        (["order " * 300], {}, "Row 1: the prompt has "),
        ([{"messages": [{"role": "alien", "content": "a"}]}], {}, "Row 1, message 1: 'role' is one of"),
        (TEXTS, {"stop": [""]}, "stop: every stop string"),
        (TEXTS, {"temperature": float("nan")}, "temperature is nan"),
    ):
        status, body = post(address, {"inputs": rows, "params": params})
        assert status == 400 and body["message"].startswith(words) and "stack_trace" not in body
    status, body = post(address, {"messages": CHATS[0], "stream": True})
    assert (status, body["message"]) == (400, "Row 1: stream: not read; a row has messages, instruction, input.")
