"""The image "oddities": every kind of entry and of hiding that a layer may hold, the same bytes each time.

All of it is legal, and engines agree on it, so `umoci unpack` is its oracle.
Four layers: PAX in gzip; GNU, uncompressed; PAX in a gzip of two members; and an empty one, twice.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer.digest import sha256_digest
from tests.support.images import (
    CONFIG_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    BuiltDocument,
    compress,
    descriptor_of,
    encode,
    platform_fields,
)
from tests.support.images import write_layout as write_image_layout

PLATFORM = "linux/amd64"
GZIP = LAYER_TYPES["oci", "gzip"]

LATIN1 = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
# Linux capabilities v2: effective, permitted = CAP_NET_BIND_SERVICE | CAP_NET_RAW, as setcap writes it.
CAPABILITY = bytes.fromhex("01000002 00240000 00000000 00000000 00000000")


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a tar: as `tarfile` needs it, with what differs from a plain root-owned thing.

    Attributes:
        name: path; directories end in "/".
        content: of a regular file.
        type: tar type; "" is a regular file, or a directory by its name.
        link: target of a link.
        mode: permission bits; None is 0755 for directories and 0644 for others.
        mtime: seconds, as PAX writes them; GNU tars take whole ones.
        owner: uid and gid.
        device: major and minor.
        xattrs: name to value.
    """

    name: str
    content: bytes = b""
    type: str = ""
    link: str = ""
    mode: int | None = None
    mtime: str = "1577934245"
    owner: tuple[int, int] = (0, 0)
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)


