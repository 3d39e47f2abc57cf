"""Hook points: where they are in a model, and reading them with plain forward hooks.

    resid_post.N   the residual stream after layer N
    mlp_out.N      what layer N's MLP adds to the stream
    attn_out.N     what layer N's attention adds to the stream

"Adds" is meant literally. Where a block's output passes a norm before it is added (Gemma 2 and 3, OLMo 2, GLM 4) it
is read behind that norm; where it is multiplied (Granite) it is multiplied; in BERT-like models, which normalise the
*sum*, it is the block's output before sum and norm, and resid_post is read behind the layer's last norm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featurewatch.workers.errors import RunError

KINDS = ("resid_post", "mlp_out", "attn_out")

# Where the stack of layers is, in the body of a model (no head).
_STACKS = ("layers", "h", "encoder.layer", "transformer.layer", "decoder.layers", "language_model.layers")
# (attention, MLP) of a layer: the modules whose output is added to the stream. The first pair that is there counts.
_POST_NORMS = (
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_feedforward_layernorm"),
)
_BERT_LIKE = (("attention.output.dense", "output.dense"),)
_PLAIN = (("self_attn", "mlp"), ("attn", "mlp"), ("attention", "mlp"), ("attention", "ffn"), ("self_attn", "fc2"))


@dataclass(frozen=True)
class HookPoint:
    """One hook point of a model: the module whose output it is, and the factor with which it enters the stream."""

    name: str
    layer: int
    module: nn.Module
    factor: float = 1.0


def layer_stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The stack of layers as (owner, attribute, layers). RunError `unsupported-architecture`."""
    for path in _STACKS:
        owner_path, _, attribute = path.rpartition(".")
        owner = _find(model, owner_path) if owner_path else model
        stack = getattr(owner, attribute, None)
        if isinstance(stack, nn.ModuleList) and len(stack) and len({id(layer) for layer in stack}) == len(stack):
            return owner, attribute, stack  # type: ignore[return-value]
    raise RunError(
        "unsupported-architecture",
        f"{type(model).__name__} has no stack of layers that featurewatch knows "
        "(Llama, Qwen, Gemma, Mistral, GPT-2, GPT-NeoX, BERT and models built like them)",
    )


def find_hook_points(model: nn.Module) -> dict[str, HookPoint]:
    """Every hook point of a model's body, by name, layer by layer."""
    points = {}
    for number, layer in enumerate(layer_stack(model)[2]):
        modules = dict(zip(("attn_out", "mlp_out"), _blocks(layer) or (), strict=False))
        factor = float(getattr(layer, "residual_multiplier", 1.0))
        points[f"resid_post.{number}"] = HookPoint(f"resid_post.{number}", number, layer)
        for kind in ("mlp_out", "attn_out"):
            if kind in modules:
                points[f"{kind}.{number}"] = HookPoint(f"{kind}.{number}", number, modules[kind], factor)
    return points


def in_order(points: list[HookPoint]) -> list[HookPoint]:
    """Hook points in the order in which a forward pass writes them."""
    return sorted(points, key=lambda point: (point.layer, -KINDS.index(point.name.partition(".")[0])))


def list_hook_points(model: nn.Module) -> list[str]:
    """Names of the hook points of a model's body."""
    return list(find_hook_points(model))


def choose_hook_points(model: nn.Module, names: list[str]) -> list[HookPoint]:
    """The named hook points. RunError `unknown-hook-point` that lists those the model has."""
    points = find_hook_points(model)
    for name in names:
        if name not in points:
            kinds = {kind: [p.layer for p in points.values() if p.name.startswith(kind)] for kind in KINDS}
            there = ", ".join(f"{kind}.{min(at)} to {kind}.{max(at)}" for kind, at in kinds.items() if at)
            raise RunError("unknown-hook-point", f"the model ({type(model).__name__}) has no hook point {name}; "
                           f"it has {there}")  # fmt: skip
    return [points[name] for name in names]


def drop_later_layers(model: nn.Module, points: list[HookPoint]) -> None:
    """Remove the layers that no hook point needs: they are then neither run nor held in memory. Changes the model."""
    owner, attribute, layers = layer_stack(model)
    setattr(owner, attribute, layers[: max(point.layer for point in points) + 1])


@contextmanager
def without_later_layers(model: nn.Module, points: list[HookPoint]) -> Iterator[None]:
    """While open, the layers that no hook point needs are not run."""
    owner, attribute, layers = layer_stack(model)
    drop_later_layers(model, points)
    try:
        yield
    finally:
        setattr(owner, attribute, layers)


@contextmanager
def capture(points: list[HookPoint]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, every forward fills the yielded dictionary: hook point -> [batch, tokens, d_model], in the model's
    dtype and on its device. Hooks are gone afterwards."""
    captured: dict[str, torch.Tensor] = {}
    handles = [point.module.register_forward_hook(_keep(point, captured)) for point in points]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _keep(point: HookPoint, captured: dict[str, torch.Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        captured[point.name] = tensor if point.factor == 1.0 else tensor * point.factor

    return hook


@torch.no_grad()
def probe(model: nn.Module, points: list[HookPoint]) -> dict[str, int]:
    """Widths of hook points, by one forward over a few tokens that also proves that they are what they are called.

    In a layer that adds its blocks to the stream, output - input must be attention + MLP. RunError
    `unsupported-architecture` where it is not, or where an activation is not [batch, tokens, width].
    """
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = (torch.arange(8, device=next(model.parameters()).device) % vocabulary)[None]
    layers = layer_stack(model)[2]
    blocks = [point for point in points if not point.name.startswith("resid_post")]
    to_prove = sorted({point.layer for point in blocks if not _post_norm_sum(layers[point.layer])})
    everything = find_hook_points(model)
    names = {point.name for point in points} | {f"{kind}.{layer}" for layer in to_prove for kind in KINDS}
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
            raise RunError("unsupported-architecture", f"{name} has shape {list(tensor.shape)}; expected "
                           "[documents, tokens, width]")  # fmt: skip
    for layer in to_prove:
        leaves = seen[f"resid_post.{layer}"]
        added = leaves.float() - entered[layer].float()
        blocks_sum = seen[f"attn_out.{layer}"].float() + seen[f"mlp_out.{layer}"].float()
        rounding = 8 * torch.finfo(leaves.dtype).eps * leaves.float().norm()
        if (added - blocks_sum).norm() > 1e-3 * added.norm() + rounding:
            raise RunError(
                "unsupported-architecture",
                f"{type(model).__name__}: layer {layer} adds something else to the stream than its attention and MLP; "
                "use resid_post hook points for this model",
            )
    return {point.name: seen[point.name].shape[-1] for point in points}


def _enter(layer: int, entered: dict[int, torch.Tensor]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered[layer] = (inputs[0] if inputs else named["hidden_states"]).clone()

    return hook


def _blocks(layer: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """(attention, MLP) modules of a layer; None where they are not known by name."""
    for pair in (*_POST_NORMS, *_BERT_LIKE, *_PLAIN):
        attention, mlp = (_find(layer, path) for path in pair)
        if attention is not None and mlp is not None:
            return attention, mlp
    return None


def _post_norm_sum(layer: nn.Module) -> bool:
    """Whether the layer normalises the sum (BERT, DistilBERT): its output is then no sum of parts."""
    return _find(layer, "output.LayerNorm") is not None or _find(layer, "output_layer_norm") is not None


def _find(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module
