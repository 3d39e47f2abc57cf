"""Removing directions from a language model's weights, each by its own share.

Everything in the residual stream was written by the token embedding, an attention output or an MLP output. With the
unit directions as rows of D [k, d] and the shares alpha [k], each writing matrix W is replaced by M W with

    M = I - P diag(alpha) D,        P = D^T (D D^T)^-1        (d_i . p_j = 1 where i = j, else 0)

so that D M = (I - diag(alpha)) D: whatever a layer computes, the part that it writes along d_j is exactly
(1 - alpha_j) of what it would have been, for all j at once. That takes the dual basis P: subtracting alpha_j d_j d_j^T
for each j would remove too much or too little where the directions are not orthogonal.

Layers read the changed stream, so their outputs shift a little too, but nothing restores a fully ablated direction.
"""

from typing import Any

import torch
from torch import Tensor, nn


def ablation_matrix(directions: Tensor, alphas: Tensor, targets: Tensor | None = None) -> Tensor:
    """The map M [d, d] of this module's docstring, float64.

    directions: [k, d] linearly independent rows of any length. alphas: [k] in [0, 1]; negative ones amplify.
    targets: [k, d] unit rows along which the removed part is written instead (zeros: nowhere). Raises ValueError if a
    row is zero, or the rows are linearly dependent.
    """
    D = directions.double()
    norms = D.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError("a direction of length zero cannot be ablated")
    D = D / norms
    gram = D @ D.T
    if torch.linalg.cond(gram) > 1e6:
        raise ValueError("the directions are nearly linearly dependent; choose ones that are further apart")
    dual = torch.linalg.solve(gram, D).T  # [d, k]
    moved = dual if targets is None else dual - targets.double().T
    M: Tensor = torch.eye(D.shape[1], dtype=D.dtype) - moved @ (alphas.double()[:, None] * D)
    return M


def writing_matrices(model: nn.Module) -> dict[str, nn.Embedding | nn.Linear]:
    """Modules of a Llama-like model that write to the residual stream: the embedding, each o_proj and down_proj.

    Raises ValueError for other architectures: an ablation that misses a matrix would be incomplete.
    """
    writers = {
        name: module
        for name, module in model.named_modules()
        if name.endswith(("embed_tokens", ".self_attn.o_proj", ".mlp.down_proj"))
        and isinstance(module, nn.Embedding | nn.Linear)
    }
    config: Any = model.config
    expected = 1 + 2 * int(config.num_hidden_layers)
    if len(writers) != expected:
        raise ValueError(
            f"{type(model).__name__} has {len(writers)} of the {expected} writing modules of a Llama-like model"
        )
    return writers


@torch.no_grad()
def ablate(model: nn.Module, directions: Tensor, alphas: Tensor, targets: Tensor | None = None) -> None:
    """Remove `alphas` [k] of `directions` [k, d_model] from every matrix that writes to the stream, in place.

    targets: as in `ablation_matrix`.

    Biases of the writers are written to the stream as well and change alike. Where the head is tied to the embedding it
    changes with it: that moves the logits, but no hidden state, and hidden states are all that is watched here.
    """
    M = ablation_matrix(directions, alphas, targets)
    for module in writing_matrices(model).values():
        weight = module.weight
        # An embedding's rows are what it writes; a linear layer writes its columns.
        changed = weight.double() @ M.T if isinstance(module, nn.Embedding) else M @ weight.double()
        weight.copy_(changed)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.copy_(M @ module.bias.double())
