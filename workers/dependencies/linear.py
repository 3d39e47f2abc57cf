"""Linearising a model around its forward pass, so that contributions to the stream sum to what is read from it.

The rules of relevance patching (RelP; Jafari et al. 2025, after layer-wise relevance propagation): norm scales and
attention patterns are constants, an activation is x times the constant act(x)/x, and each factor of a gated product
gets half of it. Only gradients change; the values of the forward pass stay the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from featurewatch.workers.errors import RunError

ATTENTION = "featurewatch_constant_pattern"
SMALL = 1e-4
"""Inputs of an activation closer to 0 use the slope at this one, because act(x)/x is undefined at 0."""
_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
_PLAIN = (nn.Linear, Conv1D, nn.Embedding, nn.Dropout, nn.Identity)
_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")

Forward = Callable[[Tensor], Tensor]


@contextmanager
def linearised(model: nn.Module) -> Iterator[None]:
    """While open, gradients through `model` (a transformers body) are those of the linearised model.

    Raises RunError `method-unsupported` if a part of the model is unknown.
    """
    patches = _patches(model)
    for module, forward in patches:
        module.forward = forward
    try:
        with _constant_patterns(model):
            yield
    finally:
        for module, _ in patches:
            del module.forward


def unsupported(detail: str) -> RunError:
    """The error for a model that cannot be linearised."""
    return RunError("method-unsupported", f"{detail}. Use the method `gradient` or `integrated`.")


def _patches(model: nn.Module) -> list[tuple[nn.Module, Forward]]:
    """Modules and their new forward functions. Raises if any part of the model is unknown."""
    patches: list[tuple[nn.Module, Forward]] = []
    activations = 0
    for name, module in model.named_modules():
        kind = type(module)
        if "RMSNorm" in kind.__name__:
            patches.append((module, _checked(name, module, _rms_norm(module))))
        elif kind.__name__.endswith("LayerNorm"):
            patches.append((module, _checked(name, module, _layer_norm(module))))
        elif all(hasattr(module, part) for part in _GATED):
            patches.append((module, _checked(name, module, _gated(module), module.gate_proj.in_features)))
        elif kind.__module__ in _ACTIVATIONS:
            activations += 1
            patches.append((module, _activation(name, module)))
        elif not isinstance(module, _PLAIN) and not _passes_on(module):
            raise unsupported(f"cannot linearise {kind.__name__} ({name})")
    layers = getattr(model.config, "num_hidden_layers", 1)
    if activations < min(layers, _count_layers(model)):
        raise unsupported(f"the activation functions of {type(model).__name__} are not modules")
    return patches


def _passes_on(module: nn.Module) -> bool:
    """Whether a module only combines others: it has no weights and no gated product."""
    if "RotaryEmbedding" in type(module).__name__:
        return True
    own = list(module.parameters(recurse=False))
    return bool(list(module.children())) and not own and not hasattr(module, "gate_up_proj")


def _count_layers(model: nn.Module) -> int:
    """Length of the longest stack of modules."""
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=1)


@torch.no_grad()
def _checked(name: str, module: nn.Module, forward: Forward, width: int | None = None) -> Forward:
    """The forward function, after checking that it equals the module's on a random input."""
    weight = next(module.parameters(), None)
    if width is None:
        if weight is None:
            raise unsupported(f"the width of {type(module).__name__} ({name}) is unknown: it has no weights")
        width = weight.shape[-1]
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    if weight is not None:
        x = x.to(weight)
    expected, actual = module(x), forward(x)
    if not torch.allclose(expected, actual, rtol=1e-2 if x.dtype != torch.float32 else 1e-4, atol=1e-4):
        raise unsupported(f"{type(module).__name__} ({name}) does not compute what its name suggests")
    return forward


def _rms_norm(module: Any) -> Forward:
    eps = next((float(getattr(module, n)) for n in ("variance_epsilon", "eps") if hasattr(module, n)), None)
    if eps is None or getattr(module, "weight", None) is None:
        raise unsupported(f"{type(module).__name__} has no epsilon or weight with a known name")
    with torch.no_grad():  # some models store the weight as w - 1
        gain = module(torch.ones_like(module.weight)).float() * (1 + eps) ** 0.5

    def forward(x: Tensor) -> Tensor:
        scale = (x.detach().float().square().mean(-1, keepdim=True) + eps).rsqrt()
        return (x.float() * (scale * gain)).to(x.dtype)

    return forward


def _layer_norm(module: Any) -> Forward:
    eps = next((float(getattr(module, n)) for n in ("eps", "variance_epsilon") if hasattr(module, n)), None)
    if eps is None or getattr(module, "weight", None) is None:
        raise unsupported(f"{type(module).__name__} has no epsilon or weight with a known name")
    bias = getattr(module, "bias", None)

    def forward(x: Tensor) -> Tensor:
        centred = x.float() - x.float().mean(-1, keepdim=True)
        scale = (centred.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
        y = centred * scale * module.weight.float()
        return (y if bias is None else y + bias.float()).to(x.dtype)

    return forward


def _activation(name: str, module: nn.Module) -> Forward:
    act = module.forward  # the original: `module.forward` is patched later
    with torch.no_grad():
        if float(act(torch.zeros(1)).abs()) > 1e-6:
            raise unsupported(f"{type(module).__name__} ({name}) is not 0 at 0")
    return lambda x: _times_slope(act, x)


def _times_slope(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        away = x.where(x.abs() >= SMALL, SMALL)
        slope = act(away) / away
    return x * slope


def _gated(module: Any) -> Forward:
    def forward(x: Tensor) -> Tensor:
        gate, up = module.act_fn(module.gate_proj(x)), module.up_proj(x)
        result: Tensor = module.down_proj(0.5 * (gate * up.detach() + gate.detach() * up))
        return result

    return forward


@contextmanager
def _constant_patterns(model: Any) -> Iterator[None]:
    can = getattr(model, "_can_set_attn_implementation", None)
    if can is None or not can():
        raise unsupported(f"the attention of {type(model).__name__} cannot be replaced")
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention with a constant pattern. query: [b, heads, t, d]; key, value: [b, key heads, t, d]."""
    if options.get("s_aux") is not None:
        raise unsupported("the attention has learned sinks")
    groups = query.shape[1] // key.shape[1]
    with torch.no_grad():
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        logits = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
        softcap = options.get("softcap")
        if softcap is not None:
            logits = (logits / softcap).tanh() * softcap
        if attention_mask is not None:
            logits = logits + attention_mask
        pattern = logits.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (pattern @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), pattern
