"""eSEN of fairchem-core, its backbone of UMA without experts, as it trains: eager."""

import logging
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import ase  # noqa: E402
import torch  # noqa: E402
from fairchem.core.datasets.atomic_data import (  # noqa: E402
    AtomicData,
    ExternalGraphMethod,
    atomicdata_list_to_batch,
)
from fairchem.core.models.uma.escn_md import MLP_EFS_Head, eSCNMDBackbone  # noqa: E402

PACKAGES = ("fairchem-core", "torch")


class Model(torch.nn.Module):
    """Backbone and head with random weights; energy and forces by the gradient."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = eSCNMDBackbone(
            max_num_elements=max(config["elements"]) + 1,
            sphere_channels=config["num_channels"],
            lmax=config["max_L"],
            mmax=config["m_max"],
            cutoff=config["r_max"],
            edge_channels=config["edge_channels"],
            num_distance_basis=config["num_radial_basis"],
            hidden_channels=config["hidden_channels"],
            num_layers=config["num_interactions"],
            ff_type="spectral",
            direct_forces=False,
            use_dataset_embedding=False,
            always_use_pbc=False,
        )
        self.head = MLP_EFS_Head(self.backbone, wrap_property=False)

    def forward(self, graph):
        """Energies [G] and forces [N, 3]; the backbone writes into the graph that it is given."""
        graph = graph.clone()
        out = self.head(graph, self.backbone(graph))
        return out["energy"], out["forces"]


def graph_of(frame, config, dtype):
    """Structure with its labels as fairchem's graph."""
    atoms = ase.Atoms(frame["numbers"], frame["positions"], cell=frame["cell"], pbc=frame["pbc"])
    if not any(frame["pbc"]):
        atoms.cell = None
    graph = AtomicData.from_ase(
        atoms,
        r_edges=True,
        radius=config["r_max"],
        max_neigh=len(atoms) * 1000,
        target_dtype=dtype,
        external_graph_method=ExternalGraphMethod.NVIDIA,
    )
    graph.energy = torch.tensor([frame["energy"]], dtype=dtype)
    graph.forces = torch.tensor(frame["forces"], dtype=dtype)
    return graph


class Rival:
    """Its model and graphs; every call waits for its result."""

    def __init__(self, task):
        torch.set_num_threads(task["threads"])
        self.dtype = getattr(torch, task["dtype"])
        torch.set_default_dtype(self.dtype)
        self.task, self.config = task, task["config"]
        self.device = "cuda" if task["platform"] == "gpu" else task["platform"]
        self.model = self.model_of().requires_grad_(False).eval()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.graph = self.batch_of([task["structure"]])
        self.edges = int(self.graph.edge_index.shape[1])

    def model_of(self):
        """A model on the device."""
        return Model(self.config).to(self.device, self.dtype)

    def batch_of(self, frames):
        """Some structures as one graph."""
        graphs = [graph_of(frame, self.config, self.dtype) for frame in frames]
        return atomicdata_list_to_batch(graphs).to(self.device)

    def forces(self):
        """Energy and forces of the structure."""
        self.model(self.graph)
        self.wait()

    def begin_training(self):
        """A model whose weights have gradients, and the optimiser."""
        self.trained = self.model_of()
        self.batch = self.batch_of(self.task["batch"])
        weights = list(self.trained.parameters())
        self.optimizer = torch.optim.Adam(weights, lr=1e-3, amsgrad=True)
        self.average = [p.detach().clone() for p in weights]

    def train(self):
        """Loss, gradient, clipping, Adam and the average of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        energy, forces = self.trained(self.batch)
        per_atom = (energy - self.batch.energy) / self.batch.natoms
        loss = (per_atom**2).mean() + 10.0 * ((forces - self.batch.forces) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 10.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.trained.parameters()], 0.01)
        self.wait()

    def wait(self):
        """Until the device has nothing to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
