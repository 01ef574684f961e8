"""Energies and forces of randomly initialised TensorNets of torchmd-net: the oracle for ours.

The oracle is its functions in PyTorch, those of every release before 3.1: the Warp kernels that 3.1
takes by default hold 1/3 in single precision (errors of 1e-8), and for SO(3) they multiply the
matrices in the other order, 2 M Y, which changes energies.

Runs in an environment of its own (torch on the CPU, torchmd-net 3.1.0, ase), knows nothing of
eqnet, and writes one `tensornet_<name>.npz` per model without pickle:

    python tests/references/make_tensornet_reference.py FOLDER [--seed 0] [--only a,b]

    config                            JSON of the model's settings
    weights/<name>                    float32 numbers that torchmd-net used in float64
    <structure>/numbers, positions, cell
    <structure>/energy, forces        (eV, angstrom)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ase.build
import numpy as np
import torch
from torchmdnet.models import tensornet
from torchmdnet.models.model import create_model

CONFIGS: dict[str, dict] = {
    "a": dict(group="O3", num_channels=8, num_interactions=2, num_radial_basis=16, r_max=4.5),
    "b": dict(group="SO3", num_channels=6, num_interactions=2, num_radial_basis=8, r_max=4.0),
    "c": dict(group="O3", num_channels=6, num_interactions=1, num_radial_basis=32, r_max=5.0),
}
tensornet.OPT = False
for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
    setattr(tensornet, name, getattr(tensornet, "_" + name))
ELEMENTS = (1, 6, 8)


def structures(r_max: float, generator: np.random.Generator) -> dict[str, ase.Atoms]:
    """A molecule, a chiral one, an atom alone, and a crystal in a box of twice the cutoff."""
    ethanol = ase.build.molecule("CH3CH2OH")
    ethanol.positions += generator.normal(scale=0.05, size=(9, 3))
    chiral = ase.build.molecule("HCOOH")
    chiral.positions += generator.normal(scale=0.3, size=chiral.positions.shape)
    box = np.array([[2.2, 0.0, 0.0], [0.3, 2.3, 0.0], [-0.4, 0.5, 2.1]]) * r_max
    places = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)[:24]
    crystal = ase.Atoms(
        numbers=generator.choice(ELEMENTS, size=24),
        positions=places * 2.0 + generator.normal(scale=0.2, size=(24, 3)),
        cell=box,
        pbc=True,
    )
    alone = ase.Atoms("O", positions=[[0.1, 0.2, 0.3]])
    return {"ethanol": ethanol, "chiral": chiral, "alone": alone, "crystal": crystal}


def build(config: dict) -> torch.nn.Module:
    group = {"O3": "O(3)", "SO3": "SO(3)"}[config["group"]]
    model = create_model(dict(
        model="tensornet", embedding_dimension=config["num_channels"],
        num_layers=config["num_interactions"], num_rbf=config["num_radial_basis"],
        rbf_type="expnorm", trainable_rbf=False, activation="silu", cutoff_lower=0.0,
        cutoff_upper=config["r_max"], max_z=10, max_num_neighbors=64, precision=64, aggr="add",
        derivative=True, equivariance_invariance_group=group, output_model="Scalar",
        reduce_op="add", atom_filter=-1, prior_model=None, check_errors=True, charge=False,
        spin=False,
    ))  # fmt: skip
    # centres and widths of the radial functions are rounded to float32 at first, whatever the model
    radial = model.representation_model.distance_expansion
    radial.dtype = torch.float64
    radial.reset_parameters()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # weights larger than the initial ones bring out the nonlinear terms, and biases and
            # scales that start at 0 and 1 must not stay there
            factor = 2.0 if parameter.ndim > 1 else 1.0
            noise = torch.randn_like(parameter) * 0.3 if parameter.ndim == 1 else 0.0
            parameter.copy_((factor * parameter + noise).float().double())
            assert parameter.dtype == torch.float64, name
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(CONFIGS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(","):
        seed = 100 * args.seed + ord(name)
        torch.manual_seed(seed)
        config = CONFIGS[name] | dict(elements=ELEMENTS, envelope="cosine")
        model = build(config)
        arrays = {"config": np.array(json.dumps(config))}
        for key, parameter in model.named_parameters():
            arrays[f"weights/{key}"] = parameter.detach().numpy().astype(np.float32)
        generator = np.random.default_rng(seed)
        for label, atoms in structures(config["r_max"], generator).items():
            box = torch.tensor(atoms.cell.array)[None] if atoms.pbc.any() else None
            energy, forces = model(
                torch.tensor(atoms.numbers, dtype=torch.int64),
                torch.tensor(atoms.positions),
                torch.zeros(len(atoms), dtype=torch.int64),
                box=box,
            )
            arrays |= {
                f"{label}/numbers": np.array(atoms.numbers),
                f"{label}/positions": atoms.positions,
                f"{label}/cell": atoms.cell.array,
                f"{label}/energy": energy.detach().numpy().reshape(()),
                f"{label}/forces": forces.detach().numpy(),
            }
            print(name, label, float(energy), float(forces.abs().max()))
        np.savez_compressed(args.folder / f"tensornet_{name}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
