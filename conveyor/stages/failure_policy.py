"""What happens to an item at which a job fails: the retries, the waits before them, and the replacement.

Law: decisions only; nothing here calls a job or waits.  The inline engine and the workers share these decisions, so
they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable

from conveyor._lean.dataclasses import NamedTuple
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.errors import ItemTimeoutError

if TYPE_CHECKING:
    from conveyor.stages.processor import Processor

MOST_BACKOFF_SECONDS = 30.0

RAISE = "raise"


def _uniform(least: float, most: float) -> float:
    # The import is slow, and few pipelines need it.
    import random

    # The user's generator must not advance, and forked processes must not all wait equally long.
    return random.SystemRandom().uniform(least, most)


class Policy(NamedTuple):
    """The failure settings of one Processor."""

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
