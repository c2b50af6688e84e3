"""Architectures of transformers at two to four layers of 64: what a base may be, without weights from anywhere."""

from pathlib import Path
from typing import Any

import torch

WINDOW = 24
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": WINDOW},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": WINDOW},
    "phi3": {"sliding_window": None},
    "smollm3": {"num_hidden_layers": 4},
    "olmo2": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "mixtral": {"num_local_experts": 4, "sliding_window": WINDOW},
    "qwen3_moe": {"num_experts": 4, "head_dim": 16, **MOE},
    "falcon": {},
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": WINDOW},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "bloom": {"n_layer": 2, "n_head": 4},
    "stablelm": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "conv_L_cache": 3},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 128,
        **MAMBA,
    },
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "jamba": {
        "num_experts": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "expert_layer_offset": 1,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
    },
    "qwen3_next": {**LINEAR, "num_experts": 0, "mlp_only_layers": [0, 1]},
    "falcon_h1": {"mamba_d_ssm": 64, **MAMBA, "mamba_n_heads": 4},
    "minimax": {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2},
    "mamba": {"state_size": 8},
}


def config_of(name: str, **changes: Any) -> Any:
    """The configuration of an architecture, 64 wide; token 0 pads, begins and ends."""
    from transformers import AutoConfig

    common = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "initializer_range": 0.1,
    }
    return AutoConfig.for_model(name, **{**common, **ARCHITECTURES[name], **changes})


def model_of(name: str, **changes: Any) -> Any:
    """A random model, the same at every call, that never stops by itself."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, **changes)).eval()
    model.generation_config = GenerationConfig()
    return model


def base_of(name: str, folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A base folder of an architecture with a tokenizer, as somebody would bring it."""
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model_of(name, **{**ids, "bos_token_id": None, **changes}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
