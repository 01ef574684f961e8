"""Energies, forces and stress of randomly initialised mace-torch models: the oracle for our MACE.

Runs in an environment of its own (torch on the CPU, mace-torch 0.3.16, e3nn 0.4.4), knows nothing
of eqnet, and writes one `mace_<name>.npz` per model without pickle:

    python tests/references/make_mace_reference.py FOLDER [--seed 0] [--only a,b]

    config                            JSON of the model's settings
    silu_constant                     e3nn's second-moment constant of SiLU (a Monte Carlo number)
    weights/<name>                    float32 numbers that mace-torch used in float64
    <structure>/numbers, positions, cell, pbc
    <structure>/energy, interaction_energy, node_energy, forces, stress    (eV, angstrom)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ase.build
import numpy as np
import torch

torch.serialization.add_safe_globals([slice])  # e3nn 0.4.4 reads its tables with torch.load

from e3nn import o3  # noqa: E402
from e3nn.math import normalize2mom  # noqa: E402
from mace.data.neighborhood import get_neighborhood  # noqa: E402
from mace.modules import blocks  # noqa: E402
from mace.modules.models import ScaleShiftMACE  # noqa: E402

CONFIGS: dict[str, dict] = {
    # the usual model: equivariant messages, first layer without a residual
    "a": dict(
        hidden_irreps="8x0e+8x1o", max_ell=3, correlation=3, num_interactions=2,
        first_residual=False, pair_repulsion=False, radial_MLP=[16, 16, 16], r_max=4.5,
    ),
    # residual from the first layer on, three layers, hidden features to l = 2
    "b": dict(
        hidden_irreps="4x0e+4x1o+4x2e", max_ell=3, correlation=2, num_interactions=3,
        first_residual=True, pair_repulsion=False, radial_MLP=[12, 20], r_max=4.0,
        elements=[1, 6, 7, 8],
    ),
    # body order five
    "c": dict(
        hidden_irreps="3x0e+3x1o", max_ell=2, correlation=4, num_interactions=2,
        first_residual=True, pair_repulsion=False, radial_MLP=[16], r_max=4.0,
    ),
    # scalars only between the layers
    "d": dict(
        hidden_irreps="6x0e", max_ell=3, correlation=3, num_interactions=2,
        first_residual=False, pair_repulsion=False, radial_MLP=[16, 16], r_max=5.0,
    ),
    # pseudovectors between the layers
    "e": dict(
        hidden_irreps="4x0e+4x1o+4x1e", max_ell=2, correlation=3, num_interactions=2,
        first_residual=True, pair_repulsion=False, radial_MLP=[16, 16], r_max=4.0,
    ),
    # a single layer has a linear readout only
    "f": dict(
        hidden_irreps="4x0e+4x1o", max_ell=2, correlation=2, num_interactions=1,
        first_residual=False, pair_repulsion=False, radial_MLP=[16], r_max=4.0,
    ),
}  # fmt: skip
DEFAULTS = dict(num_radial_basis=8, num_cutoff_basis=5, MLP_channels=16, elements=[1, 6, 8])


def structures(elements: list[int], generator: np.random.Generator) -> dict[str, ase.Atoms]:
    """A molecule, a distorted one, and a skewed periodic cell smaller than the cutoff."""
    ethanol = ase.build.molecule("CH3CH2OH")
    ethanol.positions += generator.normal(scale=0.05, size=(9, 3))
    other = ase.build.molecule("CH3CONH2" if 7 in elements else "HCOOH")
    other.positions += generator.normal(scale=0.2, size=other.positions.shape)
    crystal = ase.Atoms(
        numbers=[elements[-1], 6, 1, 1],
        scaled_positions=[[0.05, 0.1, 0.0], [0.5, 0.55, 0.5], [0.45, 0.1, 0.9], [0.9, 0.6, 0.3]],
        cell=[[2.9, 0.1, 0.0], [0.7, 3.1, 0.2], [-0.4, 0.6, 2.7]],
        pbc=True,
    )
    crystal.positions += generator.normal(scale=0.1, size=(4, 3))
    return {"ethanol": ethanol, "distorted": other, "crystal": crystal}


def build(config: dict) -> ScaleShiftMACE:
    elements = config["elements"]
    first = "RealAgnosticResidualInteractionBlock"
    if not config["first_residual"]:
        first = "RealAgnosticInteractionBlock"
    model = ScaleShiftMACE(
        r_max=config["r_max"],
        num_bessel=config["num_radial_basis"],
        num_polynomial_cutoff=config["num_cutoff_basis"],
        max_ell=config["max_ell"],
        interaction_cls=blocks.RealAgnosticResidualInteractionBlock,
        interaction_cls_first=getattr(blocks, first),
        num_interactions=config["num_interactions"],
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(config["hidden_irreps"]),
        MLP_irreps=o3.Irreps(f"{config['MLP_channels']}x0e"),
        atomic_energies=np.array(config["atomic_energies"]),
        avg_num_neighbors=config["avg_num_neighbors"],
        atomic_numbers=elements,
        correlation=config["correlation"],
        gate=torch.nn.functional.silu,
        pair_repulsion=config["pair_repulsion"],
        radial_MLP=config["radial_MLP"],
        atomic_inter_scale=config["scale"],
        atomic_inter_shift=config["shift"],
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float().double())
    return model


def answer(model: ScaleShiftMACE, atoms: ase.Atoms, config: dict) -> dict[str, np.ndarray]:
    edges, shifts, unit_shifts, cell = get_neighborhood(
        atoms.positions, config["r_max"], tuple(atoms.pbc), np.array(atoms.cell)
    )
    one_hot = np.array(atoms.numbers)[:, None] == np.array(config["elements"])
    data = {
        "positions": torch.tensor(atoms.positions, requires_grad=True),
        "node_attrs": torch.tensor(one_hot, dtype=torch.float64),
        "edge_index": torch.tensor(edges, dtype=torch.int64),
        "shifts": torch.tensor(shifts, dtype=torch.float64),
        "unit_shifts": torch.tensor(unit_shifts, dtype=torch.float64),
        "cell": torch.tensor(np.asarray(cell), dtype=torch.float64),
        "batch": torch.zeros(len(atoms), dtype=torch.int64),
        "ptr": torch.tensor([0, len(atoms)]),
    }
    out = model(data, compute_force=True, compute_stress=True)
    result = {
        "energy": out["energy"][0],
        "interaction_energy": out["interaction_energy"][0],
        "node_energy": out["node_energy"],
        "forces": out["forces"],
    }
    if atoms.pbc.all():
        result["stress"] = out["stress"][0]
    return {name: value.detach().numpy() for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(CONFIGS))
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        seed = 100 * args.seed + ord(name)
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        config = DEFAULTS | CONFIGS[name]
        config["atomic_energies"] = generator.normal(
            scale=5.0, size=len(config["elements"])
        ).tolist()
        config |= dict(avg_num_neighbors=2.5, scale=0.8, shift=-0.15)
        model = build(config)
        arrays = {
            "config": np.array(json.dumps(config)),
            "silu_constant": np.array(normalize2mom(torch.nn.functional.silu).cst),
        }
        for key, parameter in model.named_parameters():
            arrays[f"weights/{key}"] = parameter.detach().numpy().astype(np.float32)
        for label, atoms in structures(config["elements"], generator).items():
            arrays |= {
                f"{label}/numbers": np.array(atoms.numbers),
                f"{label}/positions": atoms.positions,
                f"{label}/cell": np.array(atoms.cell),
                f"{label}/pbc": np.array(atoms.pbc),
            }
            out = answer(model, atoms, config)
            arrays |= {f"{label}/{key}": value for key, value in out.items()}
            print(name, label, float(out["energy"]), float(np.abs(out["forces"]).max()))
        np.savez_compressed(args.folder / f"mace_{name}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
