"""What the configuration demands of an image: flags, keys, and the policy file. Reads their files."""

import json
import tomllib
from functools import partial
from pathlib import Path
from typing import Any, Final

from lazyfs.config import Config
from lazyfs.errors import ConfigError
from lazyfs.image.trust.demands import Demands, IndexTrust, Rule, demands_on, parse_rules
from lazyfs.image.trust.keys import PublicKey
from lazyfs.oci.image_name import ImageName

_LARGEST: Final = 1 << 20


def demands_of(config: Config, name: ImageName) -> Demands:
    """What is demanded of an image, and of its index.

    Raises:
        ConfigError: a file cannot be read, or says what it cannot say.
    """
    everywhere = Rule(
        prefix="",
        key_files=tuple(str(path.absolute()) for path in config.trusted_keys),
        signed=config.require_signature,
        indexes=IndexTrust.ANY if config.trust_index else IndexTrust.TABLE,
    )
    file = config.policy_file
    if file is None:
        return demands_on(name, (), partial(_key, Path()), everywhere)
    rules = parse_rules(_document(file), str(file))
    return demands_on(name, rules, partial(_key, file.absolute().parent), everywhere)


def _key(base: Path, file: str) -> PublicKey:
    """A key; the policy file names it relative to itself."""
    from lazyfs.image.trust.key_file import parse_key  # noqa: PLC0415  # cryptography, and most runs have no keys

    path = base / Path(file).expanduser()
    return parse_key(_read(path, "the trusted key"), str(path))


def _document(path: Path) -> dict[str, Any]:
    """The policy file, in JSON if its name ends so, else in TOML."""
    data = _read(path, "the policy file")
    try:
        document = json.loads(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be understood: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a table of rules")
    return document


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{what} {path}: larger than {_LARGEST} bytes")
    return data
