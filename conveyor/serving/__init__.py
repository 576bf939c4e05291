"""A pipeline on a web page: who may look, where, and for how long.

Law: only this machine can reach it, and only who knows the token gets an answer.  Nothing here harms a run: what fails
is logged once.  No thread of a page is alive while a broker is forked, and none outlives its pipeline.  This module is
imported with each pipeline, the others only where one is served.
"""

from __future__ import annotations

import os

from conveyor._lean.typing import TYPE_CHECKING, Protocol
from conveyor.stats import SERVE_VARIABLE

if TYPE_CHECKING:
    from conveyor.serving.page import Page, Watched


class Operation(Protocol):
    """What starts workers, and tells its page when it is over."""

    page: Page | None


def serve_where_wanted(watched: Watched, operation: Operation) -> None:
    """Serve a page of a pipeline that is about to start its workers, where the environment says so."""
    if os.environ.get(SERVE_VARIABLE) and watched.page is None:
        from conveyor.serving.page import page_of_environment

        operation.page = watched.page = page_of_environment(watched)


def close_page(page: Page | None) -> None:
    """Close a page, where there is one."""
    if page is not None:
        page.close()
