"""Who may bring an index and which images may be opened: the table, the policy file, keys and signatures."""

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.digest import sha256_digest
from lazyfs.config import Config
from lazyfs.errors import ConfigError, Unauthorized
from lazyfs.exit_codes import exit_code
from lazyfs.image.trust.demands import Demands, IndexTrust, Rule, demands_on, parse_rules
from lazyfs.image.trust.key_file import parse_key
from lazyfs.image.trust.keys import PublicKey
from lazyfs.image.trust.signatures import find_signer
from lazyfs.oci.image_name import RegistryImage, parse_image
from lazyfs.oci.json_fields import MAX_DOCUMENT_BYTES
from lazyfs.oci.reference import parse_reference
from lazyfs.policy import demands_of
from lazyfs.source.attachments import Attachments, open_attachments
from tests.support.images import build_image
from tests.support.published import new_key, payload, public_pem, raw_signature, sign
from tests.support.registry import Registry
from tests.support.registry_client import SETTINGS
from tests.support.registry_faults import Action, Corrupt, Status

KEY, OTHER = new_key(), new_key()
PUBLIC = parse_key(public_pem(KEY), "team.pub")
IMAGE = build_image([b"layer"], compression="none")
DIGEST = sha256_digest(b"pinned")


# The table


@pytest.mark.parametrize(("pinned", "configured", "signed"), list(product([False, True], repeat=3)))
def test_what_counts_is_what_the_table_says(pinned: bool, configured: bool, signed: bool) -> None:
    def admits(indexes: IndexTrust) -> bool:
        return Demands(indexes=indexes, pinned=pinned).admits(configured=configured, signed=signed)

    assert admits(IndexTrust.TABLE) == (signed or configured or not pinned)
    assert admits(IndexTrust.SIGNED) == signed
    assert admits(IndexTrust.ANY)
    assert not admits(IndexTrust.NONE)


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("r.example/app:1", False),
        (f"r.example/app@{DIGEST}", True),
        (f"r.example/app:1@{DIGEST}", True),  # the digest decides
        ("oci:layout:1", False),
    ],
)
def test_a_digest_pins(name: str, pinned: bool) -> None:
    assert demands(name).pinned == pinned


# Rules


def everywhere(**facts: Any) -> Rule:
    return Rule(**({"prefix": "", "key_files": (), "signed": False, "indexes": IndexTrust.TABLE} | facts))


def demands(name: str, *rules: dict[str, Any], **facts: Any) -> Demands:
    parsed = parse_rules({"rule": list(rules)}, "policy.toml")
    return demands_on(parse_image(name), parsed, lambda _: PUBLIC, everywhere(**facts))


@pytest.mark.parametrize(
    ("prefix", "name", "covers"),
    [
        ("", "r.example/app", True),
        ("r.example", "r.example/app", True),
        ("r.example", "r.example:5000/app", True),
        ("r.example", "r.example.evil/app", False),
        ("r.example/", "r.example/app", True),
        ("r.example/team", "r.example/team/app", True),
        ("r.example/team", "r.example/teams/app", False),
        ("r.example/team/app", "r.example/team/app", True),
        ("docker.io/library", "python", True),
        ("r.example", "oci:r.example/layout", False),
    ],
)
def test_a_prefix_covers_whole_components(prefix: str, name: str, covers: bool) -> None:
    found = demands(name, {"prefix": prefix, "indexes": "none"})
    assert (found.indexes is IndexTrust.NONE) == covers


def test_the_longest_prefix_counts_alone() -> None:
    rules = ({"prefix": "r.example", "indexes": "none"}, {"prefix": "r.example/free", "indexes": "any"})
    assert demands("r.example/free/app", *rules).indexes is IndexTrust.ANY
    assert demands("r.example/app", *rules).indexes is IndexTrust.NONE


@pytest.mark.parametrize(
    ("rule", "flags", "indexes"),
    [
        ({}, {}, IndexTrust.TABLE),
        ({}, {"indexes": IndexTrust.ANY}, IndexTrust.ANY),
        ({"indexes": "any"}, {}, IndexTrust.ANY),
        ({"indexes": "signed"}, {"indexes": IndexTrust.ANY}, IndexTrust.SIGNED),
        ({"indexes": "none"}, {"indexes": IndexTrust.ANY}, IndexTrust.NONE),
        ({"images": "signed"}, {}, IndexTrust.SIGNED),
        ({"images": "signed"}, {"indexes": IndexTrust.ANY}, IndexTrust.SIGNED),
        ({"images": "signed", "indexes": "any"}, {}, IndexTrust.ANY),
        ({"indexes": "any"}, {"signed": True}, IndexTrust.SIGNED),
        ({"indexes": "none"}, {"signed": True}, IndexTrust.NONE),
        ({}, {"signed": True, "indexes": IndexTrust.ANY}, IndexTrust.SIGNED),
    ],
)
def test_the_stricter_of_rule_and_flag_counts(
    rule: dict[str, str], flags: dict[str, Any], indexes: IndexTrust
) -> None:
    assert demands("r.example/app", {"prefix": "r.example", "keys": ["k"]} | rule, **flags).indexes is indexes


