"""Part: some elements of a sequence, taken from it when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Part(Sequence[T]):
    """Elements of a sequence whose elements are made when they are asked for.

    Attributes:
        whole: the sequence, which is no part itself.
        indices: [n] of the elements within it.
    """

    def __init__(self, whole: Sequence[T], indices: Sequence[int] | np.ndarray) -> None:
        self.whole, self.indices = whole, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:  # an element, or a part for a slice
        if isinstance(index, slice):
            return Part(self.whole, self.indices[index])
        return self.whole[int(self.indices[index])]


def take(sequence: Sequence[T], indices: Sequence[int] | np.ndarray) -> Sequence[T]:
    """Some elements: of a list another list, of anything else a part."""
    if isinstance(sequence, list):
        return [sequence[i] for i in indices]
    if isinstance(sequence, Part):
        return Part(sequence.whole, sequence.indices[np.asarray(indices, dtype=np.int64)])
    return Part(sequence, indices)
