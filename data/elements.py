"""Names and sizes of the elements."""

from __future__ import annotations


def symbol(number: int) -> str:
    """Chemical symbol of an atomic number, or "Z = 150" where there is none."""
    from ase.data import chemical_symbols

    if 0 < number < len(chemical_symbols):
        return chemical_symbols[number]
    return f"Z = {number}"


def covalent_radius(number: int) -> float:
    """Covalent radius in angstrom (Cordero et al. 2008)."""
    from ase.data import covalent_radii

    return float(covalent_radii[number])
