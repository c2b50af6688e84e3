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
import logging
import os
import random
import secrets
from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

BATCH_ROWS = 64
BASE_FILES = (
    "*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.codes", "*.tokenizer", "*.tiktoken", "*.py"
)  # fmt: skip
BASE_TEMPLATES = "additional_chat_templates/*.jinja"
LIMITS = {"rows": 256, "stops": 8, "stop_characters": 64, "characters_per_token": 16, "max_tokens": 1_000_000}
"""Of one request: rows; stop strings and their length; characters of a row for each token of the context; new tokens
of a row, which end at the context in any case. `model_config={"limits": {…}}` changes single ones. A message takes a
token at least, so a row has fewer messages than the context has tokens."""
NAMED, LONGEST_NAME = 20, 60
"""Names that a message repeats, and characters of each."""
CONTEXT = 4096
"""Tokens, for a model that says nowhere how many it reads."""
ROLES, COLUMNS = ("system", "user", "assistant", "tool"), ("messages", "instruction", "input")
TEMPERATURES = (0.01, 2.0)
log = logging.getLogger("tuneline")


class ServingError(MlflowException):
    """A request that is not answered, with the reason. MLflow's server sends the message of such errors only."""

    def __init__(self, reason, code=INVALID_PARAMETER_VALUE):
        super().__init__(reason, error_code=code)

    def serialize_as_json(self):
        # MLflow's server has written the whole request into the message by now.
        self.message = str(self)
        return super().serialize_as_json()


