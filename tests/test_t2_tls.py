"""Whom we trust, and that it is read from disk no more often than it changes."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from lazyfs.errors import Unreachable
from lazyfs.source.http.retry import RetryPolicy
from lazyfs.source.http.settings import Access, SourceSettings
from tests.support.images import build_image
from tests.support.registry import Registry
from tests.support.registry_client import source_of
from tests.support.registry_tls import make_authority

IMAGE = build_image([b"layer"])


async def test_authorities_are_read_once_and_again_when_their_file_has_changed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = (make_authority(tmp_path / name) for name in ("old", "new"))
    ca_file = tmp_path / "ca.pem"
    shutil.copy(old.ca_file, ca_file)
    settings = SourceSettings(ca_file=ca_file)
    first = settings.tls_context()
    assert replace(settings, retry=RetryPolicy(retries=0)).tls_context() is first
    with Registry(tls=new.server_context()) as registry:
        registry.push("app", IMAGE, "1")
        async with source_of(registry, plain_http=False, ca_file=ca_file) as source:
            with pytest.raises(Unreachable, match="not trusted"):
                await source.resolve()
        shutil.copy(new.ca_file, ca_file)
        async with source_of(registry, plain_http=False, ca_file=ca_file) as source:
            await source.resolve()
    assert settings.tls_context() is not first


def test_who_asks_for_other_things_of_servers_gets_another_context(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    settings = SourceSettings()
    known = Access(ca_files=(authority.ca_file,))
    shown = Access(client_certs=((authority.client_cert, authority.client_key),))
    contexts = [settings.tls_context(access) for access in (Access(), known, shown, Access(skip_verify=True))]
    assert len(set(contexts)) == 4
    assert replace(settings, ca_file=authority.ca_file).tls_context() is contexts[1]
    assert [context.check_hostname for context in contexts] == [True, True, True, False]
