"""MACE of mace-torch as its users run it: eager, with e3nn's compiled tensor products."""

import logging
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.serialization.add_safe_globals([slice])  # e3nn 0.4.4 reads its tables with torch.load

from e3nn import o3  # noqa: E402
from mace import data, modules, tools  # noqa: E402
from mace.tools import torch_geometric  # noqa: E402

PACKAGES = ("mace-torch", "torch", "e3nn")


def model_of(config):
    """ScaleShiftMACE with random weights."""
    torch.manual_seed(0)
    residual = "RealAgnosticResidualInteractionBlock"
    first = residual if config["first_residual"] else "RealAgnosticInteractionBlock"
    return modules.ScaleShiftMACE(
        r_max=config["r_max"],
        num_bessel=config["num_radial_basis"],
        num_polynomial_cutoff=config["num_cutoff_basis"],
        max_ell=config["max_ell"],
        interaction_cls_first=modules.interaction_classes[first],
        interaction_cls=modules.interaction_classes[residual],
        num_interactions=config["num_interactions"],
        num_elements=len(config["elements"]),
        hidden_irreps=o3.Irreps(config["irreps"]),
        MLP_irreps=o3.Irreps(f"{config['MLP_channels']}x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(config["elements"])),
        avg_num_neighbors=config["avg_num_neighbors"],
        atomic_numbers=config["elements"],
        correlation=config["correlation"],
        radial_MLP=config["radial_MLP"],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def graph_of(frame, config):
    """Structure with its labels as mace-torch's graph."""
    labels = {"energy": frame["energy"], "forces": np.array(frame["forces"])}
    configuration = data.Configuration(
        atomic_numbers=np.array(frame["numbers"]),
        positions=np.array(frame["positions"]),
        properties=labels,
        property_weights=dict.fromkeys(labels, 1.0),
        cell=np.array(frame["cell"]),
        pbc=tuple(frame["pbc"]),
    )
    table = tools.AtomicNumberTable(config["elements"])
    return data.AtomicData.from_config(configuration, z_table=table, cutoff=config["r_max"])


class Rival:
    """Its model and graphs; every call waits for its result."""

    def __init__(self, task):
        torch.set_num_threads(task["threads"])
        torch.set_default_dtype(getattr(torch, task["dtype"]))
        self.task, self.config = task, task["config"]
        self.device = "cuda" if task["platform"] == "gpu" else task["platform"]
        self.model = model_of(self.config).to(self.device).requires_grad_(False)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.graph = self.batch_of([task["structure"]]).to_dict()
        self.edges = int(self.graph["edge_index"].shape[1])

    def batch_of(self, frames):
        """Some structures as one graph."""
        graphs = [graph_of(frame, self.config) for frame in frames]
        return torch_geometric.batch.Batch.from_data_list(graphs).to(self.device)

    def forces(self):
        """Energy and forces of the structure."""
        self.model(self.graph, training=False, compute_force=True)
        self.wait()

    def begin_training(self):
        """A model whose weights have gradients, and the optimiser."""
        self.trained = model_of(self.config).to(self.device)
        self.batch = self.batch_of(self.task["batch"])
        weights = list(self.trained.parameters())
        self.optimizer = torch.optim.Adam(weights, lr=1e-3, amsgrad=True)
        self.average = [p.detach().clone() for p in weights]
        loss = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=10.0)
        self.loss = loss.to(self.device)

    def train(self):
        """Loss, gradient, clipping, Adam and the average of the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        out = self.trained(self.batch.to_dict(), training=True, compute_force=True)
        self.loss(pred=out, ref=self.batch).backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 10.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.trained.parameters()], 0.01)
        self.wait()

    def wait(self):
        """Until the device has nothing to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
