"""Anti-aliased shapes for a batch at once: distances to shapes, and a pen that paints with them.

Only operations that IEEE 754 rounds exactly (no sine, no exponential, no fused sums) touch pixels, so
that the pictures depend on neither the chunk size nor the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# A length or a coordinate: one for all, or one for each object, (N, 1, 1).
Length: TypeAlias = "float | Tensor"

MAIN, SECOND, ACCENT, DARK, LIGHT = range(5)


def ellipse(x: Tensor, y: Tensor, cx: Length, cy: Length, rx: Length, ry: Length) -> Tensor:
    """Signed distance (N, H, W), about right near the rim, negative inside."""
    u, v = (x - cx) / rx, (y - cy) / ry
    return ((u * u + v * v).sqrt() - 1) * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))


def box(x: Tensor, y: Tensor, cx: Length, cy: Length, hx: Length, hy: Length) -> Tensor:
    """Distance to an upright box of half-widths ``hx``, ``hy``."""
    return torch.maximum((x - cx).abs() - hx, (y - cy).abs() - hy)


def polygon(x: Tensor, y: Tensor, points: Sequence[tuple[Length, Length]]) -> Tensor:
    """Distance to a convex polygon whose corners run clockwise on the screen (y points down)."""
    distance: Tensor | None = None
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        nx, ny = torch.as_tensor(by - ay), torch.as_tensor(ax - bx)
        length = (nx * nx + ny * ny).sqrt()
        nx, ny = nx / length, ny / length
        side = x * nx + y * ny - (ax * nx + ay * ny)
        distance = side if distance is None else torch.maximum(distance, side)
    assert distance is not None
    return distance


def capsule(
    x: Tensor, y: Tensor, start: tuple[Length, Length], end: tuple[Length, Length], r: Length
) -> Tensor:
    """Distance to a thick line with round ends."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    px, py = x - ax, y - ay
    along = ((px * dx + py * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    qx, qy = px - along * dx, py - along * dy
    return (qx * qx + qy * qy).sqrt() - r


def petals(x: Tensor, y: Tensor, cx: Length, cy: Length, r: Length, turn: tuple[Length, Length]) -> Tensor:
    """Distance to a flower of five petals: the curve r (0.72 + 0.28 cos 5t), turned by (cosine, sine)."""
    u, v = x - cx, y - cy
    rho = (u * u + v * v).sqrt() + 1e-6
    c = (u * turn[0] + v * turn[1]) / rho
    c2 = c * c
    cos5 = c * ((c2 * 16 - 20) * c2 + 5)  # Chebyshev's polynomial: no arcus tangent needed
    return (rho - (cos5 * 0.28 + 0.72) * r) * 0.8


class Pen:
    """Paints parts, back to front, onto transparent layers.

    :param x, y: (N, H, W), the pixels in the object's own coordinates (its body fills about [-1, 1]).
    :param pixels: (N, 1, 1), how many pixels one unit is.
    :param colors: (N, 5, 3) in [0, 1]: MAIN, SECOND, ACCENT, DARK, LIGHT.
    :param wiggle: (N, 8) in [-1, 1]: what makes one house differ from the next.
    """

    def __init__(self, x: Tensor, y: Tensor, pixels: Tensor, colors: Tensor, wiggle: Tensor) -> None:
        self.x, self.y, self.pixels = x, y, pixels
        self.colors = torch.cat([colors, torch.ones_like(colors[..., :1])], -1)[..., None, None]
        self.wiggle = wiggle[..., None, None]
        self.layer = torch.zeros(len(x), 4, *x.shape[1:])  # color times coverage, coverage

    def vary(self, which: int, amount: float, center: float = 0.0) -> Tensor:
        """(N, 1, 1): ``center`` give or take up to ``amount``."""
        return self.wiggle[:, which] * amount + center

    def when(self, which: int, above: float = 0.0) -> Tensor:
        """(N, 1, 1): 1 for the objects that have an optional part, else 0."""
        return (self.wiggle[:, which] > above).float()

    def paint(self, color: int, distance: Tensor, when: Tensor | None = None) -> None:
        alpha = (0.5 - distance * self.pixels).clamp_(0, 1)
        if when is not None:
            alpha *= when
        change = self.colors[:, color] - self.layer
        self.layer += change.mul_(alpha[:, None])

    def ellipse(
        self, color: int, cx: Length, cy: Length, rx: Length, ry: Length, when: Tensor | None = None
    ) -> None:
        self.paint(color, ellipse(self.x, self.y, cx, cy, rx, ry), when)

    def box(
        self, color: int, cx: Length, cy: Length, hx: Length, hy: Length, when: Tensor | None = None
    ) -> None:
        self.paint(color, box(self.x, self.y, cx, cy, hx, hy), when)

    def polygon(self, color: int, *points: tuple[Length, Length], when: Tensor | None = None) -> None:
        self.paint(color, polygon(self.x, self.y, points), when)

    def line(self, color: int, start: tuple[Length, Length], end: tuple[Length, Length], r: Length) -> None:
        self.paint(color, capsule(self.x, self.y, start, end, r))

    def petals(self, color: int, cx: Length, cy: Length, r: Length, turn: tuple[Length, Length]) -> None:
        self.paint(color, petals(self.x, self.y, cx, cy, r, turn))
