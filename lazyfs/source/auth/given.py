"""Credentials that were given for single repositories, and are kept in memory only."""

import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Self

from msgspec.structs import asdict

from lazyfs.source.auth.credentials import Credentials

_MOST_REPOSITORIES: Final = 4096
_MOST_EACH: Final = 4


class GivenCredentials:
    """What was given, by the name of its repository; of each, what was given last is tried first."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, dict[Credentials, bool]] = OrderedDict()  # whether they are proved

    def __repr__(self) -> str:
        return f"<GivenCredentials for {len(self._by_name)} repositories>"

    def give(self, name: str, credentials: Credentials, *, proved: bool = False) -> bool:
        """Take credentials for a repository. Those that were proved make room for no others that were not.

        Args:
            name: the repository's, with its registry, as `Reference.name` is.
            credentials: some.
            proved: whether something came by them.

        Returns:
            Whether they were not among its credentials before.
        """
        found = self._by_name.setdefault(name, {})
        is_new = credentials not in found
        found[credentials] = found.pop(credentials, False) or proved
        while len(found) > _MOST_EACH:
            doubtful = (each for each, known in found.items() if not known and each != credentials)
            del found[next(doubtful, next(iter(found)))]
        self._by_name.move_to_end(name)
        while len(self._by_name) > _MOST_REPOSITORIES:
            self._by_name.popitem(last=False)
        return is_new

    def take_back(self, name: str, credentials: Credentials) -> bool:
        """Forget credentials of a repository; whether they were known."""
        found = self._by_name.get(name, {})
        if found.pop(credentials, None) is None:
            return False
        if not found:
            del self._by_name[name]
        return True

    async def lookup(
        self, registry: str, repository: str, refused: Collection[Credentials] = ()
    ) -> Credentials | None:
        """As CredentialsProvider says."""
        given = self._by_name.get(f"{registry}/{repository}", {})
        return next((credentials for credentials in reversed(given) if credentials not in refused), None)

    def encoded(self, names: Iterable[str] | None = None) -> bytes:
        """All of it as JSON, or only what is for the repositories of these names; for `decoded`."""
        wanted = self._by_name if names is None else [name for name in names if name in self._by_name]
        return json.dumps({name: [asdict(each) for each in self._by_name[name]] for name in wanted}).encode()

    @classmethod
    def decoded(cls, data: bytes) -> Self:
        """What `encoded` gave."""
        told: Mapping[str, list[dict[str, Any]]] = json.loads(data)
        made = cls()
        for name, found in told.items():
            made._by_name[name] = {Credentials(**each): True for each in found}
        return made
