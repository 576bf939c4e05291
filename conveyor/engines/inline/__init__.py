"""The inline engine: everything in the calling process, one item at a time.

It is the specification: the simplest code that is right.  Every other engine's ordered results equal these.
"""

from __future__ import annotations

from conveyor._lean.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor.engines import base
    from conveyor.graph.plan import Plan


def new_session(plan: Plan, settings: base.PipelineSettings) -> base.Session:
    """Return a session of this engine: what `conveyor.engines.base.ENGINES` names."""
    from conveyor.engines.inline.session import Session

    if settings.shared is not None:
        # Most pipelines have nothing of that kind.
        from conveyor._lean.dataclasses import replace
        from conveyor.engines.process.wire.shared_objects import shared_here

        plan = replace(plan, settings=(*plan.settings, ("shared", shared_here(settings.shared))))
    return Session(plan, settings.redact)
