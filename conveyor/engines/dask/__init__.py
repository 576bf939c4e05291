"""The Dask engine: workers are processes on the nodes of a Dask cluster, and the broker is on the caller's machine.

Law: this module imports nothing of Dask before a pipeline that uses it is made.  `docs/reference/cluster.md` has what
a user has to know.
"""

from __future__ import annotations

from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conveyor.engines.base import PipelineSettings, Session
    from conveyor.graph.plan import Plan

INSTALL = "pip install 'conveyor-pipeline[dask]'"
# What the process engine has, and this one decides by itself.
_REFUSED = {
    "start_method": "node processes start the workers in their own way",
    "channel": "messages cross a network",
    "cores": "the slots of the cluster are its cores; `DaskEngine(slots=...)` bounds them",
}


class DaskEngine:
    """A Dask cluster as the engine of a pipeline: `Pipeline(engine=DaskEngine("tcp://head:8786"))`.

    - `client_or_address`: the address of a scheduler, as a str, or a `distributed.Client` that is connected to one.
      None: the client that the program has (`distributed.get_client`); where it has none, a `LocalCluster` on this
      machine, with a warning, until the pipeline is closed.
    - `slots` (None): how many threads of Dask workers count as cores for `workers="auto"`; None: all.
    - `lost_after` (30): after so many seconds without a word, a node or the scheduler is lost.  A float, 5 or more.

    Raises TypeError or ValueError for an argument that it cannot use, and ImportError where `distributed` is not
    installed.
    """

    # With `fuse=True`, adjacent steps share a process; `PipelineSettings` asks.
    fuses = True

    def __init__(self, client_or_address: Any = None, slots: int | None = None, lost_after: float = 30) -> None:

        _check_installed()
        if not (client_or_address is None or isinstance(client_or_address, str) or _is_client(client_or_address)):
            raise TypeError(
                "DaskEngine: client_or_address must be a str such as 'tcp://head:8786', a distributed.Client or None, "
                f"not {short(client_or_address)}"
            )
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int)):
            raise TypeError(f"DaskEngine: slots must be an int or None, not {short(slots)}")
        if slots is not None and slots < 1:
            raise ValueError(f"DaskEngine: slots must be 1 or more, or None, not {slots}")
        if isinstance(lost_after, bool) or not isinstance(lost_after, int | float):
            raise TypeError(f"DaskEngine: lost_after must be a number of seconds, not {short(lost_after)}")
        if not 5 <= lost_after < float("inf"):
            raise ValueError(f"DaskEngine: lost_after must be 5 seconds or more, and finite, not {lost_after}")
        if isinstance(client_or_address, str):
            _check_reachable(client_or_address)
        self._target = client_or_address
        self._slots = slots
        self._lost_after = float(lost_after)

    def __repr__(self) -> str:
        target = self._target if self._target is None or isinstance(self._target, str) else "<Client>"
        return f"DaskEngine({target!r}, slots={self._slots}, lost_after={self._lost_after:g})"

    def check_settings(self, settings: PipelineSettings) -> None:
        """Raise ValueError for settings of a pipeline that have no meaning here."""
        for name, why in _REFUSED.items():
            if value := getattr(settings, name):
                given = f"{name}={short(value)}"
                raise ValueError(f"Pipeline: {given} cannot be used on a Dask cluster: {why}. Leave it out")

    def __call__(self, plan: Plan, settings: PipelineSettings) -> Session:
        """Return a session of a pipeline on this cluster."""
        from conveyor.engines.dask.session import ClusterSession
        from conveyor.engines.process.caller.start_method import Carried

        if settings.fuse:
            plan = _fused(plan)
        found = _Cluster(self._target, self._slots, self._lost_after)
        carried = Carried(settings.redact, settings.shared)
        return ClusterSession(plan, found.facts, found.close, found.warning, carried, settings.seed)


def _fused(plan: Plan) -> Plan:
    """Return the plan with fused steps, which have as many workers as the slots of the cluster allow."""
    from conveyor._lean.dataclasses import replace
    from conveyor.graph.fusion import fused
    from conveyor.graph.plan import StepNode
    from conveyor.stages.outputs import Fused

    def unbound(node: Any) -> Any:
        # The cores of this machine are the bound elsewhere.
        is_fused = isinstance(node, StepNode) and type(node.processor.job) is Fused
        return replace(node, workers=1, most=None) if is_fused else node

    plan = fused(plan)
    return replace(plan, nodes=tuple(map(unbound, plan.nodes)))


class _Cluster:
    """Where the scheduler is: given, known to the program, or started for one session."""

    def __init__(self, target: Any, slots: int | None, lost_after: float) -> None:
        self._slots, self._lost_after = slots, lost_after
        self._started: Any = None
        self.warning: str | None = None
        if target is None:
            target = _known_client()
        self._target = target
        if target is None:
            self.warning = (
                'engine="dask" was given no address, and this program has no Dask client: a LocalCluster on this '
                "machine is started, and ends with the pipeline. Remedy: give an address, or leave `engine` out where "
                "one machine is enough"
            )

    def facts(self) -> Any:
        """Return what the broker has to know; starts a cluster where there is none."""
        from conveyor.engines.dask.cluster import ClusterFacts

        address, security = self._target, None
        if self._target is None:
            self._started = _started_cluster()
            address = self._started.scheduler_address
        elif not isinstance(self._target, str):
            address, security = self._target.scheduler.address, self._target.security
        _check_reachable(address)
        return ClusterFacts(address, self._slots, self._lost_after, security)

    def close(self) -> None:
        """End the cluster that was started here."""
        started, self._started = self._started, None
        if started is not None:
            started.close(timeout=5)


def _started_cluster() -> Any:
    from distributed import LocalCluster

    from conveyor._system.limits import usable_cores
    from conveyor.engines.process.caller.script import is_guarded
    from conveyor.errors import MissingMainGuardError

    if not is_guarded():
        raise MissingMainGuardError
    return LocalCluster(n_workers=1, threads_per_worker=usable_cores(), dashboard_address=None)


def _known_client() -> Any:
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def _is_client(value: Any) -> bool:
    from distributed import Client

    return isinstance(value, Client)


def _check_reachable(address: str) -> None:
    if address.startswith("inproc://"):
        raise ValueError(
            f"DaskEngine: the scheduler at {address!r} can be reached from its own process alone, and a pipeline has "
            'others. Remedy: a cluster with processes, or with protocol="tcp"'
        )


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("distributed") is None:
        raise ImportError(f'engine="dask" needs the package `distributed`, which is not installed. Remedy: {INSTALL}')


class new_session:
    """Makes a session for `engine="dask"`: what `conveyor.engines.base.ENGINES` names."""

    def __new__(cls, plan: Plan, settings: PipelineSettings) -> Any:
        """Return a session on the cluster at the address that the settings name."""
        return DaskEngine(settings.address)(plan, settings)

    @staticmethod
    def check_settings(settings: PipelineSettings) -> None:
        """Raise what the settings of a pipeline would raise when it is opened."""
        DaskEngine(settings.address).check_settings(settings)
