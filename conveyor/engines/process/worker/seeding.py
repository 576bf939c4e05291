"""Random numbers: each worker has its own, and a run can be repeated.

Law: the caller's generator is read, and never drawn from.  In a worker the generators of whole modules are seeded: at
its start those that are loaded by then, any other as soon as its module has been imported.  No module is imported
for it.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from functools import partial

from conveyor._lean.typing import Any

# How many pipelines this process has opened: two that are opened one after the other have other numbers.
_opened = itertools.count()


def seed_of_pipeline(seed: int | None) -> str | None:
    """Return what the seeds of all workers derive from.

    That is the `seed` of the pipeline, or else the state of the caller's generator.  Where the caller has not imported
    `random`, it is None: then the modules seed themselves, in each worker.
    """
    if seed is not None:
        return f"seed {seed}"
    count = next(_opened)
    # A module of the user's own may have this name, and one may be amid its import.
    with contextlib.suppress(AttributeError, TypeError, LookupError):
        if "random" in sys.modules:
            # The numbers alone: their hash is the same in every process, unlike that of a text.
            return f"state {hash(sys.modules['random'].getstate()[1])} {count}"
    return None


def seed_generators(seed: str) -> None:
    """Seed the generators of modules that are loaded, and have the others seeded once they are."""
    # The caller has no use for it.
    from conveyor.engines.process.worker.log_capture import ImportHook

    for module, seed_module in _MODULES.items():
        then = partial(_seed, module, seed_module, f"{seed} {module}")
        if module in sys.modules:
            then()
        else:
            ImportHook(module, then).install()


def _seed(module: str, seed_module: Callable[[Any, Any], None], seed: str) -> None:
    # A module of the user's own may have this name; a generator may be of a kind that cannot be seeded.
    with contextlib.suppress(Exception):
        import random

        seed_module(sys.modules[module], random.Random(seed))


def _seed_random(module: Any, source: Any) -> None:
    module.setstate(source.getstate())


def _seed_numpy(module: Any, source: Any) -> None:
    module.seed([source.getrandbits(32) for _ in range(8)])


def _seed_torch(module: Any, source: Any) -> None:
    module.manual_seed(source.getrandbits(63))


_MODULES: dict[str, Callable[[Any, Any], None]] = {
    "random": _seed_random,
    "numpy.random": _seed_numpy,
    "torch": _seed_torch,
}
