"""Ramps over a training, in fractions of its length.

Laine & Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017, section 2.1 and appendix A;
the same in Tarvainen & Valpola, Mean Teachers, NIPS 2017.
"""

from __future__ import annotations

import math


def ramp_up(done: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t = done / length, at most 1: from .0067 to 1. A ``length`` of 0 is no ramp."""
    t = min(done / length, 1.0) if length else 1.0
    return math.exp(-5.0 * (1.0 - t) ** 2)


def ramp_down(left: float, length: float) -> float:
    """exp(-12.5 t^2) with t = 1 - left / length, at least 0: from 1 to 3.7e-6 over the last ``length``."""
    t = max(0.0, 1.0 - left / length) if length else 0.0
    return math.exp(-12.5 * t * t)


def warm_up(done: float, length: float) -> float:
    """min(done / length, 1): linear (Berthelot et al., MixMatch, NeurIPS 2019)."""
    return min(done / length, 1.0) if length else 1.0
