"""What a container reads of names and hosts (resolv.conf(5), hosts(5), hostname(5))."""

from pathlib import Path
from typing import Final

_LOOPBACK: Final = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def network_files(network: str, hostname: str, etc: Path) -> dict[str, bytes]:
    """From paths in a container to what is to be there.

    Args:
        network: "host", to find what the host finds, or "none".
        hostname: the container's name for itself.
        etc: the host's /etc.
    """
    files = {"/etc/hostname": f"{hostname}\n".encode()}
    if network == "host":
        for name in ("hosts", "resolv.conf"):
            path = etc / name
            if path.is_file():
                files[f"/etc/{name}"] = path.read_bytes()
    hosts = files.get("/etc/hosts", _LOOPBACK)
    if hostname.encode() not in hosts.split():
        hosts = hosts.rstrip(b"\n") + f"\n127.0.1.1\t{hostname}\n".encode()
    return {**files, "/etc/hosts": hosts}