def test_keys_of_rule_and_configuration_count_together() -> None:
    loaded: list[str] = []

    def load(file: str) -> PublicKey:
        loaded.append(file)
        return PUBLIC

    rules = parse_rules({"rule": [{"prefix": "r.example", "keys": ["a", "b"]}]}, "policy")
    demands_on(parse_image("r.example/app"), rules, load, everywhere(key_files=("b", "c")))
    assert loaded == ["b", "c", "a"]


@pytest.mark.parametrize(
    "document",
    [
        {"rules": []},
        {"rule": {}},
        {"rule": [{}]},
        {"rule": [{"prefix": 1}]},
        {"rule": [{"prefix": "a", "image": "signed"}]},
        {"rule": [{"prefix": "a", "images": "maybe"}]},
        {"rule": [{"prefix": "a", "keys": "one.pub"}]},
        {"rule": [{"prefix": "a"}, {"prefix": "a"}]},
        {"rule": [5]},
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^policy\.toml") as caught:
        parse_rules(document, "policy.toml")
    assert exit_code(caught.value) == 78


@pytest.mark.parametrize(
    ("rules", "flags"),
    [
        ([], {"signed": True}),
        ([{"prefix": "r.example", "images": "signed"}], {}),
        ([{"prefix": "r.example", "indexes": "signed"}], {}),
    ],
)
def test_what_no_key_could_allow_is_an_error(rules: list[dict[str, Any]], flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no key"):
        demands("r.example/app", *rules, **flags)


def test_the_policy_file_names_keys_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team.pub").write_bytes(public_pem(KEY))
    toml, json = tmp_path / "policy.toml", tmp_path / "policy.json"
    toml.write_text('[[rule]]\nprefix = "r.example"\nkeys = ["keys/team.pub"]\nimages = "signed"\n')
    json.write_text('{"rule": [{"prefix": "r.example", "keys": ["keys/team.pub"], "images": "signed"}]}')
    for file in (toml, json):
        config = Config(cache_dir=tmp_path, policy_file=file)
        found = demands_of(config, parse_image("r.example/app"))
        assert found.signed
        assert found.keys == (parse_key(public_pem(KEY), str(tmp_path / "keys" / "team.pub")),)
        assert demands_of(config, parse_image("other/app")) == Demands()


@pytest.mark.parametrize("content", [b"\xff", b"[[rule", b"{", b"[]", b"[" * 100_000, bytes(1 << 21)])
@pytest.mark.parametrize("name", ["policy.toml", "policy.json"])
def test_a_policy_file_that_cannot_be_read_is_a_configuration_error(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError):
        demands_of(Config(cache_dir=tmp_path, policy_file=tmp_path / name), parse_image("app"))
    with pytest.raises(ConfigError, match="No such file"):
        demands_of(Config(cache_dir=tmp_path, policy_file=tmp_path / "absent"), parse_image("app"))


# Keys


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519"])
def test_a_key_knows_its_own_signatures(kind: str) -> None:
    key, other = new_key(kind), new_key(kind)
    public = parse_key(public_pem(key), "k")
    signature = raw_signature(key, b"data")
    assert public.verifies(signature, b"data")
    assert not public.verifies(signature, b"date")
    assert not public.verifies(raw_signature(other, b"data"), b"data")
    assert not any(public.verifies(raw_signature(new_key(one), b"data"), b"data") for one in ("rsa", "ecdsa"))


@pytest.mark.parametrize(
    ("curve", "as_long"),
    [(ec.SECP256R1, hashes.SHA256), (ec.SECP384R1, hashes.SHA384), (ec.SECP521R1, hashes.SHA512)],
)
def test_ecdsa_is_with_sha256_or_with_the_hash_as_long_as_the_curve(curve: Any, as_long: Any) -> None:
    key = ec.generate_private_key(curve())
    public = parse_key(public_pem(key), "k")
    for kind in (hashes.SHA256, hashes.SHA384, hashes.SHA512, hashes.SHA3_256):
        signature = key.sign(b"data", ec.ECDSA(kind()))
        assert public.verifies(signature, b"data") == (kind in (hashes.SHA256, as_long))
        assert not public.verifies(signature, b"date")


@settings(max_examples=50)
@given(st.binary(max_size=100))
def test_garbage_is_no_signature(signature: bytes) -> None:
    assert not PUBLIC.verifies(signature, b"data")


def private_pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        public_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        public_pem(ec.generate_private_key(ec.SECP256K1())),
        public_pem(dsa.generate_private_key(2048)),
        private_pem(KEY),
    ],
)
def test_other_keys_are_refused_and_not_shown(pem: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^some\.pub: ") as caught:
        parse_key(pem, "some.pub")
    lines = [line for line in pem.decode().splitlines() if not line.startswith("-")]
    assert not any(line in str(caught.value) for line in lines if line)


def test_a_key_shows_its_name_alone() -> None:
    assert "object at" not in repr(PUBLIC)
    assert "team.pub" in repr(PUBLIC)


# Signatures


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.push("app", IMAGE, tag="1")
        yield running


@asynccontextmanager
async def place(registry: Registry) -> AsyncIterator[Attachments]:
    async with open_attachments(RegistryImage(parse_reference(f"{registry.host}/app")), SETTINGS) as found:
        assert found is not None
        yield found


async def signer(
    registry: Registry, digest: str = IMAGE.digest, keys: tuple[PublicKey, ...] = (PUBLIC,)
) -> Any:
    async with place(registry) as found:
        return (await find_signer(found, digest, keys)).signer


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519"])
@pytest.mark.parametrize("referrer", [False, True])
async def test_a_signature_is_found_where_cosign_puts_it(
    registry: Registry, kind: str, referrer: bool
) -> None:
    key = new_key(kind)
    sign(registry, "app", IMAGE.digest, key, referrer=referrer)
    public = parse_key(public_pem(key), "k")
    assert await signer(registry, keys=(PUBLIC, public)) == public
    assert await signer(registry, keys=(PUBLIC,)) is None
    assert await signer(registry, digest=DIGEST, keys=(public,)) is None


async def test_a_signature_of_a_repository_without_the_api_is_found() -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        sign(registry, "app", IMAGE.digest, KEY, referrer=True)
        assert await signer(registry) == PUBLIC


async def test_one_good_signature_among_others_is_enough(registry: Registry) -> None:
    sign(registry, "app", IMAGE.digest, OTHER)
    for key in (OTHER, KEY, OTHER):
        sign(registry, "app", IMAGE.digest, key, referrer=True)
    assert await signer(registry) == PUBLIC


BAD = {
    "of another digest": {"data": payload(DIGEST)},
    "that means something else": {"data": payload(IMAGE.digest, type="container image attestation")},
    "of no image": {"data": payload(IMAGE.digest, image={})},
    "of no JSON": {"data": b"sha256"},
    "by nobody": {"signature": ""},
    "that is no base64": {"signature": "!!!"},
    "of other bytes": {"signature": base64.b64encode(raw_signature(KEY, b"other")).decode()},
    "that is huge": {"signature": "A" * 100_000},
    "of a huge payload": {"data": payload(IMAGE.digest, filler="x" * 100_000)},
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("referrer", [False, True])
async def test_a_bad_signature_is_none(registry: Registry, name: str, referrer: bool) -> None:
    sign(registry, "app", IMAGE.digest, KEY, referrer=referrer, **BAD[name])
    assert await signer(registry) is None


async def test_what_is_under_the_tag_may_be_anything() -> None:
    with Registry(referrers=False) as registry:
        registry.push("app", IMAGE, tag="1")
        for data in (b"{", b"[]", IMAGE.data):
            registry.put_manifest("app", f"sha256-{IMAGE.digest[7:]}.sig", IMAGE.media_type, data)
            assert await signer(registry) is None
        sign(registry, "app", IMAGE.digest, KEY)
        registry.faults.add("blob", Status(404))  # the payload is gone
        assert await signer(registry) is None


BROKEN = {
    "refused": Status(403),
    "that no registry gives": Status(418),
    "of another kind": Status(200, {"Content-Type": "text/html"}, b"<html>"),
    "larger than any": Status(200, {}, b" " * (MAX_DOCUMENT_BYTES + 1)),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_tag_hides_no_good_signature(registry: Registry, name: str) -> None:
    sign(registry, "app", IMAGE.digest, KEY, referrer=True)
    registry.faults.add("manifest", BROKEN[name], path=".sig")
    assert await signer(registry) == PUBLIC


@pytest.mark.parametrize("fault", [*BROKEN.values(), Corrupt(3), Status(404)])
@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_a_broken_signature_hides_no_good_one(registry: Registry, fault: Action, kind: str) -> None:
    for key in (OTHER, KEY):
        sign(registry, "app", IMAGE.digest, key, referrer=True)
    registry.faults.add(kind, fault, skip=1 if kind == "manifest" else 0)  # the first is the tag
    assert await signer(registry) == PUBLIC
    assert registry.faults.pending == 0


async def test_what_is_not_told_is_no_proof_that_nobody_signed(registry: Registry) -> None:
    sign(registry, "app", IMAGE.digest, OTHER, referrer=True)
    for kind, skip in (("manifest", 0), ("manifest", 1), ("blob", 0), ("referrers", 0)):
        registry.faults.add(kind, Status(403), skip=skip)
        with pytest.raises(Unauthorized):
            await signer(registry)
        assert registry.faults.pending == 0
    assert await signer(registry) is None


async def test_a_registry_that_refuses_to_tell_is_an_error(registry: Registry) -> None:
    registry.faults.add("manifest", Status(403), path=".sig")
    with pytest.raises(Unauthorized):
        await signer(registry)


async def test_without_keys_nobody_is_asked(registry: Registry) -> None:
    assert await signer(registry, keys=()) is None
    assert not registry.requests
