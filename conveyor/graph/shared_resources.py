"""Finds open files, connections and clients that several workers of a Processor would share.

Law: it warns and changes nothing.  It imports nothing: a job cannot hold an object of a class that was never imported.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from itertools import islice
from types import FunctionType, ModuleType

from conveyor._lean.short_repr import short
from conveyor._lean.typing import Any
from conveyor.errors import SharedResourceWarning
from conveyor.graph.plan import Plan
from conveyor.stages.job_inspection import CALLABLES, parts_of
from conveyor.stages.outputs import Fused
from conveyor.stages.processor import Processor

# Limits of the search: the depth, the parts of each object, and the objects in all.
_DEPTH, _PARTS, _OBJECTS = 5, 100, 2000

# Classes that are no files, by package and name; packages move classes between their modules.
_CLIENTS = frozenset(
    {
        ("aiohttp", "ClientSession"),
        ("h5py", "File"),
        ("http", "HTTPConnection"),
        ("httpx", "AsyncClient"),
        ("httpx", "Client"),
        ("lmdb", "Environment"),
        ("multiprocessing", "_ConnectionBase"),
        ("psycopg", "Connection"),
        ("psycopg2", "connection"),
        ("pymysql", "Connection"),
        ("redis", "AbstractConnection"),
        ("requests", "Session"),
        ("socket", "socket"),
        ("sqlalchemy", "Connection"),
        ("sqlalchemy", "Engine"),
        ("sqlalchemy", "Session"),
        ("sqlite3", "Connection"),
        ("sqlite3", "Cursor"),
        ("tarfile", "TarFile"),
        ("tempfile", "_TemporaryFileWrapper"),
        ("urllib3", "HTTPConnectionPool"),
        ("urllib3", "PoolManager"),
        ("zipfile", "ZipFile"),
    }
)


# Those that a job takes along to new interpreters, where its workers share them.
_HANDED_OVER = frozenset({("multiprocessing", "_ConnectionBase"), ("socket", "socket")})
# What workers share of an object: all that it holds, what it takes along, or nothing.
_ALL, _TAKEN_ALONG, _NOTHING = "all", "taken along", "nothing"


def warn_of_shared(plan: Plan, forked: bool, script: bool, stacklevel: int = 1) -> None:
    """Warn with SharedResourceWarning of each Processor whose workers would share an open resource of its job.

    `forked`: the workers share all that this process has.  Else they share what jobs take along and, with `script`,
    objects at the module level of the script.  `stacklevel` counts as in a call of `warnings.warn` in place of this
    function.
    """
    warned: set[int] = set()
    for step in plan.replicated:
        if id(step.processor) in warned:
            continue
        warned.add(id(step.processor))
        for name, roots in _jobs(step.name, step.processor):
            found = _resource_in(roots, forked, script)
            if found is not None:
                warnings.warn(_message(name, *found), SharedResourceWarning, stacklevel + 1)


def holds_resource(processor: Processor[Any, Any]) -> bool:
    """Whether several forked workers of a Processor would share what its job has open."""
    return any(_resource_in(roots, forked=True, script=True) is not None for _, roots in _jobs("", processor))


def _jobs(name: str, processor: Processor[Any, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Yield the name and the objects, with their places, of a Processor or of each one fused in it."""
    if isinstance(processor.job, Fused):
        for each, job, setup in processor.job.named:
            yield each, [("its job", job), *([] if setup is None else [("its setup", setup)])]
        return
    classes = type(processor).__mro__[: type(processor).__mro__.index(Processor)]
    of_class = [(f"the class attribute {name!r}", each) for base in classes for name, each in vars(base).items()]
    yield name, [*parts_of(processor), *of_class]


def _resource_in(roots: list[tuple[str, Any]], forked: bool, script: bool) -> tuple[str, str] | None:
    """Return the place and the name of an open resource that workers would share; None where there is none."""
    waiting = deque((where, value, 1, _ALL if forked else _taken_along(where)) for where, value in roots)
    known: dict[int, Any] = {}
    while waiting and len(known) < _OBJECTS:
        where, value, depth, shared = waiting.popleft()
        if id(value) in known:
            continue
        known[id(value)] = value
        name = _named(value)
        if name is not None:
            if (shared == _ALL or (shared == _TAKEN_ALONG and _is_handed_over(value))) and _is_open(value):
                return where, name
            continue
        if depth == _DEPTH or not _is_looked_into(value):
            continue
        is_of_script = script and type(value) is FunctionType and value.__globals__.get("__name__") == "__main__"
        # RuntimeError: another thread has changed a container meanwhile.
        with contextlib.suppress(RuntimeError):
            for words, part in islice(parts_of(value), _PARTS):
                if shared == _ALL or (is_of_script and words.startswith("the global")):
                    waiting.append((words, part, depth + 1, _ALL))
                else:
                    waiting.append((words, part, depth + 1, _NOTHING if shared == _NOTHING else _taken_along(words)))
    return None


def _taken_along(where: str) -> str:
    """Return what a job takes along of an object: what it names, a new interpreter makes for itself."""
    return _NOTHING if where.startswith(("the global", "the class attribute")) else _TAKEN_ALONG


def _is_handed_over(value: Any) -> bool:
    return any((base.__module__.partition(".")[0], base.__name__) in _HANDED_OVER for base in type(value).__mro__)


def _is_looked_into(value: Any) -> bool:
    """Whether the search goes into an object.

    Of the standard library these are callables and containers.  Its other objects, such as loggers and queues, may be
    shared.
    """
    kind = type(value)
    if issubclass(kind, type | ModuleType):
        return False
    if issubclass(kind, (*CALLABLES, list, tuple, set, frozenset, dict)):
        return True
    return kind.__module__.partition(".")[0] not in sys.stdlib_module_names


def _named(value: Any) -> str | None:
    """Return the name of the resource that an object is; None where it is none."""
    for base in type(value).__mro__:
        package = base.__module__.partition(".")[0]
        if (package, base.__name__) in _CLIENTS:
            return f"a {base.__name__} of {package}"
    if not issubclass(type(value), io.IOBase) or value in (sys.stdout, sys.stderr):
        return None
    name = getattr(value, "name", None)
    return f"the open file {short(name)}" if isinstance(name, str) else "an open file"


def _is_open(resource: Any) -> bool:
    try:
        if getattr(resource, "closed", False):
            return False
        if any(getattr(resource, name, resource) is None for name in ("fp", "sock")):
            return False
        number = getattr(resource, "fileno", None)
        return number is None or number() >= 0
    except Exception:
        # A file in memory has no descriptor, and a closed file raises too.
        return False


def _message(name: str, where: str, resource: str) -> str:
    return (
        f"Processor {name!r}: its workers share {resource}, which its job holds ({where}). It was opened before the "
        "workers were started, so they share one position or connection. A worker that reads or writes moves it for "
        "all. Open it in each worker: in the `setup` of a Processor subclass, or in the job."
    )
