"""Public keys whose signatures count, as values: `key_file` has what checks them."""

from collections.abc import Callable

from msgspec import Struct


class PublicKey(Struct, frozen=True):
    """A key whose signatures count.

    Attributes:
        name: for people: the file it came from.
        fingerprint: sha256 of its DER form, hexadecimal.
        verifies: whether this key made a signature, the first argument, over data, the second.
    """

    name: str
    fingerprint: str
    verifies: Callable[[bytes, bytes], bool]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self._said == other._said

    def __hash__(self) -> int:
        return hash(self._said)

    def __repr__(self) -> str:
        return f"<PublicKey {self.name}, {self.fingerprint}>"

    @property
    def _said(self) -> tuple[str, str]:
        return self.name, self.fingerprint
