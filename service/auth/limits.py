"""Rate limits: requests per minute for each key, or for each address without a valid key.

Counts are kept in memory, so every API process has its own. The headers follow the IETF draft `RateLimit header fields
for HTTP`.
"""

import ipaddress
import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from featurewatch.service.kit.problems import TooManyRequestsError


class RateLimits:
    """Counts requests per caller in one-minute windows. `per_minute` 0 means no limit.

    The windows are fixed, starting with the first request: a moving window could not say when to retry.
    """

    def __init__(self, per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def spend(self, who: str) -> dict[str, str]:
        """Count one request. Returns the rate-limit headers of the response; raises 429 over the limit."""
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
                f"Rate limit of {self._limit.amount} requests per minute exceeded. Try again in {seconds} s.",
                headers={**headers, "Retry-After": str(seconds)},
            )
        return headers


def network_of(address: str) -> str:
    """The network that counts as one caller: an IPv4 address, or an IPv6 /64, all of which one host may own."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a socket file, or a test
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
