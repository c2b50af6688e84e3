"""A model's shape and the lengths it trains on in, floating-point operations of its matrix products out."""

from collections.abc import Mapping, Sequence
from typing import Any


def linear_weights(config: Mapping[str, Any]) -> int:
    """Weights of the linear layers inside all blocks of a Llama, without embeddings and output layer.

    >>> linear_weights({"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8,
    ...                 "num_hidden_layers": 1})
    144
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    queries, keys = heads * size, config["num_key_value_heads"] * size
    block = hidden * (2 * queries + 2 * keys) + 3 * hidden * config["intermediate_size"]
    return int(config["num_hidden_layers"] * block)


def adapter_weights(config: Mapping[str, Any], rank: int) -> int:
    """Weights of a LoRA of this rank on `q_proj` and `v_proj` of every block."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    outputs = heads * size + config["num_key_value_heads"] * size
    return int(config["num_hidden_layers"] * rank * (2 * hidden + outputs))


def training_flop(config: Mapping[str, Any], rank: int, lengths: Sequence[int], labels: int) -> float:
    """Operations that one training pass over documents of these lengths needs, nothing wasted.

    A multiplication and its addition are 2. With T tokens, L labels, W frozen linear weights, A adapter weights,
    V x H the output layer and documents of n tokens:

        T x 4 W           forward 2, backward 2: to the input only, a frozen weight has no gradient
      + T x 6 A           forward 2, backward 4: to the input and to the weight
      + L x 4 V H         the output layer, forward and backward, only where a label is
      + sum of 6 n^2 D    attention in each block: n^2 / 2 causal pairs, 4 D a pair forward (scores and sums over the
                          width D of all heads), twice that backward

    What is left out (norms, softmax, rotations, the optimiser) is no matrix product. Counting as in Kaplan et al.,
    arXiv:2001.08361, section 2.1.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = heads * (config.get("head_dim") or hidden // heads)
    frozen = 4 * linear_weights(config) + 6 * adapter_weights(config, rank)
    attention = config["num_hidden_layers"] * 6 * width * sum(length**2 for length in lengths)
    return float(sum(lengths) * frozen + labels * 4 * config["vocab_size"] * hidden + attention)
