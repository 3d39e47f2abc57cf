"""A fit over several processes, sharded by positions and by latents. The result equals that of a single process.

The ranks form a grid of `data` rows and `latent` columns. A rank holds the latents of its column and sees the positions
of its row in every batch. Per step it exchanges candidate scores (selection), the reconstruction [b, D] over the
latents of its row, and the gradients over the positions of its column.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Parallel:
    """This process's place in the grid, and its communication. A single process exchanges nothing."""

    def __init__(self, data: int = 1, latent: int = 1) -> None:
        """Raises ValueError unless the process group has data x latent ranks."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        if data * latent != world:
            raise ValueError(f"the grid has {data} x {latent} ranks, but the process group has {world}")
        rank = dist.get_rank() if world > 1 else 0
        self.rank, self.data, self.latent = rank, data, latent
        self.data_rank, self.latent_rank = divmod(rank, latent)
        self._over_data = self._over_latents = self._world = None
        if world > 1:
            self._world = dist.group.WORLD
            for column in range(latent):
                group = dist.new_group([row * latent + column for row in range(data)])
                if column == self.latent_rank:
                    self._over_data = group
            for row in range(data):
                group = dist.new_group([row * latent + column for column in range(latent)])
                if row == self.data_rank:
                    self._over_latents = group

    @classmethod
    def one(cls) -> "Parallel":
        """A single process, even inside a process group."""
        parallel = object.__new__(cls)
        parallel.rank = parallel.data_rank = parallel.latent_rank = 0
        parallel.data = parallel.latent = 1
        return parallel

    @property
    def alone(self) -> bool:
        return self.data * self.latent == 1

    def rows(self, rows: Tensor) -> Tensor:
        """This rank's share of a batch: every `data`-th position."""
        return rows[self.data_rank :: self.data]

    def latents(self, m: int) -> slice:
        """This rank's range of m latents. Raises ValueError unless they divide evenly."""
        if m % self.latent:
            raise ValueError(f"{m} latents cannot be split evenly over {self.latent} processes")
        share = m // self.latent
        return slice(share * self.latent_rank, share * (self.latent_rank + 1))

    def sum_over_data(self, *tensors: Tensor) -> None:
        """Sum in place over the ranks that hold the same latents."""
        if self.data > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self._over_data)

    def sum_over_latents(self, tensor: Tensor) -> Tensor:
        """Sum in place over the ranks that see the same positions."""
        if self.latent > 1:
            dist.all_reduce(tensor, group=self._over_latents)
        return tensor

    def total(self, value: float) -> float:
        """Sum of a number over all ranks."""
        if self.alone:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor)

    def gather(self, values: Tensor) -> Tensor:
        """Entries [n_r] of all ranks, concatenated."""
        return values if self.alone else torch.cat(_gather(values, self._world, self.data * self.latent))

    def over_data(self, values: Tensor) -> Tensor:
        """Entries [n_r, ...] of the ranks that hold the same latents, in the order of the batch (see `rows`)."""
        if self.data == 1:
            return values
        parts = _gather(values, self._over_data, self.data)
        # The first ranks may hold one more position; the padding of the others comes last.
        return torch.stack([_padded(part, len(parts[0])) for part in parts], 1).flatten(0, 1)[: sum(map(len, parts))]

    def over_latents(self, values: Tensor, dim: int = 0) -> Tensor:
        """The parts of the ranks that see the same positions, concatenated along `dim`."""
        if self.latent == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.latent)]
        dist.all_gather(parts, values.contiguous(), group=self._over_latents)
        return torch.cat(parts, dim)


def _gather(values: Tensor, group: dist.ProcessGroup | None, size: int) -> list[Tensor]:
    """Each rank's tensor. First dimensions may differ; tensors are padded in transit."""
    count = torch.tensor([len(values)], device=values.device)
    counts = [torch.zeros_like(count) for _ in range(size)]
    dist.all_gather(counts, count, group=group)
    longest = max(int(c) for c in counts)
    padded = _padded(values, longest)
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded, group=group)
    return [part[: int(c)] for part, c in zip(parts, counts, strict=True)]


def _padded(values: Tensor, length: int) -> Tensor:
    """Pad the first dimension with zeros."""
    padded = values.new_zeros(length, *values.shape[1:])
    padded[: len(values)] = values
    return padded
