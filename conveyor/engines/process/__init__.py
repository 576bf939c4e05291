"""The process engine: a caller, a broker and workers, each in a process of its own, and a folder for each."""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor.engines.base import PipelineSettings, Session
    from conveyor.graph.plan import Plan


def new_session(plan: Plan, settings: PipelineSettings) -> Session:
    """Return a session of this engine: what `conveyor.engines.base.ENGINES` names."""
    # Broker and workers have no use for the caller's side.
    from conveyor.engines.process.caller import session
    from conveyor.engines.process.caller.start_method import Carried

    if settings.fuse:
        from conveyor.graph.fusion import fused

        plan = fused(plan)
    carried = Carried(settings.redact, settings.shared)
    return session.Session(plan, settings.start_method, settings.channel, carried, settings.seed)
