"""Training, evaluation and serving agree token for token on the same prompt."""

import pyarrow.parquet as pq

from tasks.answers import evaluated_version, read_answers, suite_of
from tasks.data.dataset import load_split
from tasks.data.tokenisation import messages_of
from tasks.registry.client import configure


def turns(messages):
    """Messages as a consumer sends them."""
    return [{key: message[key] for key in ("role", "content")} for message in messages]


def test_training_evaluation_and_serving_read_the_same_tokens_and_answer_alike(released, shop):
    configure(shop.uri)
    import mlflow

    served = {name: mlflow.pyfunc.load_model(f"models:/{name}@production") for name in ("colours", "colours-adapter")}
    suite = suite_of(released.dataset.path("test.jsonl"), "test", 0)
    asked = evaluated_version("candidate", released.merged.path("model"), released.merged.model_digest)
    _, renderer = asked.load()
    trained = pq.read_table(released.tokenized.path("train.parquet"))
    records = load_split(released.dataset.path("train.jsonl"))
    assert len(records) == trained.num_rows == 72
    for model in served.values():
        inside = model.unwrap_python_model()
        for record, ids, labels in zip(
            records, trained["input_ids"].to_pylist(), trained["labels"].to_pylist(), strict=True
        ):
            prompt = inside.prompt_ids(1, {"messages": turns(messages_of(record)[:-1])})
            assert prompt == inside.prompt_ids(1, {"instruction": messages_of(record)[0]["content"]})
            assert ids[: len(prompt)] == prompt
            assert set(labels[: len(prompt)]) == {-100} and -100 not in labels[len(prompt) : len(prompt) + 2]
        for row in suite.rows:
            assert inside.prompt_ids(1, {"messages": turns(row.messages)}) == renderer.prompt_ids(row.messages)


def test_the_served_versions_give_the_answers_that_were_scored(released, shop):
    configure(shop.uri)
    import mlflow

    suite = suite_of(released.dataset.path("test.jsonl"), "test", 0)
    key = released.weights.digest
    given = next(
        known
        for folder in shop.finished("answers")
        if (known := _answers(shop, folder)).model_digest == key and known.rows == len(suite.rows)
    )
    scored = [answer.text for answer in read_answers(given)]
    assert len(set(scored)) > 2
    rows = [{"messages": turns(row.messages)} for row in suite.rows]
    for name in ("colours", "colours-adapter"):
        model = mlflow.pyfunc.load_model(f"models:/{name}@production")
        assert model.predict(rows, params={"max_tokens": 8}) == scored


def _answers(shop, folder):
    import json

    from tasks.artifacts import ModelAnswers

    place = shop.state.steps / "answers" / folder
    record = json.loads((place / "manifest.json").read_text("utf-8"))["record"]
    return ModelAnswers.model_validate(record).model_copy(update={"folder": place})
