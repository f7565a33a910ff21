"""Sizes of a model, and the bytes a token that its blocks keep for the backward pass.

What is saved was counted with torch.autograd.graph.saved_tensors_hooks on transformers' Qwen2 and Llama blocks in packed
form; tests count it again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING

from r1ranker.model.widths import Widths

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MASTER = 4
"""bytes of a float32 number: weights, gradients and each Adam moment are kept so"""


@dataclass(frozen=True, kw_only=True)
class ModelShape(Widths):
    """Sizes of a decoder shaped like Qwen2 or Llama, and of its parameters."""

    parameters: int
    """all of the language model's"""
    layer_parameters: int
    """of the largest block"""
    outer_parameters: int
    """embeddings (one where they are tied) and final norm"""
    largest_parameter: int
    """numbers in the largest one"""
    normed_heads: bool = False
    """whether queries and keys are normed, as Qwen3's are"""

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelShape:
        """The sizes that transformers builds from `config`; parameters are counted on a model without storage."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        blocks = [sum(one.numel() for one in block.parameters()) for block in model.base_model.layers]
        whole = sum(parameter.numel() for parameter in model.parameters())
        return cls(
            **asdict(Widths.from_config(config)) | {"layers": len(blocks)},
            parameters=whole,
            layer_parameters=max(blocks),
            outer_parameters=whole - sum(blocks),
            largest_parameter=max(parameter.numel() for parameter in model.parameters()),
            normed_heads=any(name.endswith("q_norm") for name, _ in model.base_model.layers[0].named_modules()),
        )

    @property
    def key_values(self) -> int:
        """Numbers that generation keeps of one token: keys and values of every block."""
        return 2 * self.layers * self.kv_heads * self.head_width

    @property
    def embedding(self) -> int:
        """Numbers in the embedding of tokens."""
        return self.vocabulary * self.hidden

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is the output layer's weight too."""
        return self.outer_parameters < 2 * self.embedding


@cache
def load_shape(path: str) -> ModelShape:
    """The shape of the model in a directory or on the hub; raises UserError where its config cannot be read."""
    from transformers import AutoConfig

    from r1ranker.errors import UserError, first_line

    try:
        return ModelShape.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: config.json of a model shaped like Qwen2 or Llama is wanted ({first_line(error)})"
        ) from error


def saved_by_block(shape: ModelShape, width: int, copies_output: bool = False) -> int:
    """Bytes a token that one block keeps for its backward pass, computed in numbers of `width` bytes.

    Each RMSNorm: its input in float32, the normed input, a factor. Attention: its input, queries, keys, values, output, a
    log-sum-exp a head in float32, and the output projection's input: a copy of the output where `copies_output`, as
    attention segment by segment has it.
    Feed-forward: its input, and gate, activated gate, up projection and their product.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    norms = 2 * ((MASTER + width) * shape.hidden + MASTER)
    if shape.normed_heads:
        norms += (MASTER + width) * (queries + keys) + MASTER * (shape.heads + shape.kv_heads)
    attention = width * (shape.hidden + (3 if copies_output else 2) * queries + 2 * keys) + MASTER * shape.heads
    return norms + attention + width * (shape.hidden + 4 * shape.intermediate)


def saved_outside(shape: ModelShape, width: int) -> int:
    """Bytes a token kept outside the blocks: its id, cosines and sines, the final norm's, and the states that predict."""
    return 8 + 2 * width * shape.head_width + (MASTER + width) * shape.hidden + MASTER + width * shape.hidden


def saved_bytes(shape: ModelShape, width: int, checkpointing: bool, copies_output: bool = False) -> int:
    """Bytes a token kept at the beginning of the backward pass; with checkpointing the input of each block, and one block anew."""
    block = saved_by_block(shape, width, copies_output)
    blocks = shape.layers * width * shape.hidden + block if checkpointing else shape.layers * block
    return blocks + saved_outside(shape, width)


def value_parameters(shape: ModelShape) -> int:
    """Parameters of a value model: no output embedding of its own, and a head of one row."""
    return shape.parameters - (0 if shape.is_tied else shape.embedding) + shape.hidden + 1
