"""Loss and gradients of a fit's step by DESIGN's formulas: dense, in float64, a full sort selects and autograd
differentiates. Slow, and as plain as can be: what the sparse code must agree with."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import FitState, Step, start
from featurewatch.workers.crosscoder.model import Crosscoder, tie_designated
from featurewatch.workers.crosscoder.parallel import Parallel
from featurewatch.workers.crosscoder.sparsity import Penalised

NAMES = ("encoder", "encoder bias", "decoder", "decoder bias", "log threshold")


class Jump(torch.autograd.Function):
    """(z, z > theta) -> (z [z > theta] / norm, [z > theta]) with a rectangular kernel of width epsilon = bandwidth
    theta for the step's derivative in theta (Rajamanoharan et al. 2024, equations 11 and 12), theta kept as its log."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, norms: Tensor, log_threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        theta = log_threshold.exp()
        gate = (pre * norms > theta).double()
        ctx.save_for_backward(pre * norms, norms, theta, gate)
        ctx.epsilon = bandwidth * theta
        return pre * gate, gate

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, Tensor, None]:  # type: ignore[override]
        score, norms, theta, gate = ctx.saved_tensors
        kernel = (((score - theta) / ctx.epsilon).abs() < 0.5).double()
        in_code = -(theta / ctx.epsilon) * kernel / norms
        in_gate = -kernel / ctx.epsilon
        return upstream[0] * gate, None, ((upstream[0] * in_code + upstream[1] * in_gate) * theta).sum(0), None


def seen_sources(valid: Tensor, draw: Tensor | None, dropout: float) -> Tensor:
    """Sources that the encoder sees [b, S]: those that are valid and drawn, one of the valid at least."""
    seen = valid.clone()
    for position, chances in enumerate([] if draw is None else draw.tolist()):
        there = [s for s, is_valid in enumerate(valid[position].tolist()) if is_valid]
        kept = [s for s in there if chances[s] >= dropout] or sorted(there, key=lambda s: chances[s])[-1:]
        seen[position] = torch.tensor([s in kept for s in range(len(chances))])
    return seen


def active(config: FitConfig, pre: Tensor, scores: Tensor) -> Tensor:
    """Which of the entries [b, m] a selection keeps, by sorting them all."""
    scores = scores.detach() * (pre.detach() > 0)
    if config.sparsity == "batch_topk":
        cut = scores.flatten().sort(descending=True).values[len(pre) * config.k - 1]
    elif config.sparsity == "topk":
        cut = scores.sort(dim=1, descending=True).values[:, config.k - 1 : config.k]
    else:
        cut = torch.zeros(())
    return (scores >= cut) & (scores > 0)


