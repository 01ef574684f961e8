"""Labels that are Cartesian tensors: what is known of them, and reading them from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eqnet.data.frame import Frame, from_atoms
from eqnet.data.label_choice import ATOMS, CALCULATOR, STRUCTURE, Values, values_of
from eqnet.data.labels import finite_numbers
from eqnet.data.read import read_images
from eqnet.data.store import is_store
from eqnet.errors import InputError

Per = Literal["atom", "sum", "mean", "volume"]


@dataclass(frozen=True)
class TensorKind:
    """A tensor that structures or their atoms have.

    Attributes:
        symmetry: of its indices: '' a scalar, 'i' a vector, 'ij' any matrix, 'ij=ji' a symmetric
            one, 'ijkl=jikl=ijlk=klij' an elasticity tensor. Each index is a polar vector's.
        per: 'atom' for one of each atom, else one of a structure: the sum over atoms of what the
            model gives them, its mean, or its sum divided by the volume.
        unit: for people.
        zero_sum: of the tensors of atoms: their sum over a structure is exactly zero.
        charges: of a vector: add charges times positions, with charges that add up to zero.
        positive: of an elasticity tensor: 'square' (a nonnegative energy of every strain) or 'exp'
            (a positive one); '' for no constraint.
    """

    symmetry: str
    per: Per
    unit: str = ""
    zero_sum: bool = False
    charges: bool = False
    positive: Literal["", "square", "exp"] = ""

    def __post_init__(self) -> None:
        elastic = self.symmetry == ELASTICITY
        refused = [
            (self.zero_sum and self.per != "atom", "zero_sum is of tensors per atom"),
            (self.charges and (self.symmetry, self.per) != ("i", "sum"), CHARGES),
            (bool(self.positive) and not elastic, f"positive is of the symmetry {ELASTICITY}"),
            (bool(self.positive) and self.per == "atom", "positive is of structures, not atoms"),
        ]
        for wrong, why in refused:
            if wrong:
                raise ValueError(f"tensor '{self.symmetry}' per {self.per}: {why}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one tensor."""
        return (3,) * len(self.symmetry.split("=")[0])

    @property
    def per_atom(self) -> bool:
        """Whether each atom has one."""
        return self.per == "atom"


ELASTICITY = "ijkl=jikl=ijlk=klij"
#: Row of Voigt's matrix (xx yy zz yz xz xy) of each pair of indices.
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
CHARGES = "charges times positions are a vector 'i' that is summed over atoms"

#: What is known by name.
TENSORS = {
    "charges": TensorKind("", "atom", "e", zero_sum=True),
    "dipole": TensorKind("i", "sum", "e A", charges=True),
    "polarizability": TensorKind("ij=ji", "sum", "e A^2/V"),
    "born_effective_charges": TensorKind("ij", "atom", "e", zero_sum=True),
    "direct_forces": TensorKind("i", "atom", "eV/A", zero_sum=True),
    "elasticity": TensorKind(ELASTICITY, "volume", "", positive="square"),
}
#: Keys of labels in files, with or without REF_, where they are not the name of the tensor: the
#: forces of a model are gradients unless it is said that they are not.
LABELS = {"direct_forces": "forces"}


def read_tensors(
    path: str | Path,
    kinds: Mapping[str, TensorKind],
    keys: Mapping[str, str] | None = None,
    *,
    required: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Frame]:
    """Structures with tensor labels, `Frame.tensors`; a label of weight 0 is left out.

    Args:
        path: extended XYZ, or any file that ASE reads.
        kinds: by name; names are keys of the file, with or without REF_, but for `LABELS`.
        keys: other keys, by name.
        required: whether some structure must have each of the tensors, to learn from.
        tell: takes a line for each tensor: its key, and how many structures have it.

    Raises:
        InputError: no structure has one of the tensors, as in a store, or a value is not such a
            tensor, or not finite; a dipole of a periodic or charged structure; two keys of one
            tensor; to learn from, a weight that is neither 0 nor 1.
    """
    if required and is_store(path):
        raise InputError(f"{path}: a store keeps no tensors; give the files that it was built from")
    given = dict(keys or {})
    if unknown := set(given) - set(kinds):
        raise InputError(f"a key is given for {', '.join(sorted(unknown))}, which is not asked for")
    labels = {name: LABELS.get(name, name) for name in kinds}
    spellings = {n: [given[n]] if n in given else [f"REF_{k}", k] for n, k in labels.items()}
    frames, used = [], {}
    for index, atoms in enumerate(read_images(path)):
        frame = from_atoms(atoms, file=str(path), index=index)
        frame, values = replace(frame, info=dict(atoms.info)), values_of(atoms)
        tensors = {}
        for name, kind in kinds.items():
            key, raw = _find(values, spellings[name])
            if raw is None or not _counts(frame, labels[name], strict=required):
                continue
            if used.setdefault(name, key) != key:
                raise InputError(
                    f"{frame.name}: {name} is called {key} here, and {used[name]} in earlier "
                    "frames: give all of them one name"
                )
            tensors[name] = label_of(kind, raw, frame, name)
        frames.append(replace(frame, tensors=tensors))
    for name, tried in spellings.items():
        if required and not any(name in frame.tensors for frame in frames):
            raise InputError(
                f"{path}: no structure has {' or '.join(tried)}: give the {name} one of these names"
            )
    for name, key in used.items():
        number = sum(name in frame.tensors for frame in frames)
        tell(f"{path}: {name} from {key}, of {number:,} of {len(frames):,} structures")
    return frames


