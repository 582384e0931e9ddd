"""Who may bring an index, and which images may be opened at all (docs/trust.md has the reasons).

An index made here counts always, and so does one that was audited here. Of one that came from elsewhere:

    found beside                    unsigned    signed by a configured key
    an image named by its tag       yes         yes
    an image named by its digest    no          yes
    in the place of --index-repo    yes         yes

`--trust-index` makes all of them yes. Where the image itself must be signed, by `--require-signature` or by
a rule of the policy file, every "unsigned" is no: else a lying index could show what nobody signed. A rule
may say otherwise for the images below its prefix; where a rule and a flag disagree, the stricter counts.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeVar

from msgspec import Struct

from indexer.errors import FormatError
from lazyfs.errors import ConfigError
from lazyfs.image.trust.keys import PublicKey
from lazyfs.oci.image_name import ImageName, RegistryImage
from lazyfs.oci.json_fields import Fields

T = TypeVar("T")

MAX_RULES: Final = 1000

_BOUNDARIES: Final = frozenset("/:@")
_RULE_KEYS: Final = frozenset({"prefix", "keys", "images", "indexes"})


class IndexTrust(Enum):
    """Which indexes from elsewhere count."""

    TABLE = "default"  # as the table above says
    SIGNED = "signed"  # only those signed by a configured key
    ANY = "any"  # all
    NONE = "none"  # no index from elsewhere


class Rule(Struct, frozen=True):
    """What is demanded of the images below a prefix.

    Attributes:
        prefix: registry, and maybe the beginning of a repository, up to a whole component; "" is all.
        key_files: names of files with the keys that count there.
        signed: whether images must be signed.
        indexes: which indexes count.
    """

    prefix: str
    key_files: tuple[str, ...]
    signed: bool
    indexes: IndexTrust


class Demands(Struct, frozen=True):
    """What is demanded of one image.

    Attributes:
        keys: whose signatures count.
        signed: whether the image must be signed.
        indexes: which indexes from elsewhere count.
        pinned: whether the image is named by its digest.
    """

    keys: tuple[PublicKey, ...] = ()
    signed: bool = False
    indexes: IndexTrust = IndexTrust.TABLE
    pinned: bool = False

    def admits(self, *, configured: bool, signed: bool) -> bool:
        """Whether an index from elsewhere counts.

        Args:
            configured: it was found where the user said, not beside the image.
            signed: it is signed by one of the keys.
        """
        match self.indexes:
            case IndexTrust.NONE:
                return False
            case IndexTrust.ANY:
                return True
            case IndexTrust.SIGNED:
                return signed
            case IndexTrust.TABLE:
                return signed or configured or not self.pinned

    @property
    def fingerprint(self) -> str:
        """Changes whenever an index that counted may not count any more."""
        facts = [self.indexes.value, str(self.pinned), *sorted(key.fingerprint for key in self.keys)]
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def demands_on(
    name: ImageName, rules: Sequence[Rule], load_key: Callable[[str], PublicKey], everywhere: Rule
) -> Demands:
    """What is demanded of an image: by the rule with the longest prefix that fits, and everywhere.

    Args:
        name: the image.
        rules: those of the policy file.
        load_key: gives the key in a file.
        everywhere: what holds for all images, by configuration and flags.

    Raises:
        ConfigError: signatures are demanded, and no key is there to check them with.
    """
    reference = name.reference if isinstance(name, RegistryImage) else None
    text = reference.name if reference else str(name)
    fitting = [rule for rule in rules if _covers(rule.prefix, text)]
    rule = max(fitting, key=lambda rule: len(rule.prefix), default=None)
    files = (*everywhere.key_files, *(rule.key_files if rule else ()))
    demands = Demands(
        keys=tuple(load_key(file) for file in dict.fromkeys(files)),
        signed=everywhere.signed or bool(rule and rule.signed),
        indexes=_stricter(everywhere, rule),
        pinned=bool(reference and reference.digest),
    )
    if not demands.keys and (demands.signed or demands.indexes is IndexTrust.SIGNED):
        raise ConfigError(f"{name}: must be signed, but no key is configured: set trusted_keys")
    return demands


def _stricter(everywhere: Rule, rule: Rule | None) -> IndexTrust:
    said = rule.indexes if rule else IndexTrust.TABLE
    if rule and rule.signed and said is IndexTrust.TABLE:
        said = IndexTrust.SIGNED
    if said is IndexTrust.NONE or everywhere.indexes is IndexTrust.NONE:
        return IndexTrust.NONE
    if everywhere.signed or said is IndexTrust.SIGNED:
        return IndexTrust.SIGNED
    if said is IndexTrust.ANY or everywhere.indexes is IndexTrust.ANY:
        return IndexTrust.ANY
    return IndexTrust.TABLE


def _covers(prefix: str, text: str) -> bool:
    """Whether a name lies below a prefix, as containers-registries.conf(5) means it."""
    if not text.startswith(prefix):
        return False
    following = text[len(prefix) : len(prefix) + 1]
    return not prefix or prefix[-1] in _BOUNDARIES or following in {"", *_BOUNDARIES}


def parse_rules(values: Mapping[str, Any], where: str) -> tuple[Rule, ...]:
    """The rules of a policy file: a misspelt key must not pass for a rule that demands nothing.

    Args:
        values: the whole file, as TOML or JSON gives it.
        where: the file's name, for messages.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    _check_keys(values, {"rule"}, where)
    try:
        rules = []
        for number, fields in enumerate(Fields(values, where).children("rule", MAX_RULES)):
            _check_keys(values["rule"][number], _RULE_KEYS, fields.where)
            rules.append(_rule(fields))
    except FormatError as error:
        raise ConfigError(error.what) from None
    prefixes = [rule.prefix for rule in rules]
    twice = next((prefix for prefix in prefixes if prefixes.count(prefix) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: two rules for the prefix {twice!r}")
    return tuple(rules)


def _check_keys(values: Mapping[str, Any], known: Collection[str], where: str) -> None:
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"{where}: unknown key {str(unknown)[:100]!r}; known are {', '.join(sorted(known))}"
        )


def _rule(fields: Fields) -> Rule:
    return Rule(
        prefix=fields.text("prefix"),
        key_files=fields.texts("keys"),
        signed=_choice(fields, "images", {"any": False, "signed": True}),
        indexes=_choice(fields, "indexes", {trust.value: trust for trust in IndexTrust}),
    )


def _choice(fields: Fields, name: str, choices: Mapping[str, T]) -> T:
    """What a word stands for; the first choice where there is no word."""
    value = fields.text(name, next(iter(choices)))
    if value not in choices:
        raise ConfigError(f"{fields.where}: {name} is one of {', '.join(choices)}, not {value[:100]!r}")
    return choices[value]
