"""Rounding weights and activations to fewer bits, as in a release of the same model in another data type."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Rounding = Literal["bfloat16", "int8"]


def round_weights(model: nn.Module, to: Rounding) -> None:
    """Round the model's weights in place, keeping their dtype.

    bfloat16 rounds all weights. int8 rounds the matrices of linear layers, with a scale per output channel (absmax),
    and leaves embeddings, norms and biases, as weight-only quantisation does.
    """
    with torch.no_grad():
        if to == "bfloat16":
            for tensor in model.parameters():
                tensor.copy_(tensor.bfloat16())
            return
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        for module in model.modules():
            transposed = isinstance(module, Conv1D)  # GPT-2's: [in, out]
            for tensor in module.parameters(recurse=False):
                if tensor.dim() >= 2 and id(tensor) not in embeddings:
                    tensor.copy_(to_int8(tensor.T).T if transposed else to_int8(tensor))


def round_rows(x: Tensor, to: Rounding) -> Tensor:
    """Rounded activations [n, d], in float32. int8 uses a scale per position."""
    return x.bfloat16().float() if to == "bfloat16" else to_int8(x.float())


def to_int8(x: Tensor) -> Tensor:
    """Round [..., d] to 255 even steps between plus and minus the largest magnitude along the last dimension."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / 127
    return (x / scale).round() * scale
