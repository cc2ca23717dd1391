"""Number of parameters of a model and its adapters, from its dimensions.

Counts decoders like Llama, Mistral and Qwen2: embedding, then per layer grouped-query
attention, a gated feed-forward layer and two norms, then a norm and the language-model head.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.config.schema import ArchitectureConfig, MethodConfig, MethodKind

_LAYERS = "model.layers."
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def head_width(architecture: ArchitectureConfig) -> int:
    """Width of one attention head."""
    return architecture.head_dim or architecture.hidden_size // architecture.num_heads


def attention_widths(architecture: ArchitectureConfig) -> tuple[int, int]:
    """Outputs of the query projection, and of the key or value projection."""
    head = head_width(architecture)
    return architecture.num_heads * head, architecture.num_kv_heads * head


def linear_shapes(architecture: ArchitectureConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers inside one decoder layer, by their usual names."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query, key_value = attention_widths(architecture)
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def count_parameters(architecture: ArchitectureConfig) -> int:
    """All parameters of the model."""
    hidden, shapes = architecture.hidden_size, linear_shapes(architecture)
    weights = sum(inputs * outputs for inputs, outputs in shapes.values())
    biases = sum(shapes[name][1] for name in ("q_proj", "k_proj", "v_proj")) if architecture.attention_bias else 0
    layer = weights + biases + 2 * hidden
    embeddings = architecture.vocab_size * hidden * (1 if architecture.tied_embeddings else 2)
    return architecture.num_layers * layer + hidden + embeddings


def module_shapes(architecture: ArchitectureConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every module of the whole model that can take an adapter, by its full name."""
    shapes = {
        f"model.layers.{layer}.{'mlp' if name in _FEED_FORWARD else 'self_attn'}.{name}": shape
        for layer in range(architecture.num_layers)
        for name, shape in linear_shapes(architecture).items()
    }
    vocab, hidden = architecture.vocab_size, architecture.hidden_size
    return {**shapes, "model.embed_tokens": (vocab, hidden), "lm_head": (hidden, vocab)}


def matching(names: Iterable[str], wanted: str) -> list[str]:
    """Modules that an entry of method.target_modules means: those whose name ends in it, part by part, as in peft."""
    return [name for name in names if name == wanted or name.endswith(f".{wanted}")]


def _adapted_shapes(architecture: ArchitectureConfig, method: MethodConfig) -> dict[str, tuple[int, int]]:
    shapes = module_shapes(architecture)
    if method.target_modules == ["all-linear"]:
        return {name: shape for name, shape in shapes.items() if name.startswith(_LAYERS)}
    return {name: shapes[name] for wanted in method.target_modules for name in matching(shapes, wanted)}


def adapter_inputs(architecture: ArchitectureConfig, method: MethodConfig) -> int:
    """Input widths of the adapted linear layers, added up: of one decoder layer, where they differ on average."""
    adapted = _adapted_shapes(architecture, method)
    total = sum(inputs for name, (inputs, _) in adapted.items() if name.startswith(_LAYERS))
    return -(-total // max(1, architecture.num_layers))


def adapter_parameters(architecture: ArchitectureConfig, method: MethodConfig) -> int:
    """Trained parameters of the adapters: two thin matrices per adapted layer; DoRA adds a magnitude per output."""
    adapted = _adapted_shapes(architecture, method).values()
    total = sum(method.rank * (inputs + outputs) for inputs, outputs in adapted)
    if method.kind is MethodKind.dora:
        total += sum(outputs for _, outputs in adapted)
    return total


def count_trained(architecture: ArchitectureConfig, method: MethodConfig) -> int:
    """Parameters that get gradients."""
    if method.kind is MethodKind.full:
        return count_parameters(architecture)
    return adapter_parameters(architecture, method)
