"""The twelve classes of ``scenes``: each a few parts, painted back to front, upright in [-1, 1] (y points down).

``HUES`` are the class's typical colors, (hue, saturation, value) of its three color slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.data._pen import ACCENT, DARK, LIGHT, MAIN, SECOND, Pen, ellipse

Tint = tuple[float, float, float]


def house(pen: Pen) -> None:
    """Walls, a gabled roof, a chimney, a door, a window."""
    eave = pen.vary(0, 0.1, -0.1)
    side = pen.vary(1, 0.2, 0.5)
    pen.box(DARK, side, -0.62, 0.11, 0.28)
    pen.box(MAIN, 0, (eave + 0.95) / 2, 0.72, (0.95 - eave) / 2)
    pen.polygon(SECOND, (pen.vary(2, 0.15), -0.95), (0.95, eave), (-0.95, eave))
    pen.box(ACCENT, -0.3, 0.6, 0.18, 0.35)
    pen.box(LIGHT, pen.vary(3, 0.05, 0.32), 0.35, 0.2, 0.17)
    pen.box(DARK, pen.vary(3, 0.05, 0.32), 0.35, 0.03, 0.17)


def tree(pen: Pen) -> None:
    """A trunk under a crown of three clumps, with fruit."""
    height = pen.vary(0, 0.08, -0.3)
    pen.polygon(SECOND, (-0.11, 0), (0.11, 0), (0.2, 0.97), (-0.2, 0.97))
    pen.ellipse(MAIN, pen.vary(1, 0.06, -0.35), height + 0.16, 0.4, 0.38)
    pen.ellipse(MAIN, pen.vary(2, 0.06, 0.36), height + 0.18, 0.4, 0.36)
    pen.ellipse(MAIN, pen.vary(3, 0.08), height - 0.22, 0.46, 0.44)
    pen.ellipse(ACCENT, -0.3, height + 0.1, 0.09, 0.09, pen.when(4, -0.4))
    pen.ellipse(ACCENT, 0.26, height - 0.12, 0.09, 0.09, pen.when(4, -0.4))


def car(pen: Pen) -> None:
    """A cabin with windows on a low body, two wheels, a lamp."""
    back, front = pen.vary(0, 0.1, -0.5), pen.vary(1, 0.1, 0.38)
    pen.polygon(MAIN, (back, -0.52), (front, -0.52), (front + 0.28, 0.02), (back - 0.2, 0.02))
    pen.polygon(
        SECOND, (back + 0.06, -0.42), (front - 0.05, -0.42), (front + 0.14, -0.02), (back - 0.06, -0.02)
    )
    pen.box(MAIN, pen.vary(2, 0.1, -0.05), -0.2, 0.05, 0.3)
    pen.polygon(MAIN, (-0.92, -0.06), (0.86, -0.06), (0.97, 0.14), (0.97, 0.36), (-0.97, 0.36), (-0.97, 0.02))
    for x in (-0.52, 0.54):
        pen.ellipse(DARK, x, 0.36, 0.24, 0.24)
        pen.ellipse(LIGHT, x, 0.36, 0.1, 0.1)
    pen.box(ACCENT, 0.88, 0.1, 0.08, 0.07)


def boat(pen: Pen) -> None:
    """A hull, a mast, two sails."""
    mast = pen.vary(0, 0.1, -0.02)
    pen.line(DARK, (mast, -0.92), (mast, 0.5), 0.045)
    pen.polygon(LIGHT, (mast + 0.08, -0.85), (mast + pen.vary(1, 0.12, 0.75), 0.36), (mast + 0.08, 0.36))
    pen.polygon(SECOND, (mast - 0.08, -0.62), (mast - 0.08, 0.36), (mast - pen.vary(2, 0.1, 0.6), 0.36))
    pen.polygon(MAIN, (-0.95, 0.46), (0.95, 0.46), (0.62, 0.92), (-0.68, 0.92))
    pen.polygon(ACCENT, (-0.95, 0.46), (0.95, 0.46), (0.88, 0.57), (-0.88, 0.57))


def person(pen: Pen) -> None:
    """Legs, arms, a shirt, a head with hair."""
    lift, spread = pen.vary(0, 0.3, 0.15), pen.vary(1, 0.06, 0.2)
    pen.line(SECOND, (-0.1, 0.3), (-spread, 0.9), 0.1)
    pen.line(SECOND, (0.1, 0.3), (spread, 0.9), 0.1)
    pen.line(ACCENT, (-0.2, -0.3), (-0.52, lift), 0.075)
    pen.line(ACCENT, (0.2, -0.3), (0.52, pen.vary(2, 0.3, 0.15)), 0.075)
    pen.polygon(MAIN, (-0.28, -0.42), (0.28, -0.42), (0.22, 0.36), (-0.22, 0.36))
    pen.ellipse(DARK, 0, -0.74, 0.23, 0.23)
    pen.ellipse(ACCENT, 0.02, -0.66, 0.19, 0.2)


def cup(pen: Pen) -> None:
    """A mug: a handle, a body that narrows downward, a stripe, the dark opening."""
    foot = pen.vary(0, 0.08, 0.44)
    pen.ellipse(MAIN, 0.58, pen.vary(1, 0.06, 0.08), 0.37, 0.37)
    pen.ellipse(DARK, 0.58, pen.vary(1, 0.06, 0.08), 0.2, 0.21)
    pen.polygon(MAIN, (-0.66, -0.55), (0.58, -0.55), (foot, 0.85), (-foot - 0.08, 0.85))
    band = pen.vary(2, 0.12, 0.15)
    pen.polygon(SECOND, (-0.6, band - 0.1), (0.52, band - 0.1), (0.5, band + 0.1), (-0.58, band + 0.1))
    pen.ellipse(LIGHT, -0.04, -0.55, 0.62, 0.2)
    pen.ellipse(DARK, -0.04, -0.53, 0.5, 0.13)


def fish(pen: Pen) -> None:
    """A tail, fins, a long body with stripes, an eye."""
    tip = pen.vary(0, 0.08, 0.42)
    pen.polygon(SECOND, (-0.95, -tip), (-0.42, 0), (-0.95, tip), (-0.8, 0))
    pen.polygon(SECOND, (-0.2, -pen.vary(1, 0.08, 0.62)), (0.3, -0.26), (-0.3, -0.26))
    pen.polygon(SECOND, (-0.1, 0.26), (0.25, 0.26), (-0.15, pen.vary(2, 0.06, 0.56)))
    pen.ellipse(MAIN, 0.18, 0, 0.74, pen.vary(3, 0.05, 0.4))
    pen.polygon(ACCENT, (0.1, -0.33), (0.22, -0.33), (0.22, 0.33), (0.1, 0.33))
    pen.polygon(ACCENT, (-0.2, -0.28), (-0.1, -0.3), (-0.1, 0.3), (-0.2, 0.28))
    pen.ellipse(LIGHT, 0.6, -0.1, 0.12, 0.12)
    pen.ellipse(DARK, 0.63, -0.1, 0.06, 0.06)


def flower(pen: Pen) -> None:
    """A stem with two leaves, five petals, a center."""
    top = pen.vary(0, 0.06, -0.4)
    sine = pen.vary(1, 0.6)
    pen.line(SECOND, (pen.vary(2, 0.15), 0.93), (0, top), 0.06)
    left, right = pen.vary(3, 0.1, 0.5), pen.vary(4, 0.1, 0.4)
    pen.polygon(SECOND, (0, left + 0.16), (-0.4, left + 0.08), (-0.56, left - 0.18), (-0.2, left - 0.1))
    pen.polygon(SECOND, (0, right + 0.16), (0.2, right - 0.1), (0.56, right - 0.18), (0.4, right + 0.08))
    pen.petals(MAIN, 0, top, 0.56, ((1 - sine * sine).sqrt(), sine))
    pen.ellipse(ACCENT, 0, top, 0.18, 0.18)


def chair(pen: Pen) -> None:
    """A back with a cushion, a seat, four legs."""
    seat = pen.vary(0, 0.08, 0.12)
    for x in (-0.26, 0.34):
        pen.line(DARK, (x, seat), (x, pen.vary(1, 0.06, 0.72)), 0.06)
    for x in (-0.52, 0.56):
        pen.line(MAIN, (x, seat), (x, 0.9), 0.075)
    pen.line(MAIN, (-0.5, seat), (pen.vary(2, 0.08, -0.6), -0.88), 0.085)
    pen.polygon(SECOND, (-0.6, -0.82), (-0.42, -0.82), (-0.36, seat - 0.22), (-0.54, seat - 0.22))
    pen.polygon(MAIN, (-0.58, seat - 0.1), (0.6, seat - 0.1), (0.68, seat + 0.12), (-0.58, seat + 0.12))
    pen.polygon(ACCENT, (-0.46, seat - 0.2), (0.56, seat - 0.2), (0.6, seat - 0.07), (-0.5, seat - 0.07))


def bird(pen: Pen) -> None:
    """Legs, a tail, a round body with a wing, a head with beak and eye."""
    head = pen.vary(0, 0.08, -0.42)
    for x in (-0.08, 0.14):
        pen.line(DARK, (x, 0.3), (x + 0.05, 0.88), 0.04)
    pen.polygon(SECOND, (-0.95, pen.vary(1, 0.12, -0.12)), (-0.3, -0.08), (-0.3, 0.3), (-0.88, 0.12))
    pen.ellipse(MAIN, -0.02, 0.14, 0.56, 0.36)
    pen.polygon(ACCENT, (0.62, head - 0.1), (0.97, head + 0.06), (0.62, head + 0.14))
    pen.ellipse(MAIN, 0.46, head, 0.28, 0.28)
    pen.line(MAIN, (0.42, head), (0.24, 0.1), 0.2)
    pen.ellipse(SECOND, -0.14, pen.vary(2, 0.05, 0.08), 0.36, 0.18)
    pen.ellipse(DARK, 0.54, head - 0.06, 0.065, 0.065)


def mushroom(pen: Pen) -> None:
    """A stalk, a domed cap with spots."""
    rim = pen.vary(0, 0.08, 0.02)
    foot = pen.vary(1, 0.06, 0.26)
    pen.polygon(LIGHT, (-0.17, rim), (0.17, rim), (foot, 0.93), (-foot, 0.93))
    pen.box(SECOND, 0, rim + 0.16, 0.24, 0.06, pen.when(2))
    dome = ellipse(pen.x, pen.y, 0, rim, 0.9, pen.vary(3, 0.1, 0.86))
    pen.paint(MAIN, torch.maximum(dome, pen.y - rim - 0.08))  # an ellipse cut off below
    for x, y, r in ((-0.42, -0.28, 0.14), (0.1, -0.52, 0.16), (0.48, -0.2, 0.13)):
        pen.ellipse(LIGHT, pen.vary(4, 0.08, x), rim + y, r, r)


def lamp(pen: Pen) -> None:
    """A base, a stand, a shade that widens downward, a cord."""
    rim, top = pen.vary(0, 0.08, 0.02), pen.vary(1, 0.08, 0.32)
    pen.line(DARK, (0, rim), (0, 0.86), 0.065)
    pen.polygon(SECOND, (-0.22, 0.74), (0.22, 0.74), (0.46, 0.94), (-0.46, 0.94))
    pen.ellipse(SECOND, 0, pen.vary(2, 0.1, 0.42), 0.15, 0.15)
    pen.line(DARK, (0.4, rim), (0.4, rim + 0.3), 0.025)
    pen.polygon(MAIN, (-top, -0.92), (top, -0.92), (0.74, rim), (-0.74, rim))
    pen.polygon(ACCENT, (-0.7, rim - 0.12), (0.7, rim - 0.12), (0.76, rim + 0.02), (-0.76, rim + 0.02))


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    drawing.__name__: drawing
    for drawing in (house, tree, car, boat, person, cup, fish, flower, chair, bird, mushroom, lamp)
}

HUES: dict[str, tuple[Tint, Tint, Tint]] = {
    "house": ((0.12, 0.4, 0.6), (0.6, 0.5, 0.5), (0.04, 0.6, 0.45)),
    "tree": ((0.32, 0.5, 0.75), (0.07, 0.5, 0.6), (0.0, 0.85, 0.85)),
    "car": ((0.98, 0.75, 0.75), (0.55, 0.4, 0.9), (0.14, 0.8, 0.95)),
    "boat": ((0.6, 0.7, 0.65), (0.04, 0.65, 0.9), (0.12, 0.6, 0.9)),
    "person": ((0.95, 0.55, 0.85), (0.6, 0.5, 0.65), (0.07, 0.4, 0.9)),
    "cup": ((0.52, 0.4, 0.6), (0.02, 0.75, 0.8), (0.6, 0.5, 0.6)),
    "fish": ((0.09, 0.85, 0.9), (0.03, 0.8, 0.8), (0.6, 0.4, 0.8)),
    "flower": ((0.88, 0.6, 0.9), (0.33, 0.6, 0.55), (0.14, 0.85, 0.95)),
    "chair": ((0.07, 0.6, 0.6), (0.4, 0.5, 0.6), (0.4, 0.5, 0.7)),
    "bird": ((0.57, 0.4, 0.9), (0.07, 0.6, 0.6), (0.1, 0.9, 0.95)),
    "mushroom": ((0.0, 0.75, 0.6), (0.1, 0.35, 0.75), (0.1, 0.3, 0.8)),
    "lamp": ((0.15, 0.45, 0.75), (0.6, 0.5, 0.6), (0.04, 0.6, 0.8)),
}
