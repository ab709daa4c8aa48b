"""A limit on the rate at which something is read."""

import time


class RateLimit:
    """Computes waits that limit amounts to a rate, apart from bursts.

    A pause earns one burst and not more, however long it is (a leaky bucket).

    Args:
        rate: amount per second.
        burst: amount that needs no wait.
    """

    def __init__(self, rate: float, burst: float):
        self._rate, self._burst = rate, burst
        self._level, self._updated_s = 0.0, time.monotonic()

    def add(self, amount: float) -> None:
        """Count an amount that was read."""
        self._leak()
        self._level += amount

    def wait_s(self) -> float:
        """Return the time until the next amount may be read, in seconds; 0 if it is now."""
        self._leak()
        return max(0.0, self._level - self._burst) / self._rate

    def _leak(self) -> None:
        previous_s, self._updated_s = self._updated_s, time.monotonic()
        self._level = max(0.0, self._level - self._rate * (self._updated_s - previous_s))
