"""The name of a shape in, a folder with a random Llama of it out: sharded safetensors, config, tokenizer, records."""

import random
import shutil
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    # TinyLlama's shape, 1.1 billion parameters.
    "1b": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    # Llama 2 7B's shape.
    "7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
SHARD = "4GB"
WORDS = ["the sky is blue and grass is green", "what colour is snow", "white as milk, red as blood"]


def make(name: str, folder: Path) -> Path:
    """Write a shape's model once, in bf16, as a hub has them; a folder that is whole is found again."""
    target = folder / f"llama-{name}"
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    partial = folder / f".llama-{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = _tokenizer()
    shape = LlamaConfig(
        **SHAPES[name],
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, trust_remote_code=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(partial, max_shard_size=SHARD)
    tokenizer.save_pretrained(partial)
    partial.rename(target)
    return target


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def write_examples(path: Path, vocabulary: int, count: int, tokens: int) -> Path:
    """Tokenised examples of one length with random ids, the second half of each with a label, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    ids = [[draw.randrange(1, vocabulary) for _ in range(tokens)] for _ in range(count)]
    labels = [[-100] * (tokens // 2) + row[tokens // 2 :] for row in ids]
    kind = pa.list_(pa.int32())
    pq.write_table(pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)}), path)
    return path
