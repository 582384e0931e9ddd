"""The documents of a committed image, and the places of containers."""

import fcntl
import json
import os
import shutil
import signal

import pytest

from lazyfs.container.changes import Changes, continued, in_use, load_changes, save_changes
from lazyfs.container.layer_file import WrittenLayer
from lazyfs.container.new_image import Making, apply_edits, new_image
from lazyfs.container.overlay import Overlay, prepare
from lazyfs.container.places import ContainerPlaces, clear_when_dead
from lazyfs.errors import ContainerError
from lazyfs.oci.config import image_layers, parse_config
from lazyfs.oci.descriptor import Descriptor
from lazyfs.oci.manifest import parse_manifest

HEX = {letter: f"sha256:{letter * 64}" for letter in "abcdef"}
LAYER = WrittenLayer("application/vnd.oci.image.layer.v1.tar+zstd", HEX["e"], 10, HEX["f"])
DOCKER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def documents() -> tuple[dict, dict]:
    """A manifest and a configuration as docker writes them."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": HEX["a"],
            "size": 2,
        },
        "layers": [{"mediaType": DOCKER, "digest": HEX["b"], "size": 5, "annotations": {"k": "v"}}],
    }
    config = {
        "architecture": "amd64",
        "os": "linux",
        "container": "c0ffee",
        "config": {"Env": ["A=1", "B=2"], "Cmd": ["old"]},
        "rootfs": {"type": "layers", "diff_ids": [HEX["c"]]},
        "history": [{"created_by": "base"}],
        "x-unknown": {"kept": True},
    }
    return manifest, config


def committed(**making):
    manifest, config = documents()
    base = parse_manifest(json.dumps(manifest).encode())
    return new_image(base, json.dumps(config).encode(), LAYER, Making("2026-01-02T03:04:05Z", **making))


def test_the_new_image_is_one_by_our_own_rules_and_has_a_layer_more():
    made = committed(author="me", message="why", edits=("CMD new words", "ENV B=3 C=4"))
    manifest, config = parse_manifest(made.manifest), parse_config(made.config)
    layers = image_layers(manifest, config)
    assert [layer.descriptor.digest for layer in layers] == [HEX["b"], HEX["e"]]
    assert [layer.diff_id for layer in layers] == [HEX["c"], HEX["f"]]
    assert layers[0].descriptor.media_type == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert layers[0].descriptor.annotations == {"k": "v"}
    assert manifest.config == made.config_link
    assert config.cmd == ("/bin/sh", "-c", "new words")
    assert config.env == ("A=1", "B=3", "C=4")
    assert config.history[-1].comment == "why"
    document = json.loads(made.config)
    assert document["author"] == "me"
    assert document["x-unknown"] == {"kept": True}
    assert "container" not in document


@pytest.mark.parametrize("rootfs", [{"type": "layers", "diff_ids": None}, {"type": "layers"}, None])
def test_a_base_without_layers_may_say_nothing_of_them(rootfs):
    manifest, config = documents()
    base = parse_manifest(json.dumps(manifest | {"layers": []}).encode())
    made = new_image(
        base, json.dumps(config | {"rootfs": rootfs}).encode(), LAYER, Making("2026-01-02T03:04:05Z")
    )
    assert json.loads(made.config)["rootfs"] == {"type": "layers", "diff_ids": [HEX["f"]]}


def test_the_same_changes_give_the_same_image():
    assert committed() == committed()


@pytest.mark.parametrize(
    ("edit", "process"),
    [
        ('CMD ["a", "b"]', {"Cmd": ["a", "b"]}),
        ('entrypoint ["a"]', {"Entrypoint": ["a"]}),
        ("ENTRYPOINT a b", {"Entrypoint": ["/bin/sh", "-c", "a b"]}),
        ('ENV A="1 2" B=3', {"Env": ["A=1 2", "B=3"]}),
        ("ENV A 1 2", {"Env": ["A=1 2"]}),
        ("WORKDIR /x", {"WorkingDir": "/x"}),
        ("USER a:b", {"User": "a:b"}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
        ("LABEL a.b=c", {"Labels": {"a.b": "c"}}),
        ("EXPOSE 80 53/udp", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ('VOLUME ["/a", "/b"]', {"Volumes": {"/a": {}, "/b": {}}}),
    ],
)
def test_edits_are_instructions_of_a_dockerfile(edit, process):
    changed: dict = {}
    apply_edits(changed, [edit])
    assert changed == process


BASE = {"Env": ["PATH=/bin:/usr/bin", "EMPTY="], "Cmd": ["old"], "WorkingDir": "/srv", "Entrypoint": ["was"]}


@pytest.mark.parametrize(
    ("edits", "changed"),
    [
        (["ENV PATH=/x:$PATH"], {"Env": ["PATH=/x:/bin:/usr/bin", "EMPTY="]}),
        (["ENV EMPTY=1 PATH=$EMPTY:${PATH}s"], {"Env": ["PATH=:/bin:/usr/bins", "EMPTY=1"]}),
        (["ENV EMPTY 'a b' \\$PATH"], {"Env": ["PATH=/bin:/usr/bin", "EMPTY=a b $PATH"]}),
        (["""ENV EMPTY="'$PATH' \\\\ \\x"'$PATH'"""],
         {"Env": ["PATH=/bin:/usr/bin", "EMPTY='/bin:/usr/bin' \\ \\x$PATH"]}),
        (["LABEL a=${EMPTY:-x$PATH} b=${EMPTY-y} c=${NONE:+z}${PATH:+z} d=$ e=$NONE"],
         {"Labels": {"a": "x/bin:/usr/bin", "b": "", "c": "z", "d": "$", "e": ""}}),
        (["WORKDIR sub/../other", "WORKDIR dir"], {"WorkingDir": "/srv/other/dir"}),
        (["WORKDIR $NONE/x y"], {"WorkingDir": "/x y"}),
        (["CMD echo $PATH"], {"Cmd": ["/bin/sh", "-c", "echo $PATH"]}),
        (["EXPOSE ${PORT:-80}"], {"ExposedPorts": {"80/tcp": {}}}),
        (['VOLUME ["/a b", "$PATH"]'], {"Volumes": {"/a b": {}, "/bin:/usr/bin": {}}}),
        (["USER ${WHO:-me}"], {"User": "me"}),
        (['ENTRYPOINT ["app"]'], {"Entrypoint": ["app"], "Cmd": None}),
        (['CMD ["new"]', 'ENTRYPOINT ["app"]'], {"Entrypoint": ["app"], "Cmd": ["new"]}),
    ],
)  # fmt: skip
def test_edits_go_on_from_the_image_as_those_of_a_dockerfile_do(edits, changed):
    process = dict(BASE)
    apply_edits(process, edits)
    assert process == {key: value for key, value in {**BASE, **changed}.items() if value is not None}


@pytest.mark.parametrize(
    "edit",
    [
        "RUN x",
        "CMD",
        "CMD [1]",
        "CMD [",
        "ENV x",
        'ENV "',
        "",
        "LABEL =x",
        "ENV A='",
        "ENV A=${B",
        "ENV A=${B%x}",
        "USER a\\",
    ],
)
def test_other_instructions_are_errors(edit):
    with pytest.raises(ContainerError):
        apply_edits({}, [edit])


def test_changes_are_kept_with_their_image(tmp_path):
    directory = tmp_path / "kept"
    assert load_changes(directory) is None
    with in_use(directory):
        with pytest.raises(ContainerError, match="another container uses it"), in_use(directory):
            pass
        assert load_changes(directory) is None
        wanted = Changes(directory, "image:1", HEX["a"])
        save_changes(continued(continued(None, wanted, ["/x"]), wanted, ["/y", "/x"]))
    known = load_changes(directory)
    assert known == Changes(directory, "image:1", HEX["a"], ("/x", "/y"))
    with pytest.raises(ContainerError, match="as it was then"):
        continued(known, Changes(directory, "image:1", HEX["b"]), ())
    with pytest.raises(ContainerError, match="with root"):
        continued(known, Changes(directory, "image:1", HEX["a"], user_namespace=True), ())


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "other").write_text("")
    with pytest.raises(ContainerError, match="other things"):
        load_changes(tmp_path)
    (tmp_path / "container.json").write_text("{")
    with pytest.raises(ContainerError, match="damaged"):
        load_changes(tmp_path)
    with pytest.raises(ContainerError, match="no directory"):
        load_changes(tmp_path / "other")


def test_a_place_lives_as_long_as_its_container(tmp_path):
    places = ContainerPlaces(tmp_path / "all")
    with places.new("one") as place:
        (place.part("changes") / "file").write_text("")
        assert places.find("one") is None
        place.note(changes="there")
        assert places.find("one").facts.changes == "there"
        with pytest.raises(ContainerError, match="is running"), places.new("one"):
            pass
        places.clear_dead()
        assert place.path.exists()
    assert list((tmp_path / "all").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "x" * 64, "ä"])
def test_a_name_cannot_be_everything(tmp_path, name):
    with pytest.raises(ContainerError), ContainerPlaces(tmp_path).new(name):
        pass
    assert ContainerPlaces(tmp_path).find(name) is None


def test_what_the_dead_left_is_cleared(tmp_path):
    places = ContainerPlaces(tmp_path)
    for name, files in (("no-lock", ()), ("dead", ("lock",)), (".grave", ("x",))):
        (tmp_path / name / "changes/work/work").mkdir(parents=True)
        (tmp_path / name / "changes/work/work").chmod(0)
        for file in files:
            (tmp_path / name / file).write_text("")
    places.clear_dead()
    assert list(tmp_path.iterdir()) == []


def test_clearing_waits_for_the_lock(tmp_path):
    places = ContainerPlaces(tmp_path)
    with places.new("living") as place:
        descriptor = os.open(place.path / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    clear_when_dead(place.path)  # it is gone already
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead/lock").write_text("")
    clear_when_dead(tmp_path / "dead")
    assert list(tmp_path.iterdir()) == []


def test_descriptors_link_to_what_was_made():
    made = committed()
    assert made.layer_link == Descriptor(LAYER.media_type, LAYER.digest, LAYER.size)
    assert made.manifest_link.size == len(made.manifest)


def test_a_kill_while_an_upper_directory_is_made_leaves_none_with_wrong_attributes(tmp_path, monkeypatch):
    overlay = Overlay(
        tmp_path / "lower", tmp_path / "upper", tmp_path / "work", lasting=True, in_user_namespace=False
    )
    overlay.lower.mkdir()
    overlay.lower.chmod(0o751)
    monkeypatch.setattr(shutil, "copystat", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    pid = os.fork()
    if not pid:
        try:
            prepare(overlay)
        finally:
            os._exit(0)
    monkeypatch.undo()
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not overlay.upper.exists()
    prepare(overlay)
    assert overlay.upper.stat().st_mode & 0o777 == 0o751


def test_a_kill_while_it_is_first_written_down_whose_a_directory_is_leaves_it_free(tmp_path):
    (tmp_path / "container.json.partial").write_text("{")
    assert load_changes(tmp_path) is None
