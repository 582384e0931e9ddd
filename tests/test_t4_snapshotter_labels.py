"""What clients say of layers, and what is believed of it."""

import pytest

from lazyfs.oci.chain import ChainOrder
from lazyfs.snapshotter.labels import REF, is_top, order_of
from tests.support.snapshotters import chain_id, cri_labels, digest, stargz_labels

IMAGE = "registry.example/app:1"
LAYERS = [digest("bottom"), digest("middle"), digest("top")]
SOCI = {
    "containerd.io/snapshot/remote/soci.size": "1",
    "containerd.io/snapshot/remote/image.layers.size": "3",
    "containerd.io/snapshot/remote/soci.index.digest": digest("index"),
}


@pytest.mark.parametrize("extra", [{}, SOCI], ids=["cri", "soci"])
def test_cri_the_transfer_service_and_soci_name_the_manifest(extra):
    labels = cri_labels(IMAGE, LAYERS, 2) | extra
    assert order_of(labels, 2) == ChainOrder(IMAGE, digest(IMAGE), 2, LAYERS[1], chain_id(LAYERS[:2]))


def test_ctr_remote_does_not():
    labels = stargz_labels(IMAGE, LAYERS, 3)
    assert order_of(labels, 3) == ChainOrder(IMAGE, "", 3, LAYERS[2], chain_id(LAYERS))


@pytest.mark.parametrize("labels_of", [cri_labels, stargz_labels])
def test_only_the_top_layer_has_none_above(labels_of):
    assert [is_top(labels_of(IMAGE, LAYERS, depth)) for depth in (1, 2, 3)] == [False, False, True]


def test_without_a_client_that_tells_there_is_no_order():
    assert order_of({}, 1) is None
    assert order_of({REF: chain_id(LAYERS[:1])}, 1) is None
    assert not is_top({REF: chain_id(LAYERS)})


def test_two_clients_that_agree_are_believed():
    labels = stargz_labels(IMAGE, LAYERS, 1) | cri_labels(IMAGE, LAYERS, 1)
    assert order_of(labels, 1) == order_of(cri_labels(IMAGE, LAYERS, 1), 1)


@pytest.mark.parametrize(("image", "layers"), [("registry.example/other", LAYERS), (IMAGE, LAYERS[1:])])
def test_annotations_of_an_image_that_contradict_its_client_spoil_the_order(image, layers):
    """An image can bring the labels of one kind of client; the other kind's own stand beside them."""
    assert order_of(stargz_labels(image, layers, 1) | cri_labels(IMAGE, LAYERS, 1), 1) is None
    assert order_of(cri_labels(image, layers, 1) | stargz_labels(IMAGE, LAYERS, 1), 1) is None


@pytest.mark.parametrize("label", ["image-ref", "manifest-digest", "layer-digest"])
@pytest.mark.parametrize("value", ["sha256:12", "../../etc", "sha256:" + "g" * 64])
def test_what_is_no_digest_orders_nothing(label, value):
    labels = cri_labels(IMAGE, LAYERS, 1) | {f"containerd.io/snapshot/cri.{label}": value}
    assert (order_of(labels, 1) is None) == (label != "image-ref")


def test_a_chain_id_is_a_digest():
    assert order_of(cri_labels(IMAGE, LAYERS, 1) | {REF: "latest"}, 1) is None