def reference(
    model: Crosscoder, x: Tensor, *, draw: Tensor | None, penalty: float, dead: Tensor
) -> tuple[float, list[Tensor]]:
    """Loss without aux, and gradients with it in the order of `parameters`. x: [b, D] with NaN; dead: int64."""
    config, widths = model.config, list(model.layout.widths)
    parameters = [p.double().clone().requires_grad_() for p in model.parameters()]
    encoder, encoder_bias, decoder, decoder_bias, *log_threshold = parameters
    owned = config.owned(model.layout, "cpu")
    free = decoder if owned is None else decoder * owned.double()
    rows = [free @ p.double() for p in model.maps] if model.maps else list(free.split(widths, 1))
    prices = torch.ones(config.n_features, dtype=torch.float64)
    prices[: config.designated] = config.designated_discount

    valid = torch.stack([~part.isnan().any(1) for part in x.split(widths, 1)], 1)
    seen = seen_sources(valid, draw, config.source_dropout).double()
    sources = [part.nan_to_num(0.0).double() for part in x.split(widths, 1)]
    gain = len(widths) / seen.sum(1, keepdim=True)
    read = zip(sources, encoder.split(widths, 1), seen.split(1, 1), strict=True)
    pre = torch.stack([v * (part @ weights.T) for part, weights, v in read]).sum(0) * gain + encoder_bias

    norms = torch.stack([part.square().sum(1) for part in rows]).sum(0).sqrt().detach()
    if config.sparsity == "jumprelu":
        f, gate = Jump.apply(pre, norms, log_threshold[0], config.bandwidth)
        cost = (gate * prices).sum(1).mean()
    else:
        f = pre * active(config, pre, pre * norms / prices.sqrt())
        written = torch.stack([part.norm(dim=1) for part in rows]).sum(0)
        cost = (f * prices * written).sum(1).mean() if config.sparsity == "l1" else torch.zeros(())

    def error(code: Tensor, decoders: list[Tensor]) -> list[Tensor]:
        biases = decoder_bias.split(widths)
        return [code @ part + bias - x_s for part, bias, x_s in zip(decoders, biases, sources, strict=True)]

    def squares(errors: list[Tensor], v: Tensor) -> Tensor:
        parts = [v[:, s] * e.square().sum(1) / d for s, (e, d) in enumerate(zip(errors, widths, strict=True))]
        return torch.stack(parts).sum(0).mean()

    levels = [*config.prefixes, config.n_features]
    parts = [squares(error(f[:, :stop], [r[:stop] for r in rows]), valid) for stop in levels]
    loss = torch.stack(parts).mean() + penalty * cost

    total = loss
    if len(dead):
        few = slice(0, 256)
        k = min(len(dead), max(1, decoder.shape[1] // 2), 256)
        z = pre[few][:, dead].relu()
        kept = z * (z >= z.sort(1, descending=True).values[:, k - 1 : k])
        fixed = [e[few].detach() for e in error(f, rows)]
        left = [e + kept @ r[dead] for e, r in zip(fixed, rows, strict=True)]
        total = loss + config.aux_weight * squares(left, valid[few])
    total.backward()
    return float(loss.detach()), [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


class Recording(Step):
    """A step that keeps its gradients instead of taking them."""

    gradients: list[Tensor]

    def _adam(self, state: FitState, gradients: list[Tensor]) -> None:
        self.gradients = gradients


def away_from_start(config: FitConfig, layout: Layout, maps: tuple[Tensor, ...] = ()) -> FitState:
    """A state with random parameters: encoder and decoder differ, biases are not 0. Its first step has been taken."""
    state = start(config, layout, maps=maps)
    generator = torch.Generator().manual_seed(7)
    for parameter, size in zip(state.model.parameters(), (0.4, 0.1, 0.4, 0.2, 0.3), strict=False):
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    owned = config.owned(layout, "cpu")
    if owned is not None:
        state.model.decoder *= owned
    tie_designated(state.model)
    state.step = 1
    return state


class Compared(NamedTuple):
    """One step, both ways."""

    state: FitState
    step: Recording
    wanted: list[Tensor]


def compare(
    config: FitConfig,
    layout: Layout,
    *,
    b: int = 200,
    maps: tuple[Tensor, ...] = (),
    invalid: bool = False,
    dead_share: float = 0.0,
    penalty: float = 0.0,
) -> Compared:
    """Take a step and assert that its loss and the gradients of all parameters are the formulas'.

    invalid: a third of the positions lacks a source. dead_share: of the latents, which AuxK is to reach.
    """
    state, step = away_from_start(config, layout, maps), Recording(config, layout, b, Parallel())
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(b, layout.width, generator=generator)
    if invalid:
        for source, part in enumerate(x.split(layout.widths, 1)):
            part[source :: 3 * len(layout.widths)] = torch.nan
    dead = (torch.rand(config.n_features, generator=generator) < dead_share).nonzero().squeeze(1)
    if not isinstance(
        state.model.sparsity, Penalised
    ):  # scores too small to be selected: they stay dead through the step
        state.model.decoder[dead] *= 0.02
        state.silent[dead] = 10**9
    elif len(dead):
        raise ValueError("only a selection leaves latents out that have a pre-activation over 0")
    state.penalty = penalty
    draw = step.draw(state.step)
    loss, wanted = reference(state.model, x, draw=draw, penalty=penalty, dead=dead)
    step(state, x)
    assert abs(state.losses[-1] - loss) <= 1e-5 * loss
    assert state.silent.max() < 10**9 if not len(dead) else int((state.silent >= step.dead_after).sum()) == len(dead)
    assert len(step.gradients) == len(wanted)
    for name, got, exact in zip(NAMES, step.gradients, wanted, strict=False):
        largest = float(exact.abs().max())
        assert largest > 0, f"{name} has no gradient"
        torch.testing.assert_close(
            got.double(), exact, atol=1e-5 * largest, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
    return Compared(state, step, wanted)