def _find(values: Values, keys: Sequence[str]) -> tuple[str, Any]:
    """The first of the keys that there is and its value, '' and None without."""
    places = [(place, key) for key in keys for place in (ATOMS, STRUCTURE, CALCULATOR)]
    return next(((where[1], values[where]) for where in places if where in values), ("", None))


def _counts(frame: Frame, label: str, *, strict: bool) -> bool:
    """Whether the weights of a structure leave its label in; strict, they must be 0 or 1."""
    for key in ("config_weight", f"config_{label}_weight"):
        weight = frame.info.get(key, 1.0)
        if np.all(weight == 0):
            return False
        if strict and np.any(weight != 1):
            raise InputError(
                f"{frame.name}: {key} {weight} has no effect, tensors count alike: leave it out or "
                "make it 0, which leaves out the label"
            )
    return True


def label_of(kind: TensorKind, raw: Any, frame: Frame, name: str) -> np.ndarray:
    """A label as float64 of shape [3, ...] or, per atom, [n, 3, ...], with its exact symmetry.

    Raises:
        InputError: another shape, an asymmetry of more than a hundredth, no numbers, or a dipole or
            a tensor per volume that this structure cannot have.
    """
    where = f"{frame.name}: {name}"
    numbers = finite_numbers(raw, where)
    shape = (len(frame), *kind.shape) if kind.per_atom else kind.shape
    if kind.symmetry == ELASTICITY and numbers.shape in ((6, 6), (36,)):
        numbers = numbers.reshape(6, 6)[VOIGT[:, :, None, None], VOIGT]
    if numbers.size != np.prod(shape):
        raise InputError(f"{where} has shape {numbers.shape}, {shape} is wanted")
    tensor = numbers.reshape(shape)
    symmetric = symmetrised(kind.symmetry, tensor)
    asymmetry = np.abs(tensor - symmetric).max()
    if asymmetry > 0.01 * np.abs(tensor).max():
        raise InputError(
            f"{where} does not have the symmetry {kind.symmetry} (by up to {asymmetry:.3g}); check "
            "the order of its numbers"
        )
    check_structure(kind, frame, name)
    return symmetric


def check_structure(kind: TensorKind, frame: Frame, name: str) -> None:
    """Refuse what the structure cannot have.

    Raises:
        InputError: a sum of charges times positions where there are periodic images or a total
            charge (`charge` of the structure), as it depends on the origin; charges of atoms of
            such a structure; a tensor per volume where there is none.
    """
    where = f"{frame.name}: {name}"
    if kind.charges and frame.pbc.any():
        raise InputError(f"{where} of a periodic structure depends on the choice of the cell")
    if kind.charges and _charge(frame):
        raise InputError(f"{where} of a structure with a charge depends on the origin")
    if kind.zero_sum and not kind.shape and _charge(frame):
        raise InputError(f"{where} are made to add up to zero, but the structure has a charge")
    if kind.per == "volume" and not frame.volume:
        raise InputError(f"{where} is per volume, but the structure is not periodic in all axes")


def _charge(frame: Frame) -> float:
    try:
        return float(frame.info.get("charge", 0.0))
    except (TypeError, ValueError):
        charge = str(frame.info["charge"])[:40]
        raise InputError(f"{frame.name}: the charge {charge!r} is no number") from None


def symmetrised(symmetry: str, tensor: np.ndarray) -> np.ndarray:
    """Mean of a tensor [..., 3, ...] over the permutations of its indices that it should allow."""
    first, *others = symmetry.split("=")
    signs = [-1 if other.startswith("-") else 1 for other in others]
    orders = [tuple(first.index(letter) for letter in other.lstrip("-")) for other in others]
    identity = tuple(range(len(first)))
    group, new = {identity: 1}, [identity]
    while new:
        order = new.pop()
        for sign, step in zip(signs, orders, strict=True):
            product = tuple(order[i] for i in step)
            if product not in group:
                group[product] = sign * group[order]
                new.append(product)
    lead = tensor.ndim - len(first)
    axes = tuple(range(lead))
    total = sum(
        sign * tensor.transpose(axes + tuple(lead + i for i in order))
        for order, sign in group.items()
    )
    return np.asarray(total / len(group))
