"""The broker of a pipeline on a cluster: that of the process engine, whose workers are on nodes.

Law: it decides what the other one decides, with the same core.  What a node answers later is an event then.
"""

from __future__ import annotations

import os
import sys
from functools import partial

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.core import commands
from conveyor.engines.dask.cluster import Cluster, ClusterFacts
from conveyor.engines.dask.messages import Probe
from conveyor.engines.dask.workers import ClusterPool
from conveyor.engines.process.broker.broker import Broker
from conveyor.engines.process.broker.broker import main as run
from conveyor.engines.process.broker.shell import ProcessShell

if TYPE_CHECKING:
    from conveyor.engines.process.shm.arena import Arena
    from conveyor.engines.process.wire.configs import BrokerConfig
    from conveyor.engines.process.wire.endpoint import NonblockingEndpoint
    from conveyor.engines.process.wire.handles import Handles

# How often the broker looks whether workers wait for a node for too long.
LOOK_SECONDS = 0.25


class ClusterShell(ProcessShell):
    """Workers are processes of other machines."""

    def revoke(self, command: commands.Revoke) -> None:
        """Have a worker start no more; the answer comes later."""
        self.pool.workers[command.worker].revoke(command.lease, command.calls)

    def probe_worker(self, worker: int) -> None:
        """Ask since when a worker is at its call; the answer comes later."""
        child: Any = self.pool.workers[worker].child
        child.tell(Probe(worker))


class ClusterBroker(Broker):
    """The loop, with a cluster."""

    shell_kind = ClusterShell

    def __init__(
        self,
        facts: ClusterFacts,
        config: BrokerConfig,
        endpoints: tuple[NonblockingEndpoint, NonblockingEndpoint, NonblockingEndpoint],
        arena: Arena | None,
        handles: Handles | None,
    ) -> None:
        cluster = Cluster(facts)
        cluster.connect()
        slots = max(1, sum(cluster.cores.values()))
        if facts.slots is not None:
            slots = min(slots, facts.slots) if cluster.cores else facts.slots
        self.pool_kind = type("ClusterPool", (ClusterPool,), {"cluster": cluster})
        self._looked = 0.0
        super().__init__(config._replace(plan=replace(config.plan, cores=slots)), endpoints, arena, handles)

    def serve(self) -> None:
        """Serve as any broker, and end this process: Dask has a thread here, and nothing left that matters."""
        exitcode = 1
        try:
            super().serve()
            exitcode = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exitcode)

    def _patience(self) -> float | None:
        patience = super()._patience()
        return LOOK_SECONDS if patience is None else min(patience, LOOK_SECONDS)

    def _look_around(self) -> None:
        super()._look_around()
        pool: Any = self._pool
        if not pool.closing and time.monotonic() > self._looked + LOOK_SECONDS:
            self._looked = time.monotonic()
            pool.look()


def run_broker(facts: ClusterFacts, *arguments: Any) -> None:
    """The whole life of such a broker process."""
    given: Any = (*arguments, partial(ClusterBroker, facts))
    run(*given)
