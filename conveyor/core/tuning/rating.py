"""Whether more workers of a step that waits do more: what they do together is seen before and after.

Law: a pure function of what is seen.  Cores do not bound such a step, so only this says when there are enough.  Calls
are reported late, and several at once.  So what counts is not how many come in a while, but how long each has taken.
"""

from __future__ import annotations

from math import inf

from conveyor._lean.dataclasses import NamedTuple

# More workers help where each does at least this share of what each of the others did before.
GAIN_SHARE = 0.3
# They are watched for so long, in seconds and in times of a call, the longer of the two, and for as many calls as there
# are workers.
RATING_SECONDS, RATING_CALLS = 0.1, 2


class Rating(NamedTuple):
    """What the workers of a step do together, while all are at work and their number stays the same.

    >>> rating = Rating().advance(8, 0, 0.0, 0.05, now=1.0).advance(8, 160, 8.0, 0.05, now=2.0)
    >>> rating.reach
    16
    >>> rating.advance(16, 160, 8.0, 0.05, now=2.5).advance(16, 330, 24.0, 0.05, now=3.5).reach
    8
    """

    workers: int = 0
    # When that began, how many calls were done by then, and how many seconds these took.
    since: float = -inf
    calls: int = 0
    work: float = 0.0
    # The greatest number of workers that did more than fewer, and how many calls they did in a second.
    best: int = 0
    best_rate: float = 0.0
    # How many there may be now.
    reach: int = 0
    # When more did not do more.
    failed_at: float = -inf

    @property
    def has_failed(self) -> bool:
        """Whether more than the best number did no more."""
        return 0 < self.reach == self.best

    def advance(self, workers: int, calls: int, work: float, service: float, now: float, again: float = -inf) -> Rating:
        """Return what is known now that the step has done so many calls, which took `work` seconds.

        A call takes about `service` seconds.  `workers`: how many are at work; 0 where some are not.  More are not
        tried before the moment `again`.
        """
        if not workers or workers != self.workers:
            return self._replace(workers=workers, since=now, calls=calls, work=work)
        done, seconds = calls - self.calls, now - self.since
        if done < workers or seconds < max(RATING_SECONDS, RATING_CALLS * service) or work <= self.work:
            return self
        if self.has_failed and now < again:
            return self
        rate = workers * done / (work - self.work)
        # Of the first ones nobody knows what fewer would do.
        if 0 < self.best < workers and rate < self.best_rate * (1 + GAIN_SHARE * (workers / self.best - 1)):
            return self._replace(reach=self.best, failed_at=now)
        return self._replace(best=workers, best_rate=rate, reach=2 * workers)
