"""How many parameters a model and its adapters have, from a handful of figures.

Counts the decoder family that Llama, Mistral, Qwen2 and their kin share: embedding, then per layer grouped-query
attention, a gated feed-forward layer and two norms, then a norm and the language-model head.
"""

from __future__ import annotations

from launcher.config.schema import ArchitectureConfig, MethodConfig, MethodKind


def head_dim(figures: ArchitectureConfig) -> int:
    """Width of one attention head."""
    return figures.head_dim or figures.hidden_size // figures.num_heads


def linear_shapes(figures: ArchitectureConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers inside one decoder layer, by their usual names."""
    hidden, inner = figures.hidden_size, figures.intermediate_size
    query, key_value = figures.num_heads * head_dim(figures), figures.num_kv_heads * head_dim(figures)
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def layer_parameters(figures: ArchitectureConfig) -> int:
    """Parameters of one decoder layer."""
    shapes = linear_shapes(figures)
    weights = sum(inputs * outputs for inputs, outputs in shapes.values())
    biases = sum(shapes[name][1] for name in ("q_proj", "k_proj", "v_proj")) if figures.attention_bias else 0
    return weights + biases + 2 * figures.hidden_size


def embedding_parameters(figures: ArchitectureConfig) -> int:
    """Parameters of the embedding and, where it is a matrix of its own, the head."""
    return figures.vocab_size * figures.hidden_size * (1 if figures.tied_embeddings else 2)


def count_parameters(figures: ArchitectureConfig) -> int:
    """All parameters of the model."""
    return figures.num_layers * layer_parameters(figures) + figures.hidden_size + embedding_parameters(figures)


def _adapted_shapes(figures: ArchitectureConfig, method: MethodConfig) -> list[tuple[int, int]]:
    shapes = linear_shapes(figures)
    names = shapes if method.target_modules == ["all-linear"] else set(method.target_modules)
    return [shape for name, shape in shapes.items() if name in names]


def adapter_inputs(figures: ArchitectureConfig, method: MethodConfig) -> int:
    """Input widths of the adapted linear layers of one decoder layer, added up."""
    return sum(inputs for inputs, _ in _adapted_shapes(figures, method))


def adapter_parameters(figures: ArchitectureConfig, method: MethodConfig) -> int:
    """Trained parameters of the adapters: two thin matrices per adapted layer; DoRA adds a magnitude per output."""
    adapted = _adapted_shapes(figures, method)
    per_layer = sum(method.rank * (inputs + outputs) for inputs, outputs in adapted)
    if method.kind is MethodKind.dora:
        per_layer += sum(outputs for _, outputs in adapted)
    return figures.num_layers * per_layer


def trained_parameters(figures: ArchitectureConfig, method: MethodConfig) -> int:
    """Parameters that get gradients."""
    return count_parameters(figures) if method.kind is MethodKind.full else adapter_parameters(figures, method)
