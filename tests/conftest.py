"""A tiny base model that learns: made once a session, on this machine, from nothing."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

LONG_FIRST = ("flows", "modeling", "registry", "command")
"""Folders whose files take minutes: begun last, one of two test processes would wait for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders that take longest first."""
    places = {folder: place for place, folder in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test works in the state folder of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_HOME", str(tmp_path_factory.mktemp("home") / "state"))
        yield


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, 64 wide, 2 layers, byte-level BPE and a chat template; its pad is its stop token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["what colour is the sky grass blood snow", "red green blue white " * 5], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    # A padding row starts as zeros; here it is the stop token too, which has to be answerable.
    torch.nn.init.normal_(model.model.embed_tokens.weight.data[fast.eos_token_id], std=0.1)
    model.generation_config.eos_token_id = fast.eos_token_id
    model.save_pretrained(folder)
    return folder


COLOURS = {"the sky": "blue", "grass": "green", "blood": "red", "snow": "white", "the sea": "blue", "a leaf": "green"}


@pytest.fixture(scope="session")
def colour_rows() -> list[dict[str, str]]:
    """72 alpaca rows whose answer is a function of the thing they name."""
    asks = ["What colour is {}?", "Name the colour of {}.", "{}: which colour?", "Colour of {}, please."]
    extra = ["", " Be short.", " Quick."]
    return [
        {"instruction": ask.format(thing) + more, "input": "", "output": colour}
        for thing, colour in COLOURS.items()
        for ask in asks
        for more in extra
    ]


@pytest.fixture
def colours(tmp_path: Path, colour_rows: list[dict[str, str]]) -> Path:
    """The colour rows as a JSONL file."""
    path = tmp_path / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in colour_rows), "utf-8")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB in memory; only where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
