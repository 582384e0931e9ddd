"""The time that is written into what is made (reproducible-builds.org, SOURCE_DATE_EPOCH)."""

from collections.abc import Mapping
from datetime import UTC, datetime

from lazyfs.errors import ConfigError


def build_time(environment: Mapping[str, str]) -> datetime:
    """What SOURCE_DATE_EPOCH says, so that the same work gives the same bytes; without it, now.

    In UTC, and whole seconds.

    Raises:
        ConfigError: it is no time, or none that the calendar has.
    """
    epoch = environment.get("SOURCE_DATE_EPOCH", "")
    if not epoch:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"SOURCE_DATE_EPOCH is seconds since 1970, not {epoch!r}") from None
