"""Several processes that train one model together, each on its share of every batch.

All processes read the same files and go through the same batches in the same order. Of a batch
process p of P takes structures p, p + P, p + 2P, ...; the sums of a loss and its gradient are added
over all, so that a run is that of one process to rounding, whatever P is. The state is the same
everywhere; the first process alone writes to the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eqnet.device import find_device
from eqnet.errors import InputError, reason

AXIS = "processes"
TEXT = 4096  # bytes of a text that the first process sends
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Team:
    """The processes of a run; alone by default.

    Attributes:
        index: of this process.
        count: of all.
        mesh: one device of each; None for one process.
    """

    index: int = 0
    count: int = 1
    mesh: Mesh | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def add(self, tree: Tree) -> Tree:
        """Within a program of `together`: the sum over the processes."""
        return tree if self.mesh is None else jax.lax.psum(tree, AXIS)

    def together(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """(same everywhere, graph, targets) -> same everywhere, each process with its own batch."""
        if self.mesh is None:
            return function

        def share(first: Any, *mine: Any) -> Any:
            return function(first, *jax.tree.map(lambda x: x[0], mine))

        same, apart = PartitionSpec(), PartitionSpec(AXIS)
        specs = {"in_specs": (same, apart, apart), "out_specs": same}
        return jax.shard_map(share, mesh=self.mesh, check_vma=False, **specs)

    def same(self, tree: Tree) -> Tree:
        """Arrays that have the same values in all processes, for `together`."""
        if self.mesh is None:
            return tree
        place = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)), tree
        )

    def shares(self, tree: Tree) -> Tree:
        """Arrays of which each process has its own, for `together`."""
        if self.mesh is None:
            return tree
        place = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)[None]), tree
        )

    def alone(self, tree: Tree) -> Tree:
        """Arrays of `same` as those of this process alone."""
        return tree if self.mesh is None else jax.tree.map(jnp.asarray, jax.device_get(tree))

    def most(self, here: int) -> int:
        """The largest of the numbers of all processes; all must ask."""
        if self.mesh is None:
            return here
        largest = jax.jit(jnp.max, out_shardings=NamedSharding(self.mesh, PartitionSpec()))
        return int(jax.device_get(largest(self.shares(np.int32(here)))))

    def any(self, here: bool) -> bool:
        """Whether it is so in any process; all must ask."""
        return bool(self.most(int(here)))

    def from_first(self, tree: Tree) -> Tree:
        """The arrays that the first process has, in all, for `together`; shapes agree."""
        if self.mesh is None:
            return tree
        first = jax.jit(
            lambda tree: jax.tree.map(lambda x: x[0], tree),
            out_shardings=NamedSharding(self.mesh, PartitionSpec()),
        )
        return first(self.shares(tree))

    def text_from_first(self, text: str) -> str:
        """A text of the first process, in all."""
        data = text.encode().ljust(TEXT)
        assert len(data) == TEXT
        found = self.from_first(np.frombuffer(data, np.uint8))
        return bytes(np.asarray(found)).decode().rstrip()


def join(
    coordinator: str, num_processes: int | None, process_id: int | None, device: str | None = None
) -> Team:
    """Meet the other processes, before anything else of JAX runs.

    Args:
        coordinator: HOST:PORT of the first process, or 'auto' where JAX finds it by itself: in
            Slurm, Open MPI and Kubernetes.
        num_processes: how many there are; found with 'auto'.
        process_id: which this one is, from 0; found with 'auto'.
        device: the name of the one that each process uses, among its own.

    Raises:
        InputError: they cannot be found, or did not come.
    """
    found = coordinator == "auto"
    if found and not (num_processes is None and process_id is None):
        raise InputError("--num_processes and --process_id have no effect with --coordinator auto")
    if not found and (num_processes is None or process_id is None):
        raise InputError("--coordinator HOST:PORT needs --num_processes and --process_id too")
    if not found and not 0 <= (process_id or 0) < (num_processes or 0):
        raise InputError(f"--process_id {process_id} is none of 0 to {(num_processes or 0) - 1}")
    try:
        jax.distributed.initialize(
            None if found else coordinator,
            num_processes,
            process_id,
            initialization_timeout=120,
            heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes of the run did not meet ({reason(error)}); with "
            "--coordinator auto they must be started by Slurm, Open MPI or Kubernetes"
        ) from None
    count = jax.process_count()
    if count == 1:
        return Team()
    mine = find_device(device)
    number = jax.local_devices(backend=mine.platform).index(mine)
    everyone = jax.devices(mine.platform)
    devices = [[d for d in everyone if d.process_index == p][number] for p in range(count)]
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), (AXIS,), kinds, devices=devices)
    return Team(jax.process_index(), count, mesh)


def leave(team: Team) -> None:
    """Part from the others, all at the same time; what follows runs alone."""
    if team.mesh is not None:
        jax.distributed.shutdown()
