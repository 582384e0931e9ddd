"""What can be wrong with bytes that strangers wrote. Parsers here raise nothing else."""


class IndexerError(Exception):
    """A layer, an index or a metadata image cannot be used."""


class FormatError(IndexerError):
    """Bytes that break the rules of their format.

    Attributes:
        what: what was expected and what came.
        offset: byte offset in the parsed stream, or None where no offset helps.
    """

    def __init__(self, what: str, offset: int | None = None) -> None:
        self.what = what
        self.offset = offset
        super().__init__(what if offset is None else f"{what} (at byte {offset})")


class LimitExceeded(FormatError):
    """Well-formed, but larger than a configured limit: a bomb, or a limit to raise."""


class DigestMismatch(IndexerError):
    """Content that is not what its digest promises.

    Attributes:
        what: whose content.
        expected: the promised digest, as text.
        actual: the digest of what came, as text.
    """

    def __init__(self, what: str, expected: str, actual: str) -> None:
        self.what = what
        self.expected = expected
        self.actual = actual
        super().__init__(f"{what}: expected {expected}, got {actual}")


class Unsupported(IndexerError):
    """Legal, but not something this program can read."""
