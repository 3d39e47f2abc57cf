"""Random models in float64 with random dictionaries and codes, for tests of attribution."""

from typing import Any

import torch
from scipy import sparse
from torch import Tensor

from featurewatch.workers.activations.models.hooks import choose_hook_points
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.dependencies.attribution import Options
from featurewatch.workers.dependencies.reading import Dictionary, Passage, Reading, Target
from tests.unit.activations.tiny import make_model

M = 12
PLACES = ["resid_post.0", "mlp_out.1", "resid_post.2"]
LENGTHS = (9, 14, 6, 11)
OPTIONS = Options(method="relp", batch_tokens=32, folds=3)


def body(name: str = "llama") -> Any:
    """A random model without its head."""
    model: Any = make_model(name).double().eval()
    model = getattr(model, "base_model", model)
    model.config.use_cache = False
    return model.requires_grad_(False)


def reading(name: str = "llama", places: list[str] | None = None) -> Reading:
    """The model with a dictionary at each place; the first token and the third of each passage have no code."""
    model, generator = body(name), torch.Generator().manual_seed(1)
    points = choose_hook_points(model, places or PLACES)
    passages, row = [], 0
    for fold, length in enumerate(LENGTHS):
        tokens = torch.tensor([t for t in range(1, length) if t != 3])
        ids = torch.randint(1, 390, (length,), generator=generator)
        passages.append(Passage(ids, torch.arange(row, row + len(tokens)), tokens, fold % 3))
        row += len(tokens)
    dense = torch.rand(row, M, generator=generator) * (torch.rand(row, M, generator=generator) < 0.3)
    code = Code.from_scipy(sparse.csr_matrix(dense.numpy()))
    code = code._replace(values=code.values.double())
    dictionaries = {point.name: dictionary(32, generator) for point in points}
    return Reading(model, list(points), dictionaries, code, passages)


def dictionary(d: int, generator: torch.Generator) -> Dictionary:
    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return Dictionary(random(d), 1.7, random(M, d), random(d), random(d, M), random(M))


def target(of: Reading, place: str, column: int) -> Target:
    """The feature at the positions where it fires, one passage left out."""
    dense = torch.from_numpy(of.code.to_scipy().toarray())
    tokens = [p.tokens[dense[p.rows, column] > 0] for p in of.passages]
    tokens[2] = tokens[2][:0]
    return Target(place, column, tokens)
