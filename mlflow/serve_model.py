"""What a registered model runs when it is loaded: rows of messages or instructions in, one answer a row out.

MLflow copies this file into every version, so it imports nothing of this project and needs only mlflow, torch,
transformers and, for an adapter, peft. `model_config` may hold `system` (a default system message) and, for an
adapter, `base_model` (a folder, a `models:/` address, or `<hub id>@<revision>`) with `base_digest`, and `quantisation`
where the adapter was trained on a quantised base (this needs bitsandbytes). `trust_remote_code` is true where the
recipe trusted the Python that came with its base, which lies in the version too. $BASE_MODEL says where the base lies
on another machine; another base than the adapter was trained on is refused, be it by weights, config or tokenizer.
"""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

BATCH_ROWS = 64
BASE_FILES = (
    "*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.codes", "*.tokenizer", "*.tiktoken", "*.py"
)  # fmt: skip
BASE_TEMPLATES = "additional_chat_templates/*.jinja"


class AnswersInstructions(PythonModel):
    """A causal language model behind its own chat template, greedy unless a temperature is given."""

    def load_context(self, context):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        settings = dict(context.model_config or {})
        adapter = context.artifacts.get("adapter")
        weights = context.artifacts.get("model") or base_folder(settings.get("base_model"), settings.get("base_digest"))
        self.system = settings.get("system") or ""
        trusted = settings.get("trust_remote_code") is True
        self.tokenizer = AutoTokenizer.from_pretrained(adapter or weights, trust_remote_code=trusted)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Half precision is about a hundred times slower than fp32 on most CPUs.
        dtype = torch.float32 if device == "cpu" else "auto"
        quantised = quantised_options(settings.get("quantisation"), device)
        model = AutoModelForCausalLM.from_pretrained(
            weights, dtype=dtype, use_safetensors=True, trust_remote_code=trusted, **quantised
        )
        for module in model.modules():
            # bitsandbytes would repack 4-bit weights for bf16 on some processors, and answer otherwise than trained.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        if adapter:
            from peft import PeftModel

            if not Path(adapter, "adapter_model.safetensors").is_file():
                raise ValueError(f"{adapter}: no adapter_model.safetensors; pickled weights are not loaded.")
            model = PeftModel.from_pretrained(model, adapter)
        self.stop_ids = stop_ids(model.generation_config, self.tokenizer)
        # The folder's own sampling defaults would change what "greedy" means.
        model.generation_config = GenerationConfig(eos_token_id=self.stop_ids or None, pad_token_id=self.pad_id())
        self.model = (model if quantised else model.to(device)).eval()

    def pad_id(self):
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in ids if token is not None)

    def predict(self, context, model_input: pd.DataFrame, params=None):  # noqa: ARG002 (MLflow's signature)
        rows = model_input.to_dict("records")
        # Unknown columns are dropped before this, and rows without columns are no rows.
        if not rows:
            raise ValueError("No rows: give 'messages', or 'instruction' and 'input'.")
        prompts = [self.prompt_ids(number, row) for number, row in enumerate(rows, 1)]
        answers = []
        for start in range(0, len(prompts), BATCH_ROWS):
            answers += self.answers(prompts[start : start + BATCH_ROWS], **(params or {}))
        return answers

    def prompt_ids(self, number, row):
        messages = messages_of(number, row)
        if self.system and messages[0].get("role") != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room and len(ids) >= room:
            raise ValueError(f"Row {number}: the prompt has {len(ids)} tokens; this model reads fewer than {room}.")
        return ids

    def answers(self, prompts, max_tokens=256, temperature=0.0, top_p=1.0, seed=0, stop=()):
        import torch

        width = max(map(len, prompts))
        # Masked by place: the padding token may be the very token that ends an answer.
        ids = [[self.pad_id()] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        options = {"do_sample": temperature > 0, "max_new_tokens": int(max_tokens)}
        if temperature > 0:
            options |= {"temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
            torch.manual_seed(int(seed))
        stops = [str(text) for text in stop]
        if stops:
            options |= {"stop_strings": stops, "tokenizer": self.tokenizer}
        device = self.model.device
        ids, mask = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
        with torch.inference_mode():
            if self.reads_soft_prompt():
                output = after_soft_prompt(self.model, ids, mask, **options)
            else:
                output = self.model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
        return [self.text(row, stops) for row in output.tolist()]

    def reads_soft_prompt(self):
        config = getattr(self.model, "active_peft_config", None)
        return config is not None and config.is_prompt_learning

    def text(self, ids, stops):
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def quantised_options(quantisation, device):
    """What loads a base as quantised as the adapter was trained on; nothing for a base in full precision."""
    if not quantisation:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    compute = {"bnb_4bit_compute_dtype": torch.float32} if device == "cpu" and "load_in_4bit" in quantisation else {}
    return {"quantization_config": BitsAndBytesConfig(**quantisation, **compute), "device_map": {"": device}}


def after_soft_prompt(model, ids, mask, **options):
    """New tokens for left-padded prompts that follow a soft prompt; PEFT's own generation counts the pads between."""
    import torch

    config = model.active_peft_config
    rows, width, virtual = *ids.shape, config.num_virtual_tokens
    soft, seen = model.get_prompt(batch_size=rows), torch.ones((rows, virtual), dtype=mask.dtype, device=mask.device)
    if config.peft_type == "PREFIX_TUNING":
        filled, read = torch.cat([torch.zeros_like(seen), ids], 1), torch.cat([seen, mask], 1)
        output = model.base_model.generate(input_ids=filled, attention_mask=read, past_key_values=soft, **options)
        return output[:, virtual + width :]
    pads = (mask == 0).sum(1).tolist()
    embeddings = model.word_embeddings(ids)

    def joined(rows, inserted):
        triples = zip(rows, inserted, pads, strict=True)
        return torch.stack([torch.cat([row[:pad], part, row[pad:]]) for row, part, pad in triples])

    given = {"inputs_embeds": joined(embeddings, soft.to(embeddings.dtype)), "attention_mask": joined(mask, seen)}
    return model.base_model.generate(**given, **options)


def stop_ids(generation_config, tokenizer):
    """Every token that ends an answer: the folder's and the tokenizer's."""
    ends = generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    return sorted((ends | {tokenizer.eos_token_id}) - {None})


def messages_of(number, row):
    """A row as chat messages; an instruction's own parts stay beside its text, for templates that print them apart."""
    messages = row.get("messages")
    # pandas fills gaps with NaN, and hands lists on as arrays.
    if messages is not None and not isinstance(messages, (str, float)):
        if not len(messages):
            raise ValueError(f"Row {number}: 'messages' is empty.")
        return [dict(message) for message in messages]
    instruction = row.get("instruction")
    if not isinstance(instruction, str):
        raise ValueError(f"Row {number} needs 'messages', or 'instruction' (and 'input').")
    given = row["input"] if isinstance(row.get("input"), str) else ""
    content = "\n\n".join(part for part in (instruction, given) if part)
    return [{"role": "user", "content": content, "instruction": instruction, "input": given}]


def base_folder(base_model, base_digest):
    """The folder of the base weights, checked against the digest the adapter was trained on."""
    where = os.environ.get("BASE_MODEL") or base_model
    if not where:
        raise ValueError("This adapter names no base model: set BASE_MODEL, or give model_config={'base_model': …}.")
    if Path(where).is_dir():
        root = Path(where)
    elif where.startswith(("models:/", "runs:/")) or "://" in where:
        from mlflow.artifacts import download_artifacts

        root = Path(download_artifacts(where))
    else:
        from huggingface_hub import snapshot_download

        name, _, revision = where.partition("@")
        snapshot_download(name, revision=revision or None, allow_patterns=BASE_TEMPLATES)
        # To the hub a star stands for slashes too.
        files = {"allow_patterns": list(BASE_FILES), "ignore_patterns": "*/*"}
        root = Path(snapshot_download(name, revision=revision or None, **files))
    configs = [root / "config.json", *sorted(root.glob("artifacts/*/config.json"))]
    folder = next((config.parent for config in configs if config.exists()), None)
    if folder is None:
        raise ValueError(f"{where}: no model folder there (no config.json).")
    found = model_digest(folder)
    if found != base_digest:
        raise ValueError(
            f"{where}: not the base this adapter was trained on: its digest is {found}, expected {base_digest}. "
            "Weights, config, generation config, tokenizer and templates count."
        )
    return str(folder)


def model_digest(folder):
    """Digest of everything at a folder's top level that loading may read, by name: `digests.model_digest` again."""
    digests = {}
    for pattern in (*BASE_FILES, BASE_TEMPLATES):
        for path in Path(folder).glob(pattern):
            if path.is_file():
                with path.open("rb") as stream:
                    digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    if not any(name.endswith(".safetensors") for name in digests):
        raise ValueError(f"{folder}: no weights (*.safetensors).")
    text = json.dumps(digests, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


set_model(AnswersInstructions())
