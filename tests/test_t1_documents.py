"""Manifests, indexes, configurations: what they say, and that garbage gives our errors or a value."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.digest import sha256_digest
from indexer.errors import FormatError, IndexerError, LimitExceeded, Unsupported
from indexer.toc import Compression
from lazyfs.oci.config import ImageConfig, chain_ids, image_layers, parse_config
from lazyfs.oci.descriptor import Descriptor, checked_digest, readable_digest
from lazyfs.oci.json_fields import parse_object
from lazyfs.oci.manifest import Index, Manifest, parse_document, parse_index, parse_manifest
from lazyfs.oci.media_types import layer_compression
from lazyfs.oci.platform import Platform
from tests.support.images import LAYER_TYPES, MANIFEST_TYPES, build_image, build_index, encode

D = "sha256:" + "ab" * 32
OCI_MANIFEST, DOCKER_MANIFEST = MANIFEST_TYPES["oci"], MANIFEST_TYPES["docker"]
IMAGE = build_image(
    [b"one", b"two"],
    process={
        "Env": ["A=1"],
        "Entrypoint": ["/run"],
        "Cmd": None,
        "User": "1:2",
        "WorkingDir": "/w",
        "StopSignal": "SIGINT",
        "Labels": {"k": "v"},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/v": {}},
    },
    annotations={"a": "b"},
)


def changed(document: bytes, **changes: Any) -> bytes:
    """The document with some fields set, or left out where the change is `...`."""
    fields = json.loads(document) | changes
    return encode({name: value for name, value in fields.items() if value is not ...})


def changed_config_link(**changes: Any) -> bytes:
    return changed(IMAGE.data, config=IMAGE.json["config"] | changes)


def test_a_manifest_says_what_it_links_to() -> None:
    manifest = parse_manifest(IMAGE.data, f"{OCI_MANIFEST}; charset=utf-8")
    assert manifest.media_type == OCI_MANIFEST
    assert manifest.config.digest == sha256_digest(IMAGE.config)
    assert [layer.size for layer in manifest.layers] == [len(layer) for layer in IMAGE.layers]
    assert manifest.annotations == {"a": "b"}
    assert manifest.subject is None


def test_an_index_says_what_it_links_to() -> None:
    built = build_index([IMAGE, build_image([b"x"], platform="linux/arm64/v8")], dialect="docker")
    index = parse_index(built.data)
    assert [str(entry.platform) for entry in index.manifests] == ["linux/amd64", "linux/arm64"]
    assert index.manifests[0].digest == IMAGE.digest


def test_a_configuration_says_how_to_run() -> None:
    config = parse_config(IMAGE.config)
    assert config == ImageConfig(
        platform=Platform("linux", "amd64"),
        diff_ids=(sha256_digest(b"one"), sha256_digest(b"two")),
        history=config.history,
        created="2024-01-01T00:00:00Z",
        env=("A=1",),
        entrypoint=("/run",),
        cmd=(),
        user="1:2",
        working_dir="/w",
        stop_signal="SIGINT",
        labels={"k": "v"},
        exposed_ports=("53/udp", "80/tcp"),
        volumes=("/v",),
    )
    assert [step.created_by for step in config.history] == ["layer 0", "layer 1"]
    assert (config.os, config.architecture, config.variant) == ("linux", "amd64", "")


def test_values_with_maps_in_them_are_hashable() -> None:
    assert len({parse_manifest(IMAGE.data), parse_manifest(IMAGE.data)}) == 1
    assert len({parse_config(IMAGE.config), parse_config(IMAGE.config)}) == 1


@pytest.mark.parametrize("dialect", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_layers_bring_their_compression_and_diff_id(dialect: str, compression: str) -> None:
    image = build_image([b"one"], dialect=dialect, compression=compression)
    (layer,) = image_layers(parse_manifest(image.data), parse_config(image.config))
    assert layer.compression == Compression[compression.upper()]
    assert layer.diff_id == sha256_digest(b"one")
    assert layer.descriptor.media_type == LAYER_TYPES[dialect, compression]


def test_a_document_without_media_type_is_known_by_announcement_or_shape() -> None:
    bare = changed(IMAGE.data, mediaType=...)
    assert parse_manifest(bare, DOCKER_MANIFEST).media_type == DOCKER_MANIFEST
    assert parse_manifest(bare, "application/json").media_type == OCI_MANIFEST
    assert isinstance(parse_document(changed(build_index([IMAGE]).data, mediaType=...)), Index)


FORMAT_ERRORS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "not UTF-8": b'{"a":"\xff"}',
    "UTF-16": json.dumps({"schemaVersion": 2}).encode("utf-16"),
    "NaN": b'{"schemaVersion": NaN}',
    "no finite number": b'{"schemaVersion": 2, "x": -1e999}',
    "huge number": b'{"schemaVersion": ' + b"9" * 5000 + b"}",
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no version": changed(IMAGE.data, schemaVersion=...),
    "version 3": changed(IMAGE.data, schemaVersion=3),
    "version as text": changed(IMAGE.data, schemaVersion="2"),
    "version true": changed(IMAGE.data, schemaVersion=True),
    "no shape": b'{"schemaVersion": 2}',
    "no config": changed(IMAGE.data, config=...),
    "config is a list": changed(IMAGE.data, config=[]),
    "both shapes": changed(IMAGE.data, manifests=[]),
    "index with layers": changed(build_index([IMAGE]).data, layers=[]),
    "index with config": changed(build_index([IMAGE]).data, config=IMAGE.json["config"]),
    "another type than announced": changed(IMAGE.data, mediaType=DOCKER_MANIFEST),
    "type of an index": changed(IMAGE.data, mediaType="application/vnd.oci.image.index.v1+json"),
    "layers is an object": changed(IMAGE.data, layers={}),
    "a layer is text": changed(IMAGE.data, layers=["x"]),
    "no digest": changed(IMAGE.data, config={"mediaType": "x", "size": 1}),
    "digest of no kind": changed_config_link(digest="x"),
    "short digest": changed_config_link(digest="sha256:12"),
    "upper-case digest": changed_config_link(digest="sha256:" + "AB" * 32),
    "path as digest": changed_config_link(digest="sha256:../../../etc/passwd"),
    "negative size": changed_config_link(size=-1),
    "fractional size": changed_config_link(size=1.5),
    "huge size": changed_config_link(size=1 << 63),
    "size as text": changed_config_link(size="1"),
    "urls is text": changed_config_link(urls="http://x"),
    "annotation is a number": changed_config_link(annotations={"a": 1}),
    "half a surrogate pair": changed_config_link(annotations={"a": "\ud800"}),
    "platform is text": changed_config_link(platform="linux"),
    "a key twice": b'{"schemaVersion":2,"schemaVersion":2}',
    "a key twice, deeper": IMAGE.data.replace(b'"size":', b'"size":1,"size":', 1),
}


@pytest.mark.parametrize("case", FORMAT_ERRORS)
def test_a_broken_manifest_is_a_format_error(case: str) -> None:
    with pytest.raises(FormatError):
        parse_document(FORMAT_ERRORS[case], OCI_MANIFEST)
    if "type" not in case:
        with pytest.raises(FormatError):
            parse_document(FORMAT_ERRORS[case])


def test_too_much_of_anything_is_a_limit() -> None:
    layer = IMAGE.json["layers"][0]
    with pytest.raises(LimitExceeded, match="1001 entries"):
        parse_manifest(changed(IMAGE.data, layers=[layer] * 1001))
    with pytest.raises(LimitExceeded, match="urls"):
        parse_manifest(changed_config_link(urls=["x"] * 33))
    with pytest.raises(LimitExceeded, match="bytes"):
        parse_document(b" " * (4 << 20) + b"{}")


def test_a_manifest_and_an_index_are_not_taken_for_each_other() -> None:
    with pytest.raises(FormatError, match="index stands where"):
        parse_manifest(build_index([IMAGE]).data)
    with pytest.raises(FormatError, match="manifest stands where"):
        parse_index(IMAGE.data)


@pytest.mark.parametrize(
    ("document", "announced"),
    [
        (b'{"schemaVersion":1,"fsLayers":[]}', ""),
        (IMAGE.data, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (changed(IMAGE.data, mediaType="application/vnd.oci.artifact.manifest.v1+json"), ""),
    ],
)
def test_obsolete_documents_are_unsupported(document: bytes, announced: str) -> None:
    with pytest.raises(Unsupported):
        parse_document(document, announced)


@pytest.mark.parametrize(
    ("media_type", "hint"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "Helm"),
        ("application/vnd.wasm.content.layer.v1+wasm", "WebAssembly"),
        ("application/x-unknown", "x-unknown"),
    ],
)
def test_layers_that_are_no_file_systems_are_unsupported(media_type: str, hint: str) -> None:
    with pytest.raises(Unsupported, match=hint):
        layer_compression(media_type)
    layers = [layer | {"mediaType": media_type} for layer in IMAGE.json["layers"]]
    manifest = parse_manifest(changed(IMAGE.data, layers=layers))
    with pytest.raises(Unsupported, match=hint):
        image_layers(manifest, parse_config(IMAGE.config))


def test_an_artifact_is_no_image() -> None:
    manifest = parse_manifest(changed_config_link(mediaType="application/vnd.cncf.helm.config.v1+json"))
    with pytest.raises(Unsupported, match=r"helm\.config"):
        image_layers(manifest, parse_config(IMAGE.config))


def test_layers_and_diff_ids_must_be_as_many() -> None:
    manifest = parse_manifest(changed(IMAGE.data, layers=IMAGE.json["layers"][:1]))
    with pytest.raises(FormatError, match="1 layers, its config 2 diff_ids"):
        image_layers(manifest, parse_config(IMAGE.config))


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": ...},
        {"rootfs": {"type": "other", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}},
        {"rootfs": {"type": "layers", "diff_ids": [1]}},
        {"config": []},
        {"config": {"Env": "A=1"}},
        {"config": {"Env": [None]}},
        {"config": {"Labels": {"a": None}}},
        {"config": {"ExposedPorts": ["80"]}},
        {"os": 1},
        {"history": [[]]},
        {"history": [{"empty_layer": "yes"}]},
    ],
)
def test_a_broken_configuration_is_a_format_error(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_config(changed(IMAGE.config, **changes))


def test_a_configuration_may_leave_out_what_it_does_not_say() -> None:
    config = parse_config(changed(IMAGE.config, config=None, history=None, os=..., architecture=...))
    assert (config.env, config.history, config.os) == ((), (), "")


def test_images_for_other_systems_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="windows/amd64"):
        parse_config(changed(IMAGE.config, os="windows"))


def test_digests_that_cannot_be_checked_are_unsupported() -> None:
    sha512 = "sha512:" + "0" * 128
    assert checked_digest(sha512, "here") == sha512
    with pytest.raises(Unsupported, match="sha512"):
        readable_digest(sha512)
    with pytest.raises(Unsupported, match="sha512"):
        parse_config(changed(IMAGE.config, rootfs={"type": "layers", "diff_ids": [sha512]}))


def test_chain_ids_follow_the_specification() -> None:
    first, second, third = (sha256_digest(text) for text in (b"1", b"2", b"3"))
    two = sha256_digest(f"{first} {second}".encode())
    assert chain_ids([first, second, third]) == [first, two, sha256_digest(f"{two} {third}".encode())]
    assert chain_ids([]) == []


def test_a_descriptor_knows_an_index() -> None:
    assert Descriptor("application/vnd.oci.image.index.v1+json", D, 1).is_index
    assert not Descriptor(OCI_MANIFEST, D, 1).is_index


def test_errors_say_where() -> None:
    layers = [IMAGE.json["layers"][0], {"mediaType": "x", "digest": D}]
    with pytest.raises(FormatError, match=r"manifest, layers\[1\]: 'size' is missing"):
        parse_manifest(changed(IMAGE.data, layers=layers))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([D, "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "os", "type", "platform", "a"]), inner
        )
    ),
    max_leaves=12,
)
PARSERS: list[Callable[[bytes], object]] = [
    parse_document,
    parse_config,
    lambda data: parse_object(data, "x"),
]


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_document_is_a_value_or_our_error(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from([IMAGE.data, IMAGE.config, build_index([IMAGE]).data]))
    fields = json.loads(original)
    names = [
        *fields,
        "subject",
        "artifactType",
        "annotations",
        "variant",
        "os.features",
        "manifests",
        "layers",
    ]
    for name in data.draw(st.lists(st.sampled_from(names), max_size=3)):
        fields[name] = data.draw(JSON)
    check_garbage(encode(fields))


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789ae\\u ', max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_our_error(data: bytes) -> None:
    check_garbage(data)


@given(st.sampled_from([IMAGE.data, IMAGE.config]), st.integers(0, 2000), st.binary(min_size=1, max_size=3))
def test_a_document_with_a_few_other_bytes_is_a_value_or_our_error(
    document: bytes, position: int, patch: bytes
) -> None:
    position %= len(document)
    check_garbage(document[:position] + patch + document[position + len(patch) :])


def check_garbage(data: bytes) -> None:
    for parse in PARSERS:
        try:
            value = parse(data)
        except IndexerError:
            continue
        if isinstance(value, Manifest):
            assert all(layer.size >= 0 for layer in value.layers)
