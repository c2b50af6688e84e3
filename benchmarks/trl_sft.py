"""TRL's SFTTrainer on the same rows, run by its own environment: `python trl_sft.py NAME ROWS BASE OUT`."""

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


def texts(row: dict[str, str]) -> tuple[str, str]:
    """Prompt and completion in the guide's form."""
    given = f"输入：{row['input']}\n" if row["input"] else ""
    return f"指令：{row['instruction']}\n{given}输出：", row["output"]


class Clock(TrainerCallback):
    """The time of the training loop."""

    started = ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


def main(name: str, rows: list[dict[str, str]], base: str) -> dict[str, Any]:
    """Train once over the rows and return tokens and seconds."""
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = [texts(row) for row in rows]
    data = Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]})
    packed = name == "trl-packed"
    kinds: dict[str, Any] = (
        {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 1}
        if packed
        else {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 4}
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        config = SFTConfig(
            output_dir=place,
            max_length=1024,
            completion_only_loss=True,
            num_train_epochs=1,
            learning_rate=2e-4,
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
            **kinds,
        )
        lora = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[clock],
        )
        trainer.train()
    real = sum(len(tokenizer(text)["input_ids"]) for pair in pairs for text in pair) + len(pairs)
    return {"tokens": real, "seconds": clock.ended - clock.started, "versions": f"trl {version('trl')}"}


if __name__ == "__main__":
    _, contender, file, folder, out = sys.argv
    measured = main(contender, json.loads(Path(file).read_text("utf-8")), folder)
    Path(out).write_text(json.dumps(measured), "utf-8")
