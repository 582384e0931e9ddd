"""Proving some leaves of a span after others, each digest told at most once.

A single leaf is proved by its siblings up to the root. Leaves that are told in batches need less: siblings
that are in the same batch, or that were told or computed before, need not be told again. Which digests a
batch needs follows from the numbers of its leaves and of those before it, so that writer and reader agree on
them without a word.

A node is (level, index): leaves are level 0, the root is alone on the highest level. A node without a sibling
goes up unchanged, as in `digest`.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256

from indexer.digest import leaf_digests

Node = tuple[int, int]


def widths(count: int) -> list[int]:
    """How many nodes each level of a tree over `count` leaves has, the leaves first; at least one level."""
    found = [count]
    while found[-1] > 1:
        found.append((found[-1] + 1) // 2)
    return found


class SpanProof:
    """What is known of one span's tree: which nodes, and, where they are told or proved, their digests.

    Args:
        count: leaves of the span, at least one.
        root: its Merkle root; b"" for who only wants to know which digests are needed.
    """

    __slots__ = ("_digests", "_known", "_widths")

    def __init__(self, count: int, root: bytes) -> None:
        self._widths = widths(count)
        top = (len(self._widths) - 1, 0)
        self._known: set[Node] = {top}
        self._digests: dict[Node, bytes] = {top: root}

    def needed(self, leaves: Sequence[int]) -> list[Node]:
        """The digests that must be told to prove these leaves (ascending), in the order they are told.

        From then on they, the leaves and all nodes above them count as known.
        """
        told: list[Node] = []
        known = self._known
        active = [index for index in leaves if (0, index) not in known]
        known.update((0, index) for index in active)
        for level, width in enumerate(self._widths[:-1]):
            told += [
                (level, index ^ 1)
                for index in active
                if index ^ 1 < width and (level, index ^ 1) not in known
            ]
            known.update(told)
            above = dict.fromkeys(index // 2 for index in active)
            active = [index for index in above if (level + 1, index) not in known]
            known.update((level + 1, index) for index in active)
        return told

    def check(self, leaves: Mapping[int, bytes], told: Mapping[Node, bytes]) -> bool:
        """Whether leaf digests, with what was told for them, lead to what is known already.

        Args:
            leaves: digests by number, all those of one batch.
            told: what `needed` wanted for them, which was called before.

        Returns:
            False where one of them is wrong, or a digest they stand on was never proved: nothing of the
            batch counts then.
        """
        found: dict[Node, bytes] = dict(told)
        proved = self._digests
        level = {index: digest for index, digest in leaves.items() if (0, index) not in proved}
        if any(proved.get((0, index), digest) != digest for index, digest in leaves.items()):
            return False
        for height, width in enumerate(self._widths[:-1]):
            found.update(((height, index), digest) for index, digest in level.items())
            above: dict[int, bytes] = {}
            for index in level:
                parent = index // 2
                if parent in above:
                    continue
                digest = _parent(height, parent, width, found, proved)
                if digest is None or proved.get((height + 1, parent), digest) != digest:
                    return False
                above[parent] = digest
            level = {index: digest for index, digest in above.items() if (height + 1, index) not in proved}
        proved.update(found)
        return True


def _parent(
    height: int, parent: int, width: int, found: Mapping[Node, bytes], proved: Mapping[Node, bytes]
) -> bytes | None:
    """The digest of a node from those below it; None where one of them is not known."""
    left = found.get((height, 2 * parent)) or proved.get((height, 2 * parent))
    if left is None or 2 * parent + 1 >= width:
        return left
    right = found.get((height, 2 * parent + 1)) or proved.get((height, 2 * parent + 1))
    return None if right is None else sha256(left + right).digest()


class SpanTree:
    """All nodes of one span's tree, for who writes proofs. Costs about 150 bytes a leaf."""

    __slots__ = ("_levels",)

    def __init__(self, content: bytes | bytearray | memoryview) -> None:
        level = leaf_digests(content)
        self._levels = [level]
        while len(level) > 1:
            above = [sha256(level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
            if len(level) % 2:
                above.append(level[-1])
            level = above
            self._levels.append(level)

    @property
    def root(self) -> bytes:
        """The Merkle root."""
        return self._levels[-1][0]

    def __getitem__(self, node: Node) -> bytes:
        return self._levels[node[0]][node[1]]
