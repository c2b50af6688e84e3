"""One contender, rows and a base in, what it measured out: `python -m benchmarks.contenders NAME ROWS BASE OUT`."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

THREADS = 2
NEW_TOKENS = 24
GUIDE_PROMPTS = 12
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
Rows = Sequence[dict[str, str]]


def texts(row: dict[str, str]) -> tuple[str, str]:
    """Prompt and completion in the guide's form."""
    given = f"输入：{row['input']}\n" if row["input"] else ""
    return f"指令：{row['instruction']}\n{given}输出：", row["output"]


def versions() -> str:
    """The libraries that did the work."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))


def tokens_of(rows: Rows, base: Path) -> int:
    """Real tokens: prompt, completion and stop token of every row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    return sum(len(tokenizer(text)["input_ids"]) for row in rows for text in texts(row)) + len(rows)


def peak(_rows: Rows, _base: Path) -> dict[str, Any]:
    """The machine's fp32 matrix product, 2,048 square, best of some, GFLOP/s."""
    one, other = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    for _ in range(12):
        started = time.perf_counter()
        torch.mm(one, other)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - started) / 1e9)
    return {"gflops": best}


def guide(rows: Rows, base: Path) -> dict[str, Any]:
    """Padded to 512, batches of 4, loss on every token."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    full = ["".join(texts(row)) + tokenizer.eos_token for row in rows]
    batches = [
        tokenizer(full[start : start + 4], padding="max_length", truncation=True, max_length=512, return_tensors="pt")
        for start in range(0, len(full), 4)
    ]
    started = time.perf_counter()
    for batch in batches:
        model(**batch, labels=batch["input_ids"].clone()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"tokens": tokens_of(rows, base), "seconds": time.perf_counter() - started, "versions": versions()}


def ours(rows: Rows, base: Path) -> dict[str, Any]:
    """The project's own training: a job over tokenised Parquet, its steps timed as its log has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from tasks.modeling.job import TrainingJob
    from tasks.modeling.training import Training
    from tasks.prompts import PromptRenderer
    from tasks.recipe import LoraMethod, PromptRecipe, PromptTemplate, TrainingRecipe

    renderer = PromptRenderer(AutoTokenizer.from_pretrained(base), PromptRecipe(template=PromptTemplate.guide))
    examples = [
        renderer.example(
            [
                {
                    "role": "user",
                    "content": row["instruction"],
                    "instruction": row["instruction"],
                    "input": row["input"],
                },
                {"role": "assistant", "content": row["output"]},
            ]
        )
        for row in rows
    ]
    method = LoraMethod(rank=8, alpha=16, dropout=0, target_modules=["q_proj", "v_proj"])
    with tempfile.TemporaryDirectory() as place:
        columns = {name: [getattr(e, name) for e in examples] for name in ("input_ids", "labels")}
        pq.write_table(pa.table(columns), Path(place, "train.parquet"))
        empty = pa.table({name: pa.array([], pa.list_(pa.int64())) for name in columns})
        pq.write_table(empty, Path(place, "validation.parquet"))
        job = TrainingJob(
            folder=Path(place),
            base=base,
            base_name="base",
            trust_remote_code=False,
            train=Path(place, "train.parquet"),
            validation=Path(place, "validation.parquet"),
            tokenizer=base,
            recipe=TrainingRecipe(method=method, batch_tokens=2048, checkpoint_seconds=3600),
            seed=0,
            origin={},
        )
        training = Training(job)
        progress = training.run()
        model = training.plain
    return {
        "tokens": tokens_of(rows, base),
        "seconds": progress.seconds,
        "gflop_per_token": gflop_per_token(model, examples),
        "versions": versions(),
    }


def gflop_per_token(model: Any, examples: Sequence[Any]) -> float:
    """Floating-point operations of the matrix products, in 1e9 a real token.

    A frozen linear layer costs 2 a weight forward and 2 a weight backward (to its input), an adapter's 6; the output
    layer only where a label is. Attention is 4 a position pair and channel forward (half of it, causal), twice that
    backward.
    """
    config = model.config
    layers = config.num_hidden_layers
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    output = config.vocab_size * config.hidden_size
    frozen = sum(p.numel() for p in model.parameters() if p.ndim == 2 and not p.requires_grad) - output
    tokens = sum(len(e.input_ids) for e in examples)
    labels = sum(e.trained_tokens for e in examples)
    width = config.num_attention_heads * config.head_dim
    pairs = sum(len(e.input_ids) ** 2 / 2 for e in examples)
    total = tokens * (4 * frozen + 6 * adapter) + labels * 4 * output + 3 * layers * 4 * pairs * width
    return float(total / tokens / 1e9)


def guide_answers(rows: Rows, base: Path) -> dict[str, Any]:
    """One prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    prompts = [tokenizer(texts(row)[0], return_tensors="pt") for row in rows[:GUIDE_PROMPTS]]
    answers = []
    started = time.perf_counter()
    for prompt in prompts:
        with torch.no_grad():
            output = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        answers.append(output[0, prompt["input_ids"].shape[1] :].tolist())
    seconds = time.perf_counter() - started
    return {
        "tokens": sum(map(len, answers)),
        "seconds": seconds,
        "answers": [cut(answer, tokenizer) for answer in answers],
    }


def cut(answer: list[int], tokenizer: Any) -> list[int]:
    """An answer without its stop token."""
    return answer[:-1] if answer[-1] == tokenizer.eos_token_id else answer


def our_answers(rows: Rows, base: Path) -> dict[str, Any]:
    """The project's own generation, batches of 64."""
    from transformers import AutoTokenizer

    from tasks.modeling.generation import generate
    from tasks.modeling.loading import load_model, stop_ids

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_model(base, None, "")
    prompts = [tokenizer(texts(row)[0])["input_ids"] for row in rows]
    started = time.perf_counter()
    answers = generate(model, prompts, stop_ids(base), NEW_TOKENS, batch_size=64)
    seconds = time.perf_counter() - started
    new = sum(len(answer.token_ids) + answer.stopped for answer in answers)
    return {"tokens": new, "seconds": seconds, "answers": [answer.token_ids for answer in answers]}


CONTENDERS = {
    "peak": peak,
    "guide": guide,
    "ours": ours,
    "guide-answers": guide_answers,
    "our-answers": our_answers,
}


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    _, name, file, folder, out = sys.argv
    measured = CONTENDERS[name](json.loads(Path(file).read_text("utf-8")), Path(folder))
    Path(out).write_text(json.dumps(measured), "utf-8")
