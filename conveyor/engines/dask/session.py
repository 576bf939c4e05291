"""A session on a cluster, as the caller sees it: that of the process engine, with a broker that has the workers there.

Law: jobs and items travel as to fresh interpreters, and what the script defines travels by value.  Nothing is in shared
memory, as most workers could not see it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from functools import partial

from conveyor._lean.typing import Any
from conveyor.engines.dask.cluster import ClusterFacts
from conveyor.engines.process.caller.broker_link import BrokerProcess
from conveyor.engines.process.caller.session import Session
from conveyor.engines.process.caller.start_method import Carried, Start, fresh_start
from conveyor.engines.process.system.spawning import SPAWN
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.configs import BrokerConfig
from conveyor.engines.process.wire.pipe import PIPE
from conveyor.errors import ConveyorError, JobPicklingError, ProcessorError
from conveyor.graph.plan import Plan

_MISSING = {"ModuleNotFoundError", "ImportError"}


def run_broker(facts: ClusterFacts, *arguments: Any) -> None:
    """Call `broker.run_broker`; only the process that does is to import it, with Dask."""
    from conveyor.engines.dask import broker

    broker.run_broker(facts, *arguments)


class ClusterBrokerProcess(BrokerProcess):
    """The process of a broker with a cluster."""

    def __init__(self, start: Start, config: BrokerConfig, facts: Callable[[], ClusterFacts]) -> None:
        super().__init__(start, config, expected_bytes=None)
        self._facts = facts

    def launch(self) -> None:
        self.target = partial(run_broker, self._facts())
        super().launch()


class ClusterSession(Session):
    """Workers on the nodes of a cluster, from `open` to `close`.

    `facts` returns what the broker has to know of it, and is called when the session is opened.  `at_end` is called
    when all is over: it ends a cluster that was started for this session.
    """

    def __init__(
        self,
        plan: Plan,
        facts: Callable[[], ClusterFacts],
        at_end: Callable[[], None],
        warning: str | None,
        carried: Carried,
        seed: int | None,
    ) -> None:
        self._facts = facts
        self._at_end = at_end
        self._warning = warning
        super().__init__(plan, None, PIPE, carried, seed)

    def _start_for(self, plan: Plan, carried: Carried, start_method: str | None) -> Start:
        start = fresh_start(plan, carried, SPAWN, "its workers are processes of a Dask cluster")
        if start.handles is not None and start.handles.were_needed:
            start.handles.close()
            raise JobPicklingError(
                "A job refers to a lock, queue, shared value, connection or socket of this machine, which a worker on "
                "another one cannot have. Remedy: have the job make what it needs in its `setup`.",
                None,
            )
        return start._replace(import_main=False, by_value=True)

    def _new_broker(self, config: BrokerConfig) -> BrokerProcess:
        return ClusterBrokerProcess(self._start, config, self._facts)

    def warn(self, stacklevel: int) -> None:
        """Warn of a cluster that was started because there was none."""
        super().warn(stacklevel + 1)
        if self._warning is not None:
            warnings.warn(self._warning, UserWarning, stacklevel + 1)

    def _ended_by(self, failure: messages.Message) -> BaseException:
        error = super()._ended_by(failure)
        if isinstance(error, ProcessorError) and error.kind in _MISSING and error.phase in ("load", "unpickle"):
            error.args = (
                f"{error.args[0]}. A node of the cluster cannot import what the caller can. Remedy: install it on each "
                "node, or send a module with `client.upload_file(path)` of dask.distributed before the pipeline opens",
                *error.args[1:],
            )
        return error

    def _abort(self) -> None:
        try:
            super()._abort()
        finally:
            if not self.is_forked_copy:
                with contextlib.suppress(ConveyorError, OSError):
                    self._at_end()
