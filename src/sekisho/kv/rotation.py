"""The transforms that make a row of keys or values nearly normal before it is quantised.

A Hadamard rotation with random signs spreads what stands in a few channels over all of them, so that one scale fits the
whole row (QuaRot, Ashkboos et al. 2024). It is orthogonal: dot products stay what they were.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_LOOKED_AT = 0.75  # of the keys' centre: by attention; the rest by number


@cache
def rotation(head_dim: int, device: torch.device, seed: int = 0) -> Tensor:
    """(D, D) float32, orthogonal. A row x is rotated as `x @ rotation`, and back as `y @ rotation.T`. Blocks of the
    largest power of two that divides D, each with its own signs."""
    block = head_dim & -head_dim
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while hadamard.shape[0] < block:
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)), 0)
    signs = torch.randint(0, 2, (head_dim,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    whole = torch.block_diag(*[hadamard / block**0.5] * (head_dim // block))
    return (signs[:, None] * whole).float().to(device)


def centres(keys: Tensor, values: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is taken off a head's keys and values before they are quantised: (rows, H, 1, D) float32, of (rows, H, n, D)
    tokens and their share of attention (rows, H, n). Where attention lies, the stored numbers should be small. Never a
    value's plain mean: the tokens that soak attention up have values near zero, which it would make large. Measured."""
    plain = keys.float().mean(2, keepdim=True)
    if mass is None:
        return plain, torch.zeros_like(plain)
    weights = (mass / mass.sum(-1, keepdim=True).clamp(min=1e-12)).unsqueeze(2).float()
    return _LOOKED_AT * (weights @ keys.float()) + (1 - _LOOKED_AT) * plain, weights @ values.float()


@dataclass(frozen=True)
class Transform:
    """How the numbers of B rows and H heads are stored in quantised pages: less their head's mean, rotated. `means` of
    keys and values are (B, H, 1, D). `owners` (n, 2) are the row and the head of each of n pages."""

    means: tuple[Tensor, Tensor]
    rotation: Tensor

    def stored(self, keys: Tensor, values: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """(n, tokens, D) as a model gives them, to float32 as quantised pages store them."""
        row, head = owners.unbind(1)
        first, second = (
            (each.float() - mean[row, head].float()) @ self.rotation
            for each, mean in zip((keys, values), self.means, strict=True)
        )
        return first, second

    def plain(self, keys: Tensor, values: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `stored`, in float32."""
        row, head = owners.unbind(1)
        first, second = (
            each.float() @ self.rotation.T + mean[row, head].float()
            for each, mean in zip((keys, values), self.means, strict=True)
        )
        return first, second
