"""Rate limits: how many requests a key, or an address without a valid one, may make in a minute.

Counts are in the memory of this process, so several API processes allow as many times as much. The headers are those
of the IETF draft `RateLimit header fields for HTTP`.
"""

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from featurewatch.service.kit.problems import TooManyRequestsError


class RateLimits:
    """Requests by who made them, in minutes that begin with the first one. `per_minute` 0: no limit.

    A moving window would let through less at once, but could not say when to come back.
    """

    def __init__(self, per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def spend(self, who: str) -> dict[str, str]:
        """Count one request. Returns what the answer's headers say of it; raises 429 where there was one too many."""
        if self._limit is None:
            return {}
        allowed = await self._limiter.hit(self._limit, who)
        left = await self._limiter.get_window_stats(self._limit, who)
        seconds = max(1, math.ceil(left.reset_time - time.time()))
        headers = {
            "RateLimit-Policy": f'"default";q={self._limit.amount};w={self._limit.get_expiry()}',
            "RateLimit": f'"default";r={left.remaining};t={seconds}',
        }
        if not allowed:
            raise TooManyRequestsError(
                f"More than {self._limit.amount} requests in a minute; try again in {seconds} s.",
                headers={**headers, "Retry-After": str(seconds)},
            )
        return headers


def network_of(address: str) -> str:
    """Who an address stands for: itself, or the /64 that one IPv6 host can take all addresses of."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # a socket file, or a test
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address