class AnswersInstructions(PythonModel):
    """A causal language model behind its own chat template, greedy unless a temperature is given."""

    def load_context(self, context):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        settings = dict(context.model_config or {})
        adapter = context.artifacts.get("adapter")
        weights = context.artifacts.get("model") or base_folder(settings.get("base_model"), settings.get("base_digest"))
        self.limits = limits_of(settings.get("limits") or {})
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
        self.context = context_of(model)
        # Behind a prefix in the cache pads stand before the prompt, where a window would count them as tokens.
        prefix = self.reads_soft_prompt() and model.active_peft_config.peft_type == "PREFIX_TUNING"
        self.batch_rows = 1 if prefix and getattr(model.config, "sliding_window", None) else BATCH_ROWS

    def pad_id(self):
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in ids if token is not None)

    # The hint is one that MLflow checks nothing by; without any it says at each load that there is none.
    def predict(self, context, model_input: pd.DataFrame, params=None):  # noqa: ARG002 (MLflow's signature)
        try:
            return self.answered(rows_of(model_input, self.limits["rows"]), **(params or {}))
        except MlflowException:
            raise
        except Exception as fault:
            # The trace is for this server's log, not for whoever asked.
            log.exception("a request failed")
            raise ServingError(f"The model failed: {type(fault).__name__}: {fault}", INTERNAL_ERROR) from fault

    def answered(self, rows, max_tokens=256, temperature=0.0, top_p=1.0, seed=None, stop=()):
        check_sampling(max_tokens, temperature, top_p)
        stops = self.stop_strings(stop)
        prompts = [self.prompt_ids(number, row) for number, row in enumerate(rows, 1)]
        seed = secrets.randbits(63) if seed is None else int(seed)
        most = min(int(max_tokens), self.limits["max_tokens"])
        answers = []
        for start in range(0, len(prompts), self.batch_rows):
            batch = prompts[start : start + self.batch_rows]
            numbers = range(start, start + len(batch)) if temperature else ()
            samplers = [sampler(seed, number, temperature, top_p, self.model.device) for number in numbers]
            answers += self.answers(batch, most, samplers, stops)
        return answers

    def stop_strings(self, stop):
        stops, longest = list(stop or ()), self.limits["stop_characters"]
        if len(stops) > self.limits["stops"]:
            raise ServingError(f"{len(stops)} stop strings: at most {self.limits['stops']} are taken.")
        for text in stops:
            if not isinstance(text, str) or not 0 < len(text) <= longest:
                raise ServingError(f"stop: every stop string is a text of 1 to {longest} characters.")
            check_whole(text, "stop")
        return stops

    def prompt_ids(self, number, row):
        messages = messages_of(number, row)
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if len(messages) >= self.context:
            raise ServingError(
                f"Row {number}: {len(messages):,} messages, and this model reads fewer than {self.context:,} tokens."
            )
        self.check_length(number, sum(len(message["content"]) for message in messages))
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as fault:
            raise ServingError(f"Row {number}: the chat template does not print it: {fault}") from fault
        # What the template writes around each message counts too.
        self.check_length(number, len(text))
        check_whole(text, f"Row {number}")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= self.context:
            raise ServingError(
                f"Row {number}: the prompt has {len(ids)} tokens; this model reads fewer than {self.context}."
            )
        return ids

    def check_length(self, number, characters):
        most = self.context * self.limits["characters_per_token"]
        if characters > most:
            raise ServingError(f"Row {number}: the prompt has {characters:,} characters; at most {most:,} are read.")

    def answers(self, prompts, max_tokens, samplers=(), stops=()):
        """A text for each prompt. A row ends at its own limit; those with more room than others go on after them."""
        limits = [min(max_tokens, self.context - len(prompt)) for prompt in prompts]
        new = [[] for _ in prompts]
        waiting = list(range(len(prompts)))
        while waiting:
            steps = min(limits[row] - len(new[row]) for row in waiting)
            drawing = [samplers[row] for row in waiting] if samplers else []
            generated = self.generated([prompts[row] + new[row] for row in waiting], steps, drawing, stops)
            for row, ids in zip(waiting, generated, strict=True):
                new[row] += ids
            waiting = [row for row in waiting if len(new[row]) < limits[row] and not self.ended(new[row], stops)]
        return [self.text(ids, stops) for ids in new]

    def generated(self, rows, steps, samplers, stops):
        """New token ids of each row, at most `steps`."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        width = max(map(len, rows))
        # Masked by place: the padding token may be the very token that ends an answer.
        ids = [[self.pad_id()] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        ids, mask = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
        options = {"do_sample": False, "max_new_tokens": steps}
        if samplers:
            options["logits_processor"] = LogitsProcessorList(
                [lambda _, scores: torch.cat([draw(row[None]) for draw, row in zip(samplers, scores, strict=True)])]
            )
        if stops:
            options["stopping_criteria"] = StoppingCriteriaList([stopping(self.tokenizer, stops)])
        with torch.inference_mode():
            if self.reads_soft_prompt():
                output = after_soft_prompt(self.model, ids, mask, **options)
            else:
                output = self.model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
        return output.tolist()

    def ended(self, ids, stops):
        if any(token in self.stop_ids for token in ids):
            return True
        text = self.tokenizer.decode(ids, skip_special_tokens=True) if stops else ""
        return any(stop in text for stop in stops)

    def reads_soft_prompt(self):
        config = getattr(self.model, "active_peft_config", None)
        return config is not None and config.is_prompt_learning

    def text(self, ids, stops):
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def sampler(seed, row, temperature, top_p, device):
    """Draws a row's tokens with random numbers of its own: no request or row beside it changes them.

    transformers' sampling takes them from the process, which all requests share. Here scores, (1, vocabulary), come
    back with Gumbel noise: the largest of them is at a token drawn from their distribution.
    """
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    numbers = torch.Generator(device).manual_seed(random.Random(f"{seed}/{row}").getrandbits(63))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))

    def draw(scores):
        scores = warpers(None, scores)
        noise = torch.empty_like(scores).exponential_(generator=numbers)
        return scores - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log()

    return draw


def stopping(tokenizer, stops):
    """Ends a row whose newest text holds a stop string; transformers' own criterion looks into the prompt as well."""
    import torch

    tail = 8 + max(len(stop.encode()) for stop in stops)
    steps = 0

    def ended(ids, scores, **_):  # noqa: ARG001 (transformers' signature)
        nonlocal steps
        steps += 1
        newest = tokenizer.batch_decode(ids[:, -min(steps, tail) :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in stops) for text in newest], device=ids.device)

    return ended


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


def rows_of(model_input, most):
    """Rows from what MLflow hands on: a table, rows, columns, texts, or one of them alone."""
    if isinstance(model_input, pd.DataFrame):
        # A list of texts that became a table has one column without a name.
        texts = list(model_input.columns) == [0]
        model_input = model_input[0] if texts else model_input.to_dict("records")
    rows = listed(model_input)
    if isinstance(rows, dict):
        rows = transposed(rows) if is_columns(rows) else [rows]
    elif not isinstance(rows, list):
        rows = [rows]
    if not rows:
        raise ServingError("No rows: give 'messages', or 'instruction' and 'input'.")
    if len(rows) > most:
        raise ServingError(f"{len(rows)} rows: at most {most} are answered at once; send the others apart.")
    return rows


def listed(value):
    """Arrays as lists with Python's own numbers and texts: MLflow makes arrays of what comes as JSON."""
    try:
        return plain(value)
    except RecursionError:
        raise ServingError("The request is nested deeper than anything that is read.") from None


