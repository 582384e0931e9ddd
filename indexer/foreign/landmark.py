"""What the writer of an eStargz layer wants to be fetched before all else: what a start reads.

It stands first in the layer, before a file of one byte that is no file of the image (estargz.md, "Prioritized
Files and Landmark Files"). In our tables the span of that byte is there, and no member refers to it.
"""

from indexer.foreign.json_listing import LANDMARK_DIGEST
from indexer.toc import AddressSpace, SpanTable
from indexer.toc_codec import TocHead


def prioritised(head: TocHead, spans: SpanTable) -> range:
    """Numbers of the spans before a layer's landmark; none where it has no landmark.

    Args:
        head: the layer's table of contents.
        spans: its spans.

    Raises:
        FormatError: the table is damaged.
    """
    number = spans.find_root(LANDMARK_DIGEST)
    if number is None or head.header.address_space is not AddressSpace.PACKED:
        return range(0)
    files = head.file_ranges()
    while number is not None:
        if files.around(spans[number].uncompressed_start) is None:
            return range(number)
        number = spans.find_root(LANDMARK_DIGEST, number + 1)
    return range(0)
