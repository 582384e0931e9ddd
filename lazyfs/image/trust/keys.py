"""Public keys whose signatures count, as values: `key_file` has what checks them."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key whose signatures count.

    Attributes:
        name: for people: the file it came from.
        fingerprint: sha256 of its DER form, hexadecimal.
        verifies: whether this key made a signature, the first argument, over data, the second.
    """

    name: str
    fingerprint: str
    verifies: Callable[[bytes, bytes], bool] = field(repr=False, compare=False)
