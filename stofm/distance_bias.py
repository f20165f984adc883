"""A learned function of distance: exact with gradients, and without them in bounded memory or from a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stofm.errors import ConfigError

CHUNK, CHUNK_ON_GPU = 2**14, 2**20  # distances at a time where no gradient is wanted
FEWEST_KNOTS, MOST_KNOTS = 2**14, 2**18
TABLE_ERROR = 1e-4  # largest of a bias; attention weights then change by less than one part in 5,000


class DistanceBias(nn.Module, ABC):
    """Base of the pair biases: a subclass writes the formula, `farthest` is where its table ends."""

    farthest: float
    _table: DistanceTable | None = None

    @abstractmethod
    def formula(self, distance: Tensor) -> Tensor:
        """Map (E,) distances to (E, H) biases; continuous."""

    def of_distance(self, distance: Tensor) -> Tensor:
        """Map (E,) distances to (E, H) biases; without gradients from the table, where one was made of these weights and reaches far enough."""
        if torch.is_grad_enabled():
            return self.formula(distance)
        if (table := self.table) is not None and len(distance) and distance.max() <= self.farthest:
            return table(distance)
        chunk = CHUNK_ON_GPU if distance.is_cuda else CHUNK
        return torch.cat([self.formula(some) for some in distance.split(chunk)]) if len(distance) else self.formula(distance)

    @property
    def table(self) -> DistanceTable | None:
        """The table, if one was made of the weights as they are."""
        return self._table if self._table is not None and self._table.made_of == self._versions() else None

    @torch.no_grad()
    def tabulate(self, tolerance: float = TABLE_ERROR) -> float:
        """Make a table of the formula and return its largest error, as measured at three points between all knots.

        A table serves as long as the weights stay as they are, and only where no gradient is wanted: interpolation gives wrong ones.

        Raises
        ------
        ConfigError
            If 262,144 knots do not reach `tolerance`.
        """
        self._table = None
        n_knots = FEWEST_KNOTS
        while (table := self._with_knots(n_knots)).error > tolerance:
            n_knots *= 4
            if n_knots > MOST_KNOTS:
                raise ConfigError(
                    f"table of the pair bias: its error is {table.error:.1e}; expected at most {tolerance:.1e}. Allow more, or use none."
                )
        self._table = table
        return table.error

    def _with_knots(self, n_knots: int) -> DistanceTable:
        like = next(self.parameters())
        at = torch.arange(4 * n_knots + 1, dtype=torch.float64).div_(4 * n_knots).square_().mul_(self.farthest).to(like)
        value = DistanceBias.of_distance(self, at)  # not a subclass's, which may jump at 0
        table = DistanceTable(at[::4].contiguous(), value[::4].contiguous(), self.farthest, self._versions(), 0.0)
        return replace(table, error=float((table(at) - value).abs().max()))

    def _versions(self) -> tuple[tuple[int, int], ...]:
        """Changes whenever a weight does."""
        return tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())


@dataclass(frozen=True, eq=False)
class DistanceTable:
    """Values of a function at knots that lie the closer the nearer to 0, straight lines between them.

    Attributes
    ----------
    knots : (M + 1,) float
        ``farthest * (m / M)^2``.
    value : (M + 1, H) float
    farthest : float
    made_of : tuple
        The state of the weights behind it.
    error : float
        The largest that was found.
    """

    knots: Tensor
    value: Tensor
    farthest: float
    made_of: tuple[tuple[int, int], ...]
    error: float

    def __call__(self, distance: Tensor) -> Tensor:
        """Interpolate at (E,) distances within the knots; (E, H)."""
        low, share = self._place(distance)
        return torch.lerp(self.value[low], self.value[low + 1], share[:, None])

    def of_heads(self, distance: Tensor, head: Tensor) -> Tensor:
        """Interpolate one number for each distance and head, of shapes that broadcast; in operations that a fused kernel can take over."""
        low, share = self._place(distance)
        left, right = self.value[low, head], self.value[low + 1, head]
        return left + share * (right - left)

    def _place(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the knot below each distance, and how far it lies to the next."""
        n_knots = len(self.knots) - 1
        low = ((distance / self.farthest).sqrt() * n_knots).long().clamp(max=n_knots - 1)
        left, right = self.knots[low], self.knots[low + 1]
        return low, (distance - left) / (right - left)
