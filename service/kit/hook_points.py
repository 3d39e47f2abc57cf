"""The kinds of hook points: what a model can be read at. A hook point is a kind and a layer, `resid_post.12`.

A new kind is a row in `KINDS`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple


class HookPointKind(NamedTuple):
    """One kind."""

    name: str
    about: str
    modules: tuple[str, ...]
    """The module whose output is read, within a layer: the first of these paths that the layer has. `.` is the layer,
    `attention` and `mlp` are the modules whose outputs the layer adds to the residual stream"""
    transformer_lens: str
    """Name of the hook in TransformerLens"""

    @property
    def is_residual(self) -> bool:
        """Whether it is the residual stream after a layer, from which everything later follows."""
        return self.modules == (".",)

    @property
    def is_added(self) -> bool:
        """Whether the layer adds it to the residual stream."""
        return self.modules[0] in ("attention", "mlp")


KINDS = {
    kind.name: kind
    for kind in (
        HookPointKind("resid_post", "the residual stream after the layer", (".",), "hook_resid_post"),
        HookPointKind("mlp_out", "what the MLP adds to the residual stream", ("mlp",), "hook_mlp_out"),
        HookPointKind("attn_out", "what the attention adds to the residual stream", ("attention",), "hook_attn_out"),
    )
}
"""By name, the last that a layer computes first."""
_PATTERN = re.compile(rf"({'|'.join(KINDS)})\.(0|[1-9]\d{{0,3}})")
_ORDER = {name: place for place, name in enumerate(reversed(KINDS))}


def is_hook_point(name: str) -> bool:
    """Whether a text names a hook point: a known kind, and a layer up to 9999."""
    return _PATTERN.fullmatch(name) is not None


def kind_of(name: str) -> str:
    """Name of the kind: `resid_post` of `resid_post.12`."""
    return name.partition(".")[0]


def layer_of(name: str) -> int:
    """Number of the layer: 12 of `resid_post.12`."""
    return int(name.partition(".")[2])


def depth(name: str) -> tuple[int, int]:
    """Sorts hook points in the order in which a forward pass computes them."""
    return layer_of(name), _ORDER[kind_of(name)]


def ranges(names: Iterable[str]) -> str:
    """Names of hook points by kind: `resid_post.0 to resid_post.11, mlp_out.0 to mlp_out.11`."""
    layers: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for name in names:
        layers[kind_of(name)].append(layer_of(name))
    return ", ".join(f"{kind}.{min(at)} to {kind}.{max(at)}" for kind, at in layers.items() if at)
