"""How long CRI PullImage takes for an image with a published index, and what its first start moves.

    python -m bench.cri_pull [--image python] [--releases 1.6,1.7,2.1] [--samples 5]

Each sample has a machine of its own: cold daemon, cold cache, registry on loopback. The sandbox runs already,
as on a node that has pods. Needs root.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.containerd_images import pause_image, push_layout_files
from tests.support.containerd_node import node
from tests.support.containerd_release import Release, release
from tests.support.lab import default_lab
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner

_COMMAND = ("python3", "-c", "print(1)")


class Sample(NamedTuple):
    """One pull and one start.

    Attributes:
        pull_s: seconds of PullImage.
        pull_bytes: bodies the registry sent for it.
        start_s: seconds from CreateContainer to the container's end.
        all_bytes: bodies the registry sent for both.
    """

    pull_s: float
    pull_bytes: int
    start_s: float
    all_bytes: int


def sample(containerd: Release, registry: Registry, image: str, top: Path) -> Sample:
    """Pull and start once, on a machine that has never seen the image."""
    with node(top, containerd, registry.host, f"{registry.host}/pause:1") as machine:
        pod = machine.cri.run_pod()
        registry.journal.clear()
        begin = time.perf_counter()
        machine.cri.pull(image)
        pulled, pull_bytes = time.perf_counter(), sum(registry.journal.bytes_sent.values())
        machine.cri.wait(machine.cri.run(pod, image, _COMMAND))
        end, all_bytes = time.perf_counter(), sum(registry.journal.bytes_sent.values())
    return Sample(pulled - begin, pull_bytes, end - pulled, all_bytes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each release: medians, and the least and the most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", default="python")
    parser.add_argument("--releases", default="1.6,1.7,2.1")
    parser.add_argument("--samples", type=int, default=5)
    options = parser.parse_args(arguments)
    lab = default_lab()
    with Registry() as registry, tempfile.TemporaryDirectory(prefix="cri-") as folder:
        registry.push("pause", pause_image(), tag="1")
        push_layout_files(registry, options.image, lab.image(options.image))
        image = f"{registry.host}/{options.image}:latest"
        LazyfsRunner(home=Path(folder, "home"), cache_dir=Path(folder, "cache"))("index", "--push", image)
        for version in options.releases.split(","):
            samples = [
                sample(release(lab, version), registry, image, Path(folder, f"{version}-{number}"))
                for number in range(options.samples)
            ]
            print(version, _summary(samples))


def _summary(samples: Sequence[Sample]) -> str:
    parts = []
    for name in Sample._fields:
        values = sorted(getattr(one, name) for one in samples)
        parts.append(f"{name} {statistics.median(values):.6g} ({values[0]:.6g} to {values[-1]:.6g})")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
