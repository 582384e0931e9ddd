"""`lazyfs index` killed around each step: the next goes on with what was kept, and nothing wrong is left."""

import json
import signal

from tests.support import index_kill_steps
from tests.support.daemon_kill_steps import deaths
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.runner import LazyfsRunner
from tests.support.tars import file, tar

CONTENT = b"base\n" * 50_000
STEPS = ("fill", "table", "content", "upload", "blob", "manifest", "tag")
# Once a table is kept its layer is not pulled again: each death around "content" takes an image of its own.
IMAGES = [build_image([tar(file(b"base", CONTENT + b"%d" % number))]) for number in range(3)]
PULLS = [4, 1, 1]  # two deaths while it fills, two around the table; then one each


def test_an_index_that_is_killed_at_any_step_is_made_and_published_by_the_next(lazyfs, tmp_path) -> None:
    (tmp_path / "steps").mkdir()
    dying = index_kill_steps.prepared(tmp_path / "steps")
    other = LazyfsRunner(tmp_path / "other", tmp_path / "other-cache")
    with Registry(referrers=False) as registry:
        names = [f"{registry.host}/app{number}:1" for number in range(len(IMAGES))]
        for number, image in enumerate(IMAGES):
            registry.push(f"app{number}", image, "1")
        with deaths(tmp_path / "steps") as died:
            for name in names:
                while index(lazyfs, name, dying) == -signal.SIGKILL:
                    pass
        assert sorted(died) == sorted(f"{step}:{when}" for step in STEPS for when in ("before", "after"))
        layers = [image.json["layers"][0]["digest"] for image in IMAGES]
        assert [sum(layer in seen.target for seen in registry.seen) for layer in layers] == PULLS
        for number, name in enumerate(names):
            assert not json.loads(lazyfs("index", "--push", "--json", name).stdout)["published"]["new"]
            found = other("cat", "--index", "registry", name, "/base").stdout
            assert found.encode() == CONTENT + b"%d" % number
    lazyfs("cache", "verify")
    lazyfs("cache", "gc", "--now")
    assert list((lazyfs.cache_dir / "tmp").iterdir()) == []


def index(lazyfs: LazyfsRunner, name: str, env: dict[str, str]) -> int:
    """Index and publish an image; the exit code, which is 0 unless it was killed."""
    words = ["index", "--push", name, "--cache-dir", str(lazyfs.cache_dir)]
    done = lazyfs.run(words, lazyfs.environment() | env, "")
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode
