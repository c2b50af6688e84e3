"""A base's configuration in, one of the same kind that is built in a moment out: narrow, with few layers, all its own
parts there.

What tells architectures apart stays: kinds of layers, heads that share keys, sizes of a head, experts, caps, sinks.
Windows shrink below the length that is tried, so that they matter.
"""

from collections.abc import Mapping
from typing import Any

HEADS, EXPERTS = 4, 4
VOCABULARY, WINDOW = 512, 24
SPREAD = 0.3
"""Of the random weights: with smaller ones caps and sinks would change next to nothing."""
LENGTHS: dict[str, int] = {
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("first_k_dense_replace", "attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    "num_kv_shared_layers": 0,
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
}
SIZES: dict[str, int] = {
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "mamba_d_state", "ssm_state_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "mamba_n_groups"), 1),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": HEADS,
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "ffn_hidden_size",
            "n_inner",
            "block_ff_dim",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "intermediate_size_mlp",
        ),
        128,
    ),
}
"""The most of each, by the names that configurations have for them."""


def smaller(config: Any, narrow: bool = True) -> Any:
    """The configuration with few layers and, if `narrow`, small widths; raises what its class raises for them."""
    values = config.to_dict()
    for name in ("quantization_config", "dtype", "torch_dtype"):
        values.pop(name, None)
    decoder = config.get_text_config(decoder=True)
    if decoder is config:
        return type(config).from_dict(_decoder(config, values, narrow))
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is decoder:
            values[name] = _decoder(part, values[name], narrow)
        elif part is not None and hasattr(part, "num_hidden_layers"):
            values[name][_key(part, "num_hidden_layers")] = 1
    return type(config).from_dict(values)


def _key(config: Any, name: str) -> str:
    """What a configuration calls something itself."""
    return str(config.attribute_map.get(name, name))


def _decoder(config: Any, values: dict[str, Any], narrow: bool) -> dict[str, Any]:
    layers = values.get(_key(config, "num_hidden_layers")) or config.num_hidden_layers
    few = _layers_of_every_kind(values, layers)
    changes: dict[str, Any] = {
        name: value[:few] for name, value in values.items() if isinstance(value, list) and len(value) == layers
    }
    if values.get("attn_layer_indices"):
        changes["attn_layer_indices"] = [1]
    if own := values.get("per_layer_config"):
        changes["per_layer_config"] = {layer: part for layer, part in own.items() if int(layer) < few}
    last = min(VOCABULARY, values["vocab_size"]) - 1
    changes |= {name: last for name in ("bos_token_id", "eos_token_id", "pad_token_id") if values.get(name)}
    changes |= {_key(config, "num_hidden_layers"): few, "initializer_range": SPREAD}
    heads = values.get(_key(config, "num_attention_heads"))
    most = {**LENGTHS, **(SIZES if narrow and heads else {})}
    changes |= {name: min(values[name], size) for name, size in most.items() if type(values.get(name)) is int}
    return {**values, **changes, **(_widths(config, values, heads) if narrow and heads else {})}


def _layers_of_every_kind(values: Mapping[str, Any], layers: int) -> int:
    """The fewest first layers, at least two, among which every kind is that some list of kinds names."""
    few = min(2, layers)
    for value in values.values():
        if isinstance(value, list) and len(value) == layers and all(isinstance(kind, str | int) for kind in value):
            kinds = set(value)
            few = max(few, *(value.index(kind) + 1 for kind in kinds)) if len(kinds) < layers else few
    return few


def _widths(config: Any, values: Mapping[str, Any], heads: int) -> dict[str, Any]:
    """Widths that depend on one another: heads of their own size, fewer of them, and as many for a key as they have."""
    width = _key(config, "hidden_size")
    size = values.get("head_dim") or values[width] // heads
    changes: dict[str, Any] = {width: HEADS * size}
    if shared := values.get("num_key_value_heads"):
        changes["num_key_value_heads"] = HEADS if shared == heads else 1 if shared == 1 else 2
    if values.get("mamba_d_head"):
        inner = values["mamba_expand"] * changes[width]
        changes |= {"mamba_n_heads": inner // values["mamba_d_head"]}
        changes |= {"mamba_d_ssm": inner} if "mamba_d_ssm" in values else {}
    return changes
