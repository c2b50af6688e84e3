"""TRL's SFTTrainer on the same rows, in an environment of its own: `python -m benchmarks.speed.trl_sft JOB OUT`."""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.speed.jobs import LEARNING_RATE, LORA, Job
from benchmarks.speed.rows import prompt_and_completion

MODES: dict[str, dict[str, Any]] = {
    # One pack a step holds about what four rows do. Four packs a step become one long sequence on a CPU, and were
    # a quarter to a third slower.
    "trl-packed": {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 1},
    # `group_by_length` sorts inside random groups of a quarter of so few rows: 16 rows it would not group at all. Rows
    # sorted as a whole are the best grouping there is.
    "trl-grouped": {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4},
}


class Clock(TrainerCallback):
    """The time of the training loop."""

    started = ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.ended = time.perf_counter()


def settings(mode: str, folder: str) -> SFTConfig:
    """TRL's settings: nothing reported, saved or recomputed; its default loss takes logits only where a label is."""
    return SFTConfig(
        output_dir=folder,
        max_length=1024,
        completion_only_loss=True,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **MODES[mode],
    )


def train(job: Job) -> dict[str, Any]:
    """Train once over the rows; what the trainer was really fed is counted afterwards, from its own batches."""
    tokenizer = AutoTokenizer.from_pretrained(job.base, trust_remote_code=False)
    pairs = [prompt_and_completion(row) for row in job.rows]
    pairs.sort(key=lambda pair: -sum(len(tokenizer(text)["input_ids"]) for text in pair))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                job.base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            ),
            args=settings(job.contender, folder),
            train_dataset=Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]}),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
            callbacks=[clock],
        )
        result = trainer.train()
        batches = list(trainer.get_train_dataloader())
    return {
        "tokens": job.tokens,
        "seconds": clock.ended - clock.started,
        "processed": sum(batch["input_ids"].numel() for batch in batches),
        "labels": sum(int((batch["labels"] != -100).sum()) for batch in batches),
        "losses": [result.training_loss],
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
    }


if __name__ == "__main__":
    job = Job.read(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    Path(sys.argv[2]).write_text(json.dumps(train(job)), "utf-8")