def pattern(size: int) -> bytes:
    """Bytes that differ from one another at every offset a reader may confuse."""
    return b"".join(b"%07d\n" % number for number in range(-(-size // 8)))[:size]


def lower_layer() -> list[Entry]:
    """Every kind of thing, and what the layers above will hide."""
    long_name = "long-" + "n" * 250
    return [
        Entry("etc/"),
        Entry("etc/motd", b"lower\n", mtime="1577934245.123456789"),
        Entry("etc/old", b"before 1970\n", mtime="-86400"),
        Entry("etc/empty"),
        Entry("etc/nobody-reads", b"secret\n", mode=0),
        Entry("bin/", mode=0o755),
        Entry("bin/su", pattern(5000), mode=0o4755),
        Entry("bin/wall", pattern(513), mode=0o2755, owner=(0, 5)),
        Entry("bin/ping", pattern(100_000), mode=0o755, xattrs={"security.capability": CAPABILITY}),
        Entry("tmp/", mode=0o1777),
        Entry("data/", owner=(4_000_000_000, 3_000_000), mode=0o2770, xattrs={"user.dir": b"of data"}),
        *(Entry(f"data/{size}", pattern(size)) for size in (1, 511, 512, 4095, 4096, 4097, 3_000_001)),
        Entry("data/zeros", bytes(700_000)),
        Entry("data/xattrs", b"x", xattrs={"user.nul": b"a\0b\n=c", "user.big": b"v" * 2000}),
        Entry("dev/"),
        Entry("dev/null", type=tarfile.CHRTYPE.decode(), device=(1, 3), mode=0o666),
        Entry("dev/loop300", type=tarfile.BLKTYPE.decode(), device=(7, 300), mode=0o660, owner=(0, 6)),
        Entry("dev/pipe", type=tarfile.FIFOTYPE.decode(), mode=0o600, mtime="1577934245.000000001"),
        Entry("links/"),
        Entry("links/near", type=tarfile.SYMTYPE.decode(), link="../etc/motd"),
        Entry("links/absolute", type=tarfile.SYMTYPE.decode(), link="/etc/motd", owner=(1000, 1000)),
        Entry("links/dangling", type=tarfile.SYMTYPE.decode(), link="../../../../nowhere/" + "t" * 300),
        Entry("links/hard", type=tarfile.LNKTYPE.decode(), link="data/4097"),
        Entry("links/hard-symlink", type=tarfile.LNKTYPE.decode(), link="links/near"),
        Entry("names/"),
        Entry(f"names/{LATIN1}", b"not UTF-8\n"),
        Entry("names/new\nline", b"newline\n"),
        Entry("names/café ☕", b"UTF-8\n"),
        Entry(f"names/{long_name[:255]}", b"255 bytes\n"),
        Entry(f"names/{LATIN1}-link", type=tarfile.SYMTYPE.decode(), link=LATIN1),
        *(Entry("/".join(["deep", *["d" * 60] * depth]) + "/") for depth in range(8)),
        Entry("/".join(["deep", *["d" * 60] * 7, "file"]), b"deep\n"),
        Entry("hidden/"),
        *(Entry(f"hidden/{name}", b"lower\n") for name in ("file", "kept", "linked")),
        Entry("hidden/also-linked", type=tarfile.LNKTYPE.decode(), link="hidden/linked"),
        Entry("hidden/dir/"),
        Entry("hidden/dir/below", b"lower\n"),
        Entry("opaque/", mtime="1500000000.5"),
        Entry("opaque/old", b"lower\n"),
        Entry("opaque/sub/"),
        Entry("opaque/sub/old", b"lower\n"),
        Entry("again/"),
        Entry("again/old", b"lower\n"),
        Entry("file-then-dir", b"lower\n"),
        Entry("dir-then-file/"),
        Entry("dir-then-file/below", b"lower\n"),
        Entry("dir-then-dir/", mode=0o700, xattrs={"user.layer": b"1"}),
        Entry("dir-then-dir/kept", b"lower\n"),
        Entry("link-then-file", type=tarfile.SYMTYPE.decode(), link="etc/motd"),
    ]


def middle_layer() -> list[Entry]:
    """Whiteouts, an opaque directory, and every replacement of one kind by another."""
    return [
        Entry("etc/"),
        Entry("etc/motd", b"middle\n"),
        Entry("hidden/"),
        *(Entry(f"hidden/.wh.{name}") for name in ("file", "dir", "linked")),
        Entry("opaque/", mode=0o711),
        Entry("opaque/.wh..wh..opq"),
        Entry("opaque/new", b"middle\n"),
        Entry("opaque/sub/"),
        Entry("opaque/sub/new", b"middle\n"),
        Entry(".wh.again"),
        Entry("again/", mode=0o750),
        Entry("again/new", b"middle\n"),
        Entry("file-then-dir/"),
        Entry("file-then-dir/new", b"middle\n"),
        Entry("dir-then-file", b"middle\n"),
        Entry("dir-then-dir/", mode=0o755),
        Entry("dir-then-dir/new", b"middle\n"),
        Entry("link-then-file", b"middle\n"),
        Entry("gnu/"),
        Entry("gnu/" + "g" * 180, b"@LongLink\n"),
        Entry("gnu/link", type=tarfile.SYMTYPE.decode(), link="l" * 400),
        Entry("gnu/big-owner", owner=(4_294_967_294, 2_097_152)),
    ]


def upper_layer() -> list[Entry]:
    """What comes back, what goes for good, and links within one layer."""
    return [
        Entry("hidden/"),
        Entry("hidden/file", b"upper\n", mtime="1600000000.25"),
        Entry("opaque/"),
        Entry("opaque/old", b"upper\n"),
        Entry("etc/"),
        Entry("etc/.wh.empty"),
        Entry("links/"),
        Entry("links/upper-a", b"upper\n", mode=0o600),
        Entry("links/upper-b", type=tarfile.LNKTYPE.decode(), link="links/upper-a", mode=0o600),
    ]


def layer_tar(entries: Sequence[Entry], tar_format: int) -> bytes:
    """The tar stream of a layer."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format, errors="surrogateescape") as tar:
        for entry in entries:
            tar.addfile(_member(entry), io.BytesIO(entry.content))
    return stream.getvalue()


def _member(entry: Entry) -> tarfile.TarInfo:
    is_dir = entry.name.endswith("/")
    member = tarfile.TarInfo(entry.name.rstrip("/"))
    member.type = entry.type.encode() if entry.type else tarfile.DIRTYPE if is_dir else tarfile.REGTYPE
    member.mode = entry.mode if entry.mode is not None else 0o755 if is_dir else 0o644
    member.size = len(entry.content)
    member.uid, member.gid = entry.owner
    member.devmajor, member.devminor = entry.device
    member.linkname = entry.link
    member.mtime = int(entry.mtime.partition(".")[0])
    pax = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in entry.xattrs.items()
    }
    if "." in entry.mtime:
        pax["mtime"] = entry.mtime
    member.pax_headers = pax
    return member


def write_layout(out: Path) -> None:
    """Write the image's OCI layout; its tag is "latest"."""
    lower = layer_tar(lower_layer(), tarfile.PAX_FORMAT)
    middle = layer_tar(middle_layer(), tarfile.GNU_FORMAT)
    upper = layer_tar(upper_layer(), tarfile.PAX_FORMAT)
    empty = bytes(1024)
    layers = [
        (lower, compress(lower, "gzip"), GZIP),
        (middle, middle, LAYER_TYPES["oci", "none"]),
        (upper, compress(upper[:700], "gzip") + compress(upper[700:], "gzip"), GZIP),
        (empty, compress(empty, "gzip"), GZIP),
        (empty, compress(empty, "gzip"), GZIP),
    ]
    config = encode(
        {
            **platform_fields(PLATFORM),
            "config": {"Cmd": ["/bin/su"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256_digest(tar) for tar, _, _ in layers]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES["oci"],
        "config": descriptor_of(config, CONFIG_TYPES["oci"]),
        "layers": [descriptor_of(blob, media_type) for _, blob, media_type in layers],
    }
    blobs = {sha256_digest(blob): blob for blob in (config, *(blob for _, blob, _ in layers))}
    image = BuiltDocument(encode(manifest), MANIFEST_TYPES["oci"], PLATFORM, blobs)
    write_image_layout(out, {"latest": image})