def plain(value):
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return {name: plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def is_columns(request):
    """Whether a request is columns, and not one row: lists of texts, or lists of conversations."""
    chats = request.get("messages")
    several = isinstance(chats, list) and bool(chats) and isinstance(chats[0], list)
    return several or any(isinstance(request.get(name), list) for name in ("instruction", "input"))


def transposed(columns):
    lengths = {name: len(column) if isinstance(column, list) else "no list" for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        sizes = names_of(f"{name}: {size}" for name, size in lengths.items())
        raise ServingError(f"Columns of different lengths: {sizes}.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def names_of(names):
    """Names for a message: the first ones, each cut, and how many more there are."""
    names = list(names)
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in names[:NAMED]]
    return ", ".join(shown) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def check_whole(text, what):
    """Refuse half a character (U+D800 to U+DFFF), which JSON can hold and no tokenizer reads."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ServingError(f"{what}: half a character (U+D800 to U+DFFF); send whole ones.")


def messages_of(number, row):
    """A row as chat messages; an instruction's own parts stay beside its text, for templates that print them apart."""
    row = {"instruction": row} if isinstance(row, str) else row
    if not isinstance(row, dict):
        raise ServingError(f"Row {number} is {row!r:.40}: give a text, 'messages', or 'instruction' and 'input'.")
    # Tables fill the gaps of rows that differ with None or NaN.
    row = {name: value for name, value in row.items() if value is not None and value == value}
    if unknown := sorted(str(name) for name in row if name not in COLUMNS):
        raise ServingError(f"Row {number}: {names_of(unknown)}: not read; a row has {', '.join(COLUMNS)}.")
    if "messages" in row:
        if len(row) > 1:
            raise ServingError(f"Row {number} has 'messages' and 'instruction' or 'input': give one of the two.")
        return checked_turns(number, row["messages"])
    parts = [row.get("instruction"), row.get("input", "")]
    if not all(isinstance(part, str) for part in parts):
        raise ServingError(f"Row {number} needs 'messages', or 'instruction' (and 'input'), as text.")
    content = "\n\n".join(part for part in parts if part)
    if not content:
        raise ServingError(f"Row {number}: 'instruction' is empty.")
    return [{"role": "user", "content": content, "instruction": parts[0], "input": parts[1]}]


def checked_turns(number, messages):
    """A conversation that ends where the model goes on."""
    if not isinstance(messages, list) or not messages:
        raise ServingError(f"Row {number}: 'messages' is empty, or no list.")
    for turn, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ServingError(f"Row {number}, message {turn}: it has 'role' and 'content', and nothing else.")
        if message["role"] not in ROLES:
            raise ServingError(f"Row {number}, message {turn}: 'role' is one of {', '.join(ROLES)}.")
        if not isinstance(message["content"], str):
            raise ServingError(f"Row {number}, message {turn}: 'content' is text.")
    if messages[-1]["role"] == "assistant":
        raise ServingError(f"Row {number}: the last message is the assistant's; ask something after it.")
    return [dict(message) for message in messages]


def check_sampling(max_tokens, temperature, top_p):
    for name, value in {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}.items():
        if value is None:
            raise ServingError(f"{name} is null: give a number, or leave it out.")
    lowest, highest = TEMPERATURES
    if max_tokens < 1:
        raise ServingError(f"max_tokens is {max_tokens}: at least 1.")
    # A comparison with what is no number is false.
    if not (temperature == 0 or lowest <= temperature <= highest):
        raise ServingError(f"temperature is {temperature}: 0 (greedy), or {lowest} to {highest}.")
    if not 0 < top_p <= 1:
        raise ServingError(f"top_p is {top_p}: above 0, at most 1.")


def limits_of(changes):
    """The limits of a request, single ones changed by `model_config`."""
    if unknown := sorted(changes.keys() - LIMITS.keys()):
        raise ServingError(f"model_config: limits: {', '.join(unknown)}: known are {', '.join(LIMITS)}.")
    if wrong := [name for name, value in changes.items() if type(value) is not int or value < 1]:
        raise ServingError(f"model_config: limits: {', '.join(wrong)}: whole numbers from 1.")
    return LIMITS | changes


def context_of(model):
    """Tokens of prompt and answer together that a model reads, less those of its soft prompt."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "seq_length")
    context = next((size for name in names if (size := getattr(config, name, None))), CONTEXT)
    soft = getattr(model, "active_peft_config", None)
    return context - (soft.num_virtual_tokens if soft is not None and soft.is_prompt_learning else 0)


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
