"""Annotations that are read when they are asked for: the masks of ten thousand images would fill the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike

T = TypeVar("T")


class Lazy(Sequence[T]):
    """The values of ``read`` at some indices, each read anew whenever it is asked for.

    :param read: index -> value.
    :param indices: int (N,): which value stands at each place.
    """

    def __init__(self, read: Callable[[int], T], indices: ArrayLike) -> None:
        self.read, self.indices = read, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[T]: ...

    def __getitem__(self, i: int | slice) -> T | Sequence[T]:
        return Lazy(self.read, self.indices[i]) if isinstance(i, slice) else self.read(int(self.indices[i]))

    def some(self, places: ArrayLike) -> Lazy[T]:
        """The values at ``places``, int (n,); none is read here."""
        return Lazy(self.read, self.indices[np.asarray(places, np.int64)])
