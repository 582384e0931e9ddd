"""What newcomers are told: the commands by purpose, in a line each, and how they are typed."""

from collections.abc import Mapping
from typing import Final

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Mounting": {
        "mount": "mount an image, read-only, and fetch what is read",
        "umount": "unmount it and end its daemon",
        "stats": "what mounts have fetched",
        "explain": "how they are read, for whom was fetched, and who waited for what",
        "trace": "what readers of mounts touched first, in order",
    },
    "Containers": {
        "run": "run a command in a container over the mounted image",
        "exec": "run one more command in a container that runs",
        "commit": "make an image of what a container changed",
        "daemon": "serve the data of containers that start lazily",
        "snapshotter": "keep containerd's snapshots, lazily where that is possible",
    },
    "Looking inside, without a mount": {
        "ls": "list a directory",
        "tree": "draw the tree below a directory",
        "find": "find files by name, type, size and time",
        "cat": "write files to standard output",
        "stat": "everything the image says of a file",
        "cp": "copy files and directories out",
        "du": "how much the directories hold",
        "diff": "what differs between two images",
        "layers": "what each layer adds, hides and wastes",
        "packages": "what software is installed, also as a bill of materials",
        "export": "the whole tree as one tar",
    },
    "Images and their indexes": {
        "inspect": "manifest, configuration, history and layers",
        "index": "make the index now, and publish it for others",
        "optimize": "make the boot pack of its start, and publish it for others",
        "verify": "compare indexes with their layers",
    },
    "Registries and this machine": {
        "login": "keep a user and password for private images",
        "logout": "forget them",
        "cache": "see and check what is kept on disk, and say what stays",
        "doctor": "what on this machine to change",
    },
}

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "umount": ("umount /mnt", "umount --lazy /mnt", "umount --all"),
    "stats": ("stats", "stats --json /mnt", "stats --daemon"),
    "exec": ("exec web nginx -s reload", "exec -it web bash"),
    "explain": ("explain /mnt", "explain --json", "explain --daemon", "explain --daemon debian:12"),
    "index": ("index registry.example/app:1", "index --push registry.example/app:1"),
    "inspect": ("inspect debian:12", "inspect --json --platform linux/arm64 debian:12"),
    "verify": ("verify registry.example/app:1",),
    "ls": ("ls debian:12", "ls -l oci:./layout:latest /usr/bin"),
    "tree": ("tree -L 2 debian:12 /etc",),
    "find": ("find debian:12 /usr -name '*.so*' -size +1M", "find debian:12 -type l -newer 2024-01-01"),
    "cat": ("cat debian:12 /etc/os-release",),
    "stat": ("stat debian:12 /bin/sh", "stat --json -L debian:12 /bin/sh"),
    "cp": ("cp debian:12 /etc/passwd .", "cp -a debian:12 /etc ./etc"),
    "du": ("du -H -d 1 debian:12",),
    "diff": ("diff debian:11 debian:12", "diff app:1 app:2 /srv"),
    "layers": ("layers -H registry.example/app:1",),
    "packages": ("packages debian:12",),
    "cache": ("cache usage", "cache pin debian:12", "cache gc --dry-run", "cache verify --repair"),
    "doctor": ("doctor", "doctor --json"),
    "logout": ("logout ghcr.io",),
    "daemon": ("daemon --cache-dir /var/cache/lazyfs",),
    "snapshotter": ("snapshotter", "snapshotter --root /srv/snapshots"),
}


def examples_of(command: str) -> str:
    """The examples of a command as the end of its help; "" where its text has them already."""
    lines = [f"  lazyfs {example}" for example in EXAMPLES.get(command, ())]
    return "\n".join(["\b", "Examples:", *lines]) if lines else ""
