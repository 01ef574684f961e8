"""MACE and eSEN of mlip, compiled for graphs of exactly the sizes that it computes."""

import logging
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from mlip.data import ChemicalSystem, DatasetInfo  # noqa: E402
from mlip.data.helpers.dynamically_batch import dynamically_batch  # noqa: E402
from mlip.graph import Graph  # noqa: E402
from mlip.models import Esen, ForceField, Mace  # noqa: E402

PACKAGES = ("mlip", "e3j", "jax")


def force_field_of(model, config, dtype):
    """Force field with random weights."""
    info = DatasetInfo(
        atomic_energies_map=dict.fromkeys(config["elements"], 0.0),
        graph_cutoff_angstrom=config["r_max"],
        avg_num_neighbors=config.get("avg_num_neighbors", 1.0),
        avg_r_min_angstrom=1.0,
    )
    network = {"mace": mace_of, "esen": esen_of}[model](config, info)
    made = ForceField.from_mlip_network(network, seed=0)
    return ForceField(made.predictor, cast(made.params, dtype))


def mace_of(config, info):
    """MACE."""
    settings = Mace.Config(
        num_layers=config["num_interactions"],
        num_channels=config["num_channels"],
        l_max=config["max_ell"],
        node_symmetry=config["max_L"],
        correlation=config["correlation"],
        num_rbf=config["num_radial_basis"],
        radial_mlp_hidden=config["radial_MLP"],
        readout_irreps=(f"{config['MLP_channels']}x0e", "0e"),
        residual_connection_first_layer=config["first_residual"],
    )
    return Mace(settings, info)


def esen_of(config, info):
    """eSEN; Gaussians as wide as their distance."""
    settings = Esen.Config(
        num_layers=config["num_interactions"],
        sphere_channels=config["num_channels"],
        hidden_channels=config["hidden_channels"],
        edge_channels=config["edge_channels"],
        l_max=config["max_L"],
        m_max=config["m_max"],
        num_rbf=config["num_radial_basis"],
        radial_basis={"gaussian": "gauss", "bessel": "bessel"}[config["radial_basis"]],
        basis_width_scalar=1.0,
    )
    return Esen(settings, info)


def cast(tree, dtype):
    """Arrays of JAX, the real ones in this precision."""

    def one(x):
        real = np.issubdtype(np.asarray(x).dtype, np.floating)
        return jnp.asarray(x, dtype if real else None)

    return jax.tree.map(one, tree)


def batch_of(frames, config, dtype):
    """Some structures as one graph, with the one atom and edge of padding that mlip wants."""
    graphs = []
    for frame in frames:
        system = ChemicalSystem(
            atomic_numbers=np.array(frame["numbers"]),
            positions=np.array(frame["positions"]),
            energy=frame["energy"],
            forces=np.array(frame["forces"]),
            cell=np.array(frame["cell"]) if any(frame["pbc"]) else None,
            pbc=tuple(frame["pbc"]),
        )
        graphs.append(Graph.from_chemical_system(system, config["r_max"]))
    atoms = sum(len(frame["numbers"]) for frame in frames)
    edges = sum(len(graph.senders) for graph in graphs)
    sizes = dict(n_node=atoms + 1, n_edge=edges + 1, n_graph=len(frames) + 1)
    return cast(next(dynamically_batch(graphs, **sizes)), dtype), edges


class Rival:
    """Its model and graphs; every call waits for its result."""

    def __init__(self, task):
        jax.config.update("jax_enable_x64", task["dtype"] == "float64")
        jax.config.update("jax_default_device", jax.devices(task["platform"])[0])
        self.task, self.config, self.dtype = task, task["config"], task["dtype"]
        self.force_field = force_field_of(task["model"], self.config, self.dtype)
        weights = self.force_field.params
        self.parameters = int(sum(x.size for x in jax.tree.leaves(weights)))
        self.graph, self.edges = batch_of([task["structure"]], self.config, self.dtype)
        compute = jax.jit(self.force_field.predictor.apply)
        self.compute = compute.lower(weights, self.graph).compile()

    def forces(self):
        """Energy and forces of the structure."""
        jax.block_until_ready(self.compute(self.force_field.params, self.graph))

    def begin_training(self):
        """Weights, the state of the optimiser and the average of the weights."""
        self.batch, _ = batch_of(self.task["batch"], self.config, self.dtype)
        self.optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.amsgrad(1e-3))
        weights = self.force_field.params
        self.state = weights, self.optimizer.init(weights), weights
        self.step = jax.jit(self.updated)

    def train(self):
        """One step."""
        self.state = jax.block_until_ready(self.step(self.state, self.batch))

    def updated(self, state, batch):
        """Loss, gradient, clipping, Adam and the average of the weights."""
        weights, moments, average = state
        gradient = jax.grad(self.loss)(weights, batch)
        change, moments = self.optimizer.update(gradient, moments, weights)
        weights = optax.apply_updates(weights, change)
        average = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, average, weights)
        return weights, moments, average

    def loss(self, weights, batch):
        """Mean squares of the energy per atom and, times ten, of the forces."""
        out = self.force_field.predictor.apply(weights, batch)
        structures, atoms = batch.graph_mask(), batch.node_mask()
        energy = (out.globals.energy - batch.globals.energy) / jnp.maximum(batch.n_node, 1)
        forces = (out.nodes.forces - batch.nodes.forces) * atoms[:, None]
        energy_loss = (structures * energy**2).sum() / structures.sum()
        return energy_loss + 10.0 * (forces**2).sum() / (3 * atoms.sum())
