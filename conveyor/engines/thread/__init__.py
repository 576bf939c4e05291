"""The thread engine: the whole pipeline in the calling process, each worker a thread.

It is for jobs that let go of the interpreter lock, or wait.  The core is that of the process engine.  Nothing is
pickled: what one Processor gives, the next one gets as it is.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor.engines.base import PipelineSettings, Session
    from conveyor.graph.plan import Plan


def new_session(plan: Plan, settings: PipelineSettings) -> Session:
    """Return a session of this engine: what `conveyor.engines.base.ENGINES` names."""
    from conveyor.engines.thread import session

    if settings.fuse:
        from conveyor.graph.fusion import fused

        plan = fused(plan)
    if settings.shared is not None:
        # Most pipelines have nothing of that kind.
        from conveyor._lean.dataclasses import replace
        from conveyor.engines.process.wire.shared_objects import shared_here

        plan = replace(plan, settings=(*plan.settings, ("shared", shared_here(settings.shared))))
    return session.Session(plan, settings.redact)
