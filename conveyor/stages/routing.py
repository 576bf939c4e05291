"""What all elements of a pipeline have in common, and those between Processors: Pipe, the two forks, Join.

Law: immutable values.  Nothing here starts, buffers or counts anything.  What is wrong with an element by itself is
said when it is made; what is wrong with its place is said by `graph/layout.py`.
"""

from __future__ import annotations

from conveyor._lean.dataclasses import assembled, dataclass
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload
from conveyor.stages.settings import check_count

How_co = TypeVar("How_co", bound=str, covariant=True)

DEFAULT_MAXSIZE = 65536
"""How many items a Pipe without `maxsize` holds."""


class Element:
    """What `Pipeline.add` takes: the base of Processor, Pipe, ReplicatingFork, BalancingFork and Join.

    >>> [isinstance(each, Element) for each in (Pipe(), Join(2), len)]
    [True, True, False]
    """

    if TYPE_CHECKING:
        # There is no such attribute.  By its type, a checker tells a Processor from an Element that may be anything.
        _is_processor: bool


@dataclass(frozen=True, repr=False, init=False)
class Pipe(Element):
    """A bounded first-in, first-out buffer between two steps; while it is full, its producer waits.

    It is full when it holds `maxsize` items, or about `maxbytes` bytes of pickled items, whichever comes first.  The
    next item or batch of the following step always fits.

    - `maxsize` (None: 65,536): an int of 1 or more.
    - `maxbytes` (None: a share of the memory of the machine or container, at most 16 MiB): an int of 1 or more.

    Raises TypeError or ValueError for anything else.

    >>> Pipe(), Pipe(10), Pipe(maxbytes=1_000_000), Pipe(maxsize=10, maxbytes=1_000_000)
    (Pipe(), Pipe(maxsize=10), Pipe(maxbytes=1000000), Pipe(maxsize=10, maxbytes=1000000))
    """

    maxsize: int | None
    maxbytes: int | None

    def __init__(self, maxsize: int | None = None, maxbytes: int | None = None) -> None:
        for name, value in (("maxsize", maxsize), ("maxbytes", maxbytes)):
            if value is not None:
                check_count(f"Pipe: {name}", value, or_else=", or None for the default")
            object.__setattr__(self, name, value)

    @property
    def bound(self) -> int:
        """How many items the Pipe holds."""
        return DEFAULT_MAXSIZE if self.maxsize is None else self.maxsize

    def __repr__(self) -> str:
        settings = (("maxsize", self.maxsize), ("maxbytes", self.maxbytes))
        return f"Pipe({', '.join(f'{name}={value}' for name, value in settings if value is not None)})"


@dataclass(frozen=True, repr=False, init=False)
class ReplicatingFork(Element):
    """Each item goes to all of `n` branches.  Each branch gets its own copy, and may change it.

    Raises TypeError or ValueError unless `n` is an int of 1 or more.

    >>> ReplicatingFork(2)
    ReplicatingFork(2)
    """

    n: int

    def __init__(self, n: int) -> None:
        check_count("ReplicatingFork: the number of branches", n)
        object.__setattr__(self, "n", n)

    def __repr__(self) -> str:
        return f"ReplicatingFork({self.n})"


@dataclass(frozen=True, repr=False, init=False)
class BalancingFork(Element):
    """Each item goes to one of `n` branches, in turn; a branch whose workers have enough items is passed over.

    Without `n` it opens one branch, and the running pipeline decides how many copies of it work.  There are at least
    `min` copies (None: 1), and at most `max` (None: as many as the balancer wants).  Raises TypeError or ValueError
    unless each is an int of 1 or more, for `min` above `max`, and for `n` with either.

    >>> BalancingFork(3), BalancingFork(), BalancingFork(min=1, max=4)
    (BalancingFork(3), BalancingFork(), BalancingFork(min=1, max=4))
    """

    n: int | None
    min: int | None
    max: int | None

    def __init__(self, n: int | None = None, *, min: int | None = None, max: int | None = None) -> None:
        for name, value in (("n", n), ("min", min), ("max", max)):
            object.__setattr__(self, name, value)
        if self.n is not None:
            check_count(
                "BalancingFork: the number of branches",
                self.n,
                or_else=", or left out to have it decided while the pipeline runs",
            )
        for name, value in (("min", self.min), ("max", self.max)):
            if value is None:
                continue
            check_count(f"BalancingFork: {name}", value, or_else=" or None")
            if self.n is not None:
                raise ValueError(
                    f"BalancingFork({self.n}, {name}={value}): the number of branches is fixed, so {name} has no use; "
                    f"leave out {self.n} or {name}"
                )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{self!r}: min must not be more than max, but {self.min} > {self.max}")

    @property
    def auto(self) -> bool:
        """Whether the number of branches is decided while the pipeline runs."""
        return self.n is None

    def __repr__(self) -> str:
        arguments = [] if self.n is None else [str(self.n)]
        arguments += [f"{name}={value}" for name, value in (("min", self.min), ("max", self.max)) if value is not None]
        return f"BalancingFork({', '.join(arguments)})"


@assembled
@dataclass(frozen=True, repr=False, init=False)
class Join(Element, Generic[How_co]):
    """`n` branches become one stream; without `n`, the branches of the innermost open fork do.

    `how="merge"` passes on every output.  `how="zip"` makes one tuple per item that entered a ReplicatingFork, from
    the outputs of its branches.  Raises TypeError or ValueError for any other `n` or `how`.

    >>> Join(), Join(2), Join(2, how="zip")
    (Join(), Join(2), Join(2, how='zip'))
    """

    n: int | None
    how: How_co

    @overload
    def __init__(self: Join[Literal["merge"]], n: int | None = None, *, how: Literal["merge"] = "merge") -> None: ...

    @overload
    def __init__(self: Join[Literal["zip"]], n: int | None = None, *, how: Literal["zip"]) -> None: ...

    def __init__(self, n: int | None = None, *, how: Any = "merge") -> None:
        if n is not None:
            check_count("Join: the number of branches", n, or_else=", or left out to join the innermost open fork")
        if not isinstance(how, str):
            raise TypeError(f"Join: how must be 'merge' or 'zip', not {short(how)}")
        if how not in ("merge", "zip"):
            raise ValueError(f"Join: how must be 'merge' or 'zip', not {short(how)}")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "how", how)

    def __repr__(self) -> str:
        arguments = [] if self.n is None else [str(self.n)]
        if self.how != "merge":
            arguments.append(f"how={self.how!r}")
        return f"Join({', '.join(arguments)})"
