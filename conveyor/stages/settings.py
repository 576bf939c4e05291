"""The settings of a Processor: each with its type, default, check and documentation.

Law: a setting is declared here and nowhere else; the signature, the checks and the `repr` of a Processor follow.  To
add a setting, declare it in `_ProcessorSettings`, name it for type checkers in `PolicySettings`, and use it.  A
Processor that is given it is not fused with others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Literal, TypeVar
from conveyor.errors import ItemTimeoutError

if TYPE_CHECKING:
    import inspect

    from typing_extensions import TypedDict

    from conveyor.stages.processor import Processor

    class PolicySettings(TypedDict, total=False):
        """The settings that do not change the type of a Processor."""

        retries: int
        retry_on: type[BaseException] | tuple[type[BaseException], ...]
        backoff: float
        timeout: float | None
        on_error: Literal["raise", "skip"] | Callable[[Any, Exception], Any]
        max_items: int | None
        max_workers: int | None
        batch_timeout: float | None
        concurrency: int | None
        threads: int | None
        setup: Callable[[], object] | None


MOST_BACKOFF_SECONDS = 30.0
# More threads than a process has a use for; the notes of so many calls fit into the memory of a progress board.
MOST_THREADS = 4096

RAISE = "raise"

Value = TypeVar("Value")
Owner = TypeVar("Owner")
Check = Callable[[str, Any], None]


class Setting(NamedTuple):
    """One setting.  `is_argument`: `Processor(...)` takes it too, not only a class body."""

    default: Any
    check: Check
    doc: str
    is_argument: bool


def setting(default: Value, check: Check, doc: str, *, argument: bool = True) -> Value:
    """Declare a setting in a class body; `declared` replaces it by its default."""
    made: Any = Setting(default, check, doc, argument)
    return made  # type: ignore[no-any-return]


def declared(owner: type[Owner]) -> type[Owner]:
    """Collect the settings of a class body, and set the attributes to the defaults (a class decorator)."""
    settings = {name: each for name, each in vars(owner).items() if isinstance(each, Setting)}
    for name, each in settings.items():
        setattr(owner, name, each.default)
    changed: Any = owner
    changed._declared = settings
    return owner


def settings_of(owner: Any) -> dict[str, Setting]:
    """Return the settings that a class declares, by name, in the order of its body."""
    return owner._declared  # type: ignore[no-any-return]


# The checks: each raises TypeError or ValueError with the name of the setting, the rule and the value.


def check_count(what: str, value: object, *, least: int = 1, or_else: str = "") -> None:
    """Raise unless `value` is an int of `least` or more."""
    # Python takes a bool for an int, but nobody means one as a count.
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int of {least} or more{or_else}, not {short(value)}")
    if value < least:
        raise ValueError(f"{what} must be {least} or more{or_else}, not {short(value)}")


def count(least: int, or_else: str = "") -> Check:
    """Return the check for an int of `least` or more."""
    return lambda what, value: check_count(what, value, least=least, or_else=or_else)


def optional(check: Check) -> Check:
    """Return a check that accepts None too."""
    return lambda what, value: None if value is None else check(what, value)


def check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {short(value)}")


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str or None, not {short(value)}")
    if value == "":
        raise ValueError(f"{what} must not be empty; leave it out to use the name of the job")
    if not value.isprintable():
        raise ValueError(f"{what} must be printable, without line breaks, not {short(value)}")


def _check_workers(what: str, value: object) -> None:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"{what} must be an int of 1 or more, 'auto' or None, not {short(value)}")
    elif value is not None:
        check_count(what, value, or_else=", 'auto' or None")


def _check_threads(what: str, value: object) -> None:
    check_count(what, value, or_else=" or None")
    if isinstance(value, int) and value > MOST_THREADS:
        raise ValueError(f"{what} must be {MOST_THREADS} at most, not {value}: say workers=n for more")


def _check_retry_on(what: str, value: object) -> None:
    classes = value if isinstance(value, tuple) else (value,)
    if not classes or not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise TypeError(f"{what} must be an exception class or a tuple of some, not {short(value)}")


def check_seconds(what: str, value: object, least: str = "0 or more") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {short(value)}")
    # Written so that NaN fails.
    if not (0 <= value < float("inf")) or (value == 0 and least != "0 or more"):
        raise ValueError(f"{what} must be a finite number of seconds, {least}, not {short(value)}")


def _check_on_error(what: str, value: object) -> None:
    # `stages/checks.py` checks the signature of a callable.
    if value not in ("raise", "skip") and (isinstance(value, str) or not callable(value)):
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{what} must be 'raise', 'skip' or a callable of an item and its error, not {short(value)}"
        )


@declared
class _ProcessorSettings:
    """The settings of a Processor, as class attributes, so that the class body of a subclass can give them."""

    name: str | None = setting(
        None,
        optional(_check_name),
        "Its name in errors, pictures and statistics; None: the name of its job or class.",
    )
    workers: int | Literal["auto"] | None = setting(
        None, _check_workers, 'The number of processes; None: 1; "auto": the pipeline decides.'
    )
    batch: int | None = setting(
        None, optional(count(1, " or None")), "How many items the job gets at once, in a list; None: one item, no list."
    )
    per_item: bool = setting(
        False,
        check_flag,
        "Whether the job returns one output for each item of its list, and each goes on by itself; with `batch`.",
    )
    batch_timeout: float | None = setting(
        None,
        optional(check_seconds),
        "The seconds that an item waits at most for its list to be filled; None: not at all; with `per_item`.",
    )
    keep_none: bool = setting(False, check_flag, "Whether a None that the job returns is an output.")
    retries: int = setting(0, count(0), "How many times the job is called again with an item at which it raised.")
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = setting(
        Exception, _check_retry_on, "The exceptions after which the job is called again."
    )
    backoff: float = setting(
        0.1, check_seconds, "The seconds before the first retry; they double each time, up to 30, less a random part."
    )
    timeout: float | None = setting(
        None,
        optional(partial(check_seconds, least="more than 0")),
        "The seconds that a call may take before its worker is killed and replaced; None: no limit.",
    )
    on_error: Any = setting(
        "raise", _check_on_error, 'What happens to an item that failed for good: "raise", "skip" or a callable.'
    )
    max_items: int | None = setting(
        None,
        optional(count(1, ", or None for no limit")),
        "How many items, or batches, a worker has before it is replaced; None: no limit.",
    )
    max_workers: int | None = setting(
        None,
        optional(count(1, ", or None")),
        'The greatest number of processes with workers="auto"; None: as many as help.',
    )
    concurrency: int | None = setting(
        None,
        optional(count(1, " or None")),
        "How many calls of an async job one process makes at once; None: 100.",
    )
    threads: int | None = setting(
        None,
        optional(_check_threads),
        "How many calls of a job one process makes at once, each in a thread; None: one, in its main thread.",
    )
    restartable: bool = setting(
        False,
        check_flag,
        "Whether a dead worker of a subclass is replaced, although its state on `self` is lost.",
        argument=False,
    )
    thread_safe: bool = setting(
        False,
        check_flag,
        "Whether several threads may call `process` of a subclass at once, which has one state for all of them.",
        argument=False,
    )


PROCESSOR_SETTINGS = settings_of(_ProcessorSettings)
PROCESSOR_ARGUMENTS = tuple(name for name, each in PROCESSOR_SETTINGS.items() if each.is_argument)


class ProcessorSignature:
    """The signature of a Processor for `help()`, `inspect.signature` and editors.

    As the `__signature__` of a class it has the defaults of that class.  A class with its own `__init__` has none.
    """

    def __init__(self, initialize: Callable[..., None]) -> None:
        self._initialize = initialize

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if instance is not None or owner.__init__ is not self._initialize:  # type: ignore[misc]
            raise AttributeError("__signature__")
        signature = self._of(owner)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @property
    def __signature__(self) -> inspect.Signature:
        return self._of(_ProcessorSettings)

    def _of(self, owner: type) -> inspect.Signature:
        # The import is slow, and few programs need it.
        from inspect import Parameter, Signature

        types = _ProcessorSettings.__annotations__
        setup = [Parameter("setup", Parameter.KEYWORD_ONLY, default=None, annotation="Callable[[], Any] | None")]
        if owner is not _ProcessorSettings and vars(owner).get("__init__") is not self._initialize:
            # A subclass has a method of that name.
            setup = []
        return Signature(
            [
                Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
                Parameter("job", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Any"),
                *(
                    Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(owner, name), annotation=types[name])
                    for name in PROCESSOR_ARGUMENTS
                ),
                *setup,
            ],
            return_annotation="None",
        )


def _uniform(least: float, most: float) -> float:
    # The import is slow, and few pipelines need it.
    import random

    # The user's generator must not advance, and forked processes must not all wait equally long.
    return random.SystemRandom().uniform(least, most)


class Policy(NamedTuple):
    """The failure settings of one Processor: the retries, the waits before them, and the replacement.

    Decisions only: nothing here calls a job or waits.  The inline engine and the workers share these decisions, so they
    cannot differ.
    """

    retries: int
    retry_on: tuple[type[BaseException], ...]
    backoff: float
    on_error: str | Callable[[Any, Exception], Any]

    @property
    def strict(self) -> bool:
        """Whether the first failure ends the run."""
        return not self.retries and self.on_error == RAISE

    @property
    def gives_up(self) -> bool:
        """Whether the run goes on without an item that failed for good."""
        return self.on_error != RAISE

    @property
    def replaces(self) -> bool:
        """Whether a callable gives the output in place of a failed item."""
        return callable(self.on_error)

    @property
    def timeouts(self) -> int:
        """How many timeouts of one item there may be; the last one is final."""
        return 1 + self.retries * issubclass(ItemTimeoutError, self.retry_on)

    def tries_again(self, error: BaseException, attempts: int) -> bool:
        """Whether a job that raised `error` is called again after `attempts` calls."""
        return attempts <= self.retries and isinstance(error, self.retry_on)

    def delay(self, attempts: int, uniform: Callable[[float, float], float] = _uniform) -> float:
        """Return the seconds to wait before the next call, after `attempts` calls.

        The wait doubles each time, less a random part of at most half.  This is the "equal jitter" of Marc Brooker,
        "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

        >>> policy = Policy(retries=5, retry_on=(Exception,), backoff=0.1, on_error="raise")
        >>> [policy.delay(attempts, uniform=lambda least, most: most) for attempts in (1, 2, 3, 20)]
        [0.1, 0.2, 0.4, 30.0]
        """
        longest = min(MOST_BACKOFF_SECONDS, self.backoff * 2.0 ** min(attempts - 1, 100))
        return uniform(longest / 2, longest)


def policy_of(processor: Processor[Any, Any]) -> Policy:
    retry_on = processor.retry_on
    retry_on = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    return Policy(processor.retries, retry_on, float(processor.backoff), processor.on_error)
