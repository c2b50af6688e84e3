"""A job file (contender, rows, base) in, what was measured out: `python -m benchmarks.speed.contenders JOB OUT`."""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.flops import training_flop
from benchmarks.speed.jobs import LEARNING_RATE, LORA, NEW_TOKENS, PADDED, Job
from benchmarks.speed.rows import prompt_and_completion

PEAK_SIDE, PEAK_TRIES = 2048, 6


def matrix_peak() -> float:
    """The fp32 matrix product of this machine now, 2,048 square, best of several, in GFLOP/s."""
    one, other = torch.randn(PEAK_SIDE, PEAK_SIDE), torch.randn(PEAK_SIDE, PEAK_SIDE)
    fastest = float("inf")
    for _ in range(PEAK_TRIES):
        started = time.perf_counter()
        torch.mm(one, other)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * PEAK_SIDE**3 / fastest / 1e9


def versions() -> dict[str, str]:
    """The libraries that did the work."""
    return {name: version(name) for name in ("torch", "transformers", "peft")}


def guide(job: Job) -> dict[str, Any]:
    """Each row padded to 512, batches of 4, loss on every token, pads too: `labels = input_ids.copy()`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA)).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    texts = ["".join(prompt_and_completion(row)) + tokenizer.eos_token for row in job.rows]
    batches = [
        tokenizer(texts[start : start + 4], padding="max_length", max_length=PADDED, return_tensors="pt")
        for start in range(0, len(texts), 4)
    ]
    losses = []
    started = time.perf_counter()
    for batch in batches:
        loss = model(**batch, labels=batch["input_ids"].clone()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - started
    processed = sum(batch["input_ids"].numel() for batch in batches)
    return {"tokens": job.tokens, "seconds": seconds, "processed": processed, "labels": processed, "losses": losses}


def ours(job: Job) -> dict[str, Any]:
    """The project's own training of a job over tokenised Parquet; the time from the log: its start to its last step.

    The matrix peak is measured in the same process before and after, and the better one kept.
    """
    from tasks.training import events
    from tasks.training.loop import Training

    with tempfile.TemporaryDirectory() as place:
        examples = write_examples(job, Path(place))
        training = Training(training_job(job, Path(place)))
        before = matrix_peak()
        training.run()
        peak = max(before, matrix_peak())
        log = list(events.read(Path(place, events.EVENTS)))
    steps = [event for event in log if event["event"] == "step"]
    start = next(event for event in log if event["event"] == "start")
    config = json.loads((job.base / "config.json").read_text("utf-8"))
    lengths, labels = [len(example.input_ids) for example in examples], sum(e.trained_tokens for e in examples)
    return {
        "tokens": job.tokens,
        "seconds": steps[-1]["time"] - start["time"],
        "processed": sum(step["tokens"] for step in steps),
        "labels": labels,
        "losses": [step["loss"] for step in steps],
        "gflop": training_flop(config, LORA["r"], lengths, labels) / 1e9,
        "peak_gflop_per_second": peak,
    }


def write_examples(job: Job, folder: Path) -> list[Any]:
    """Tokenise the rows as the preprocess step does, into `train.parquet` and an empty `validation.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from tasks.prompts import PromptRenderer
    from tasks.recipe.stages import PromptRecipe, PromptTemplate

    recipe = PromptRecipe(template=PromptTemplate.guide, max_length=PADDED)
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(job.base, trust_remote_code=False), recipe)
    examples = []
    for row in job.rows:
        asked = {
            "role": "user",
            "content": row["instruction"],
            "instruction": row["instruction"],
            "input": row["input"],
        }
        examples.append(renderer.example([asked, {"role": "assistant", "content": row["output"]}]))
    for name, part in (("train", examples), ("validation", [])):
        columns = {
            key: pa.array([getattr(e, key) for e in part], pa.list_(pa.int32())) for key in ("input_ids", "labels")
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return examples


def training_job(job: Job, folder: Path) -> Any:
    """What the training process is told."""
    from tasks.recipe.methods import LoraMethod
    from tasks.recipe.stages import ComputeRecipe, Precision, Schedule, TrainingRecipe
    from tasks.training.job import TrainingJob

    method = LoraMethod(
        rank=LORA["r"],
        alpha=LORA["lora_alpha"],
        dropout=LORA["lora_dropout"],
        target_modules=LORA["target_modules"],
    )
    recipe = TrainingRecipe(
        method=method,
        batch_tokens=job.pack_tokens,
        learning_rate=LEARNING_RATE,
        schedule=Schedule.constant,
        warmup_ratio=0.0,
        checkpoint_seconds=3600,
    )
    return TrainingJob(
        folder=folder,
        base=job.base,
        base_name=job.base.name,
        trust_remote_code=False,
        compute=ComputeRecipe(precision=Precision.fp32),
        train=folder / "train.parquet",
        validation=folder / "validation.parquet",
        tokenizer=job.base,
        recipe=recipe,
        seed=0,
        origin={},
    )


def guide_answers(job: Job) -> dict[str, Any]:
    """One prompt at a time through `model.generate`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    prompts = [tokenizer(prompt_and_completion(row)[0], return_tensors="pt") for row in job.rows]
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    with torch.no_grad():
        model.generate(**prompts[0], max_new_tokens=2, **settings)
        answers = []
        started = time.perf_counter()
        for prompt in prompts:
            output = model.generate(**prompt, max_new_tokens=NEW_TOKENS, **settings)
            answers.append(output[0, prompt["input_ids"].shape[1] :].tolist())
        seconds = time.perf_counter() - started
    stop = tokenizer.eos_token_id
    plain = [answer[:-1] if answer[-1] == stop else answer for answer in answers]
    return {"tokens": sum(map(len, answers)), "seconds": seconds, "answers": plain}


def our_answers(job: Job) -> dict[str, Any]:
    """The project's own generation, batches of 64."""
    from transformers import AutoTokenizer

    from tasks.modeling.generation import generate
    from tasks.modeling.loading import load_model
    from tasks.prompts import stop_ids

    tokenizer = AutoTokenizer.from_pretrained(job.base, trust_remote_code=False)
    model, stops = load_model(job.base, None, ""), stop_ids(job.base)
    prompts = [tokenizer(prompt_and_completion(row)[0])["input_ids"] for row in job.rows]
    generate(model, prompts[:1], stops, 2, batch_size=1)
    started = time.perf_counter()
    answers = generate(model, prompts, stops, NEW_TOKENS, batch_size=64)
    seconds = time.perf_counter() - started
    new = sum(len(answer.token_ids) + answer.stopped for answer in answers)
    return {"tokens": new, "seconds": seconds, "answers": [answer.token_ids for answer in answers]}


CONTENDERS = {"guide": guide, "ours": ours, "guide-answers": guide_answers, "our-answers": our_answers}


def contend(job: Job) -> dict[str, Any]:
    """Run a job's contender in this process; what it measured, and the versions that did the work."""
    torch.set_num_threads(job.threads)
    return CONTENDERS[job.contender](job) | {"versions": versions()}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(contend(Job.read(Path(sys.argv[1])))), "utf-8")
