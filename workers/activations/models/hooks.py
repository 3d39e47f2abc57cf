"""Hook points: finding them in a model, and reading them with forward hooks.

`service.kit.hook_points` lists their kinds. What a block adds to the stream is meant literally: an output that passes a
norm before it is added (Gemma 2 and 3, OLMo 2, GLM 4) is read after that norm, and one that is scaled (Granite) is
scaled. In BERT-like models, which normalise the *sum*, it is the output before the sum, and resid_post is read after
the layer's last norm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featurewatch.service.kit.hook_points import KINDS, HookPointKind, kind_of, ranges
from featurewatch.workers.errors import RunError

# Paths of the stack of layers in a model's body.
_STACKS = ("layers", "h", "encoder.layer", "transformer.layer", "decoder.layers", "language_model.layers")
# (attention, MLP) of a layer: the modules whose output is added to the stream. The first pair that exists is used.
_POST_NORMS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)
_BERT_LIKE = (("attention.output.dense", "output.dense"),)
_PLAIN = (("self_attn", "mlp"), ("attn", "mlp"), ("attention", "mlp"), ("attention", "ffn"), ("self_attn", "fc2"))


@dataclass(frozen=True)
class HookPoint:
    """A hook point: the output of a module, times the factor with which it enters the stream."""

    name: str
    layer: int
    module: nn.Module
    factor: float = 1.0

    @property
    def kind(self) -> HookPointKind:
        return KINDS[kind_of(self.name)]


def layer_stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The stack of layers as (owner, attribute, layers). Raises RunError `unsupported-architecture`."""
    for path in _STACKS:
        owner_path, _, attribute = path.rpartition(".")
        owner = _find(model, owner_path) if owner_path else model
        stack = getattr(owner, attribute, None)
        if isinstance(stack, nn.ModuleList) and len(stack) and len({id(layer) for layer in stack}) == len(stack):
            return owner, attribute, stack  # type: ignore[return-value]
    raise RunError(
        "unsupported-architecture",
        f"The layers of {type(model).__name__} could not be found. Supported are Llama, Qwen, Gemma, Mistral, GPT-2, "
        "GPT-NeoX, BERT and models with the same structure.",
    )


def find_hook_points(model: nn.Module) -> dict[str, HookPoint]:
    """All hook points of a model's body by name, layer by layer."""
    points = {}
    for number, layer in enumerate(layer_stack(model)[2]):
        factor = float(getattr(layer, "residual_multiplier", 1.0))
        for kind in KINDS.values():
            module = _module(layer, kind)
            if module is not None:
                name = f"{kind.name}.{number}"
                points[name] = HookPoint(name, number, module, factor if kind.is_added else 1.0)
    return points


def choose_hook_points(model: nn.Module, names: list[str]) -> list[HookPoint]:
    """The named hook points. Raises RunError `unknown-hook-point`, which lists the available ones."""
    points = find_hook_points(model)
    for name in names:
        if name not in points:
            raise RunError(
                "unknown-hook-point",
                f"{type(model).__name__} has no hook point {name}. Available: {ranges(points)}.",
            )
    return [points[name] for name in names]


def drop_later_layers(model: nn.Module, points: list[HookPoint]) -> None:
    """Remove, in place, the layers after the last hook point, which then take neither time nor memory."""
    owner, attribute, layers = layer_stack(model)
    setattr(owner, attribute, layers[: max(point.layer for point in points) + 1])


@contextmanager
def without_later_layers(model: nn.Module, points: list[HookPoint]) -> Iterator[None]:
    """While open, the layers after the last hook point are not run."""
    owner, attribute, layers = layer_stack(model)
    drop_later_layers(model, points)
    try:
        yield
    finally:
        setattr(owner, attribute, layers)


@contextmanager
def capture(points: list[HookPoint]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, every forward fills the yielded dictionary: hook point -> [batch, tokens, d_model], in the model's
    dtype and on its device."""
    captured: dict[str, torch.Tensor] = {}
    handles = [point.module.register_forward_hook(_store(point, captured)) for point in points]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _store(point: HookPoint, captured: dict[str, torch.Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        captured[point.name] = tensor if point.factor == 1.0 else tensor * point.factor

    return hook


@torch.no_grad()
def probe(model: nn.Module, points: list[HookPoint]) -> dict[str, int]:
    """Widths of hook points, from a forward pass over a few tokens that also proves that the hook points are right.

    In a layer that adds its blocks to the stream, output - input must equal attention + MLP. Raises RunError
    `unsupported-architecture` otherwise, or if an activation is not [batch, tokens, width].
    """
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = (torch.arange(8, device=next(model.parameters()).device) % vocabulary)[None]
    layers = layer_stack(model)[2]
    added = [point for point in points if point.kind.is_added]
    to_prove = sorted({point.layer for point in added if not _post_norm_sum(layers[point.layer])})
    everything = find_hook_points(model)
    proof = [kind.name for kind in KINDS.values() if kind.is_added or kind.is_residual]
    names = {point.name for point in points} | {f"{kind}.{layer}" for layer in to_prove for kind in proof}
    entered: dict[int, torch.Tensor] = {}
    handles = [layers[layer].register_forward_pre_hook(_enter(layer, entered), with_kwargs=True) for layer in to_prove]
    try:
        with capture([everything[name] for name in sorted(names)]) as seen:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    for name, tensor in seen.items():
        if tensor.dim() != 3 or tensor.shape[:2] != ids.shape:
            shape = list(tensor.shape)
            raise RunError("unsupported-architecture", f"{name} has shape {shape}, not [documents, tokens, width].")
    for layer in to_prove:
        output = seen[f"resid_post.{layer}"]
        change = output.float() - entered[layer].float()
        blocks_sum = seen[f"attn_out.{layer}"].float() + seen[f"mlp_out.{layer}"].float()
        rounding = 8 * torch.finfo(output.dtype).eps * output.float().norm()
        if (change - blocks_sum).norm() > 1e-3 * change.norm() + rounding:
            raise RunError(
                "unsupported-architecture",
                f"{type(model).__name__}: layer {layer} adds more to the stream than its attention and MLP. Use "
                "resid_post hook points for this model.",
            )
    return {point.name: seen[point.name].shape[-1] for point in points}


def _enter(layer: int, entered: dict[int, torch.Tensor]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered[layer] = (inputs[0] if inputs else named["hidden_states"]).clone()

    return hook


def _blocks(layer: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """(attention, MLP) modules of a layer; None if their names are unknown."""
    for pair in (*_POST_NORMS, *_BERT_LIKE, *_PLAIN):
        attention, mlp = (_find(layer, path) for path in pair)
        if attention is not None and mlp is not None:
            return attention, mlp
    return None


def _module(layer: nn.Module, kind: HookPointKind) -> nn.Module | None:
    """The module of a layer whose output is a kind of hook point; None if it is unknown."""
    blocks = dict(zip(("attention", "mlp"), _blocks(layer) or (None, None), strict=True))
    modules = (
        layer if path == "." else blocks[path] if path in blocks else _find(layer, path) for path in kind.modules
    )
    return next((module for module in modules if module is not None), None)


def _post_norm_sum(layer: nn.Module) -> bool:
    """Whether the layer normalises the sum (BERT, DistilBERT), so that its output is not a sum of parts."""
    return _find(layer, "output.LayerNorm") is not None or _find(layer, "output_layer_norm") is not None


def _find(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module
