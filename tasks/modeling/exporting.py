"""A registered model's folder in, the same model for others out: another number format, shards, and a check.

The check is a clean process that can import transformers and nothing of this project: it loads the files, answers a
prompt or two, and its answers are held against those of the registered model.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tasks.errors import StateUnusable, WorkRefused
from tasks.files.model_files import check_code
from tasks.modeling.loading import stops_as_scored
from tasks.modeling.origin import ORIGIN
from tasks.steps.child_environment import child_environment
from tasks.steps.store import writable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NEW_TOKENS = 32
SECONDS = 1800.0
ANSWER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

result_file, new_tokens = sys.argv[1], int(sys.argv[2])
conversations, stops, folders = map(json.loads, sys.argv[3:])
results = []
for folder, scored in zip(folders, (True, False)):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=False
    ).eval()
    dtype = str(model.dtype).removeprefix("torch.")
    # On most processors half precision is a hundred times slower; the numbers are rounded by now.
    model = model.cuda() if torch.cuda.is_available() else model.float()
    if scored:
        model.generation_config = GenerationConfig(eos_token_id=stops)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers = []
    for messages in conversations:
        form = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        read = tokenizer.apply_chat_template(messages, **form)
        read = {name: read[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            output = model.generate(**read, do_sample=False, max_new_tokens=new_tokens, pad_token_id=pad)
        answers.append(output[0, read["input_ids"].shape[1]:].tolist())
    ends = model.generation_config.eos_token_id
    results.append({"dtype": dtype, "stops": ends if isinstance(ends, list) else [ends], "answers": answers})
    del model
with open(result_file, "w", encoding="utf-8") as stream:
    json.dump(results, stream)
"""
"""Asks the first folder as it was scored, with its stop tokens, and the second as transformers does by itself."""


@dataclass(frozen=True)
class Exported:
    """What lies in an exported folder, and how its answers compare with the registered model's."""

    folder: Path
    dtype: str
    shards: int
    bytes: int
    prompts: int
    equal_answers: int
    equal_tokens: float
    """Share of the registered model's tokens that come before the first difference of each answer."""


def export(
    source: Path,
    folder: Path,
    dtype: str,
    shard_size: str,
    extra: Mapping[str, Path],
    asked: Sequence[Sequence[Mapping[str, str]]],
) -> Exported:
    """Write a merged or full model in `dtype` (fp32, bf16, fp16), in files of `shard_size` (2GB) at most, and check it.

    `extra` are files to lie beside it, by name; `asked` are the messages of each prompt of the check. The folder is
    renamed into place when all of that succeeded. Raises StateUnusable for a folder with something in it, WorkRefused
    where numbers do not fit the format, the clean process does not load and answer, or it answers otherwise though the
    numbers are the same, InvalidBaseModel for a model that brings Python of its own.
    """
    check_code(source, False, f"export: {source}", "copy that folder, which loads with trust_remote_code=True")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StateUnusable(f"{folder}: the folder is not empty; choose a new or an empty one.")
    partial = folder.with_name(f".{folder.name}.partial")
    with writable(folder.parent):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            stops = _write(source, partial, dtype, shard_size)
            for name, path in extra.items():
                shutil.copyfile(path, partial / name)
            results = partial.with_name(f"{partial.name}.json")
            registered, again = _answers([source, partial], asked, stops, results)
            _check(registered, again, dtype, folder)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    files = list(folder.glob("*.safetensors"))
    pairs = list(zip(registered["answers"], again["answers"], strict=True))
    same = sum(_common(one, two) for one, two in pairs)
    return Exported(
        folder=folder,
        dtype=dtype,
        shards=len(files),
        bytes=sum(path.stat().st_size for path in files),
        prompts=len(pairs),
        equal_answers=sum(one == two for one, two in pairs),
        equal_tokens=same / max(1, sum(len(one) for one, _ in pairs)),
    )


def _check(registered: Mapping[str, Any], again: Mapping[str, Any], dtype: str, folder: Path) -> None:
    """Refuse another number format than was asked for, other stop tokens, and other answers in an unchanged format."""
    wanted = str(DTYPES[dtype]).removeprefix("torch.")
    if again["dtype"] != wanted:
        raise WorkRefused(f"export: {folder} loads as {again['dtype']}, not as {wanted}.")
    if again["stops"] != registered["stops"]:
        raise WorkRefused(
            f"export: {folder} stops at the tokens {again['stops']}, the scored model at {registered['stops']}."
        )
    pairs = enumerate(zip(registered["answers"], again["answers"], strict=True), 1)
    same = registered["dtype"] == again["dtype"]
    if same and (other := [number for number, (one, two) in pairs if one != two]):
        raise WorkRefused(
            f"export: transformers alone answers {len(other)} of {len(again['answers'])} prompts otherwise than the "
            f"registered model, first prompt {other[0]}, though the numbers are the same."
        )


def _write(source: Path, folder: Path, dtype: str, shard_size: str) -> list[int]:
    """The tokens at which the model in the folder stops."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False
    )
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise WorkRefused(f"export: {dtype} cannot hold {broken[0]} ({len(broken)} such): choose bf16 or fp32.")
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    stops = stops_as_scored(model, tokenizer)
    model.save_pretrained(folder, max_shard_size=shard_size)
    for path in folder.glob("*.safetensors"):
        # Written for this user alone; who loads it may be another.
        path.chmod((folder / "config.json").stat().st_mode)
    tokenizer.save_pretrained(folder)
    origin = source / ORIGIN
    if origin.exists():
        shutil.copyfile(origin, folder / origin.name)
    return stops


def _answers(
    folders: Sequence[Path], asked: Sequence[Sequence[Mapping[str, str]]], stops: Sequence[int], place: Path
) -> list[dict[str, Any]]:
    """Number format, stop tokens and greedy answers of each folder, from an isolated interpreter that is offline."""
    values = map(json.dumps, (asked, stops, list(map(str, folders))))
    command = [sys.executable, "-I", "-c", ANSWER, str(place), str(NEW_TOKENS), *values]
    environment = child_environment({"TRANSFORMERS_VERBOSITY": "error"})
    try:
        done = subprocess.run(
            command,
            cwd=place.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
            raise WorkRefused(f"export: transformers does not load and answer it in a clean process: {said}")
        return list(json.loads(place.read_text("utf-8")))
    except subprocess.TimeoutExpired as fault:
        raise WorkRefused(f"export: the clean process gave no answer within {SECONDS:.0f} s.") from fault
    finally:
        place.unlink(missing_ok=True)


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens before the first difference.

    >>> _common([1, 2, 3], [1, 2, 4])
    2
    """
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(two)))
