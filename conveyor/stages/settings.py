"""What a user can set of a Processor: each setting with its type, its default, its rule and what it means.

Law: a setting is declared here and nowhere else; the signature, the checks and the `repr` of a Processor follow.  To
add one, declare it in `_ProcessorSettings`, name it for type checkers in `PolicySettings`, and use it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.short_repr import short
from conveyor._lean.typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import inspect

    from typing_extensions import TypedDict

    class PolicySettings(TypedDict, total=False):
        """What a type checker knows of the settings that decide nothing about types."""

        retries: int
        retry_on: type[BaseException] | tuple[type[BaseException], ...]
        backoff: float
        timeout: float | None
        on_error: Literal["raise", "skip"] | Callable[[Any, Exception], Any]
        max_items: int | None


Value = TypeVar("Value")
Owner = TypeVar("Owner")
Check = Callable[[str, Any], None]


class Setting(NamedTuple):
    """A setting: its default, its rule, what it means, and whether a call may give it or a class body alone."""

    default: Any
    check: Check
    doc: str
    is_argument: bool


def setting(default: Value, check: Check, doc: str, *, argument: bool = True) -> Value:
    """Declare a setting, to whose name `declared` gives the default."""
    made: Any = Setting(default, check, doc, argument)
    return made  # type: ignore[no-any-return]


def declared(owner: type[Owner]) -> type[Owner]:
    """Keep the settings that a class body declares; the attributes of the class are the defaults from now on."""
    settings = {name: each for name, each in vars(owner).items() if isinstance(each, Setting)}
    for name, each in settings.items():
        setattr(owner, name, each.default)
    changed: Any = owner
    changed._declared = settings
    return owner


def settings_of(owner: Any) -> dict[str, Setting]:
    """Return what a class declares, by the names and in the order of its body."""
    return owner._declared  # type: ignore[no-any-return]


# The rules: each raises TypeError or ValueError with what is set, the rule and the value.


def check_count(what: str, value: object, *, least: int = 1, or_else: str = "") -> None:
    """Raise unless `value` is an int of `least` or more."""
    # bool is an int to Python, and never meant as a count.
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int of {least} or more{or_else}, not {short(value)}")
    if value < least:
        raise ValueError(f"{what} must be {least} or more{or_else}, not {short(value)}")


def count(least: int, or_else: str = "") -> Check:
    """Return the rule of an int of `least` or more."""
    return lambda what, value: check_count(what, value, least=least, or_else=or_else)


def optional(check: Check) -> Check:
    """Return a rule by which None can be used as well."""
    return lambda what, value: None if value is None else check(what, value)


def check_flag(what: str, value: object) -> None:
    """Raise unless `value` is True or False."""
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


def _check_retry_on(what: str, value: object) -> None:
    classes = value if isinstance(value, tuple) else (value,)
    if not classes or not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise TypeError(f"{what} must be an exception class or a tuple of some, not {short(value)}")


def _check_seconds(what: str, value: object, least: str = "0 or more") -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {short(value)}")
    # Written so that what is no number fails.
    if not (0 <= value < float("inf")) or (value == 0 and least != "0 or more"):
        raise ValueError(f"{what} must be a finite number of seconds, {least}, not {short(value)}")


def _check_on_error(what: str, value: object) -> None:
    # A callable is looked at where its signature can be: in `stages/checks.py`.
    if value not in ("raise", "skip") and (isinstance(value, str) or not callable(value)):
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{what} must be 'raise', 'skip' or a callable of an item and its error, not {short(value)}"
        )


@declared
class _ProcessorSettings:
    """The settings of a Processor.  Each is a class attribute too, so that a class body may declare it as well."""

    name: str | None = setting(
        None,
        optional(_check_name),
        "What it is called in errors, pictures and statistics; None: as its job or its class.",
    )
    workers: int | Literal["auto"] | None = setting(
        None, _check_workers, 'The number of processes; None: 1; "auto": as many as the pipeline sees fit.'
    )
    batch: int | None = setting(
        None, optional(count(1, " or None")), "How many items the job gets at once, in a list; None: one, alone."
    )
    keep_none: bool = setting(False, check_flag, "Whether a None that the job returns goes on.")
    retries: int = setting(0, count(0), "How many times the job is called again with an item at which it raised.")
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = setting(
        Exception, _check_retry_on, "The exceptions after which it is."
    )
    backoff: float = setting(
        0.1, _check_seconds, "The seconds to wait before that: twice as many each time, up to 30, less a random part."
    )
    timeout: float | None = setting(
        None,
        optional(partial(_check_seconds, least="more than 0")),
        "The seconds that a call may take before its worker is killed and replaced; None: any.",
    )
    on_error: Any = setting(
        "raise", _check_on_error, 'What becomes of an item that failed for good: "raise", "skip" or a callable.'
    )
    max_items: int | None = setting(
        None,
        optional(count(1, ", or None for no limit")),
        "After how many items, or batches, a worker is replaced; None: never.",
    )
    restartable: bool = setting(
        False,
        check_flag,
        "Whether a worker of a subclass may be replaced when it dies, with all that it had on `self`.",
        argument=False,
    )


PROCESSOR_SETTINGS = settings_of(_ProcessorSettings)
PROCESSOR_ARGUMENTS = tuple(name for name, each in PROCESSOR_SETTINGS.items() if each.is_argument)


class ProcessorSignature:
    """What a Processor is made with, for whoever asks: `help()`, `inspect.signature`, editors that run the program.

    As `__signature__` of a class it has the defaults of that class, as far as that is made like a Processor.
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
        # It takes long to import, and few ask.
        from inspect import Parameter, Signature

        types = _ProcessorSettings.__annotations__
        return Signature(
            [
                Parameter("self", Parameter.POSITIONAL_OR_KEYWORD),
                Parameter("job", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Any"),
                *(
                    Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(owner, name), annotation=types[name])
                    for name in PROCESSOR_ARGUMENTS
                ),
            ],
            return_annotation="None",
        )
