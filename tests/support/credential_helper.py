"""A credential helper that speaks the protocol of docker-credential-helpers and keeps secrets in a file."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = """#!{python}
import json, pathlib, sys
vault, asked = pathlib.Path({vault!r}), pathlib.Path({asked!r})
verb, told = sys.argv[1], sys.stdin.read()
with asked.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
held = json.loads(vault.read_text()) if vault.exists() else {{}}
if verb == "store":
    entry = json.loads(told)
    held[entry.pop("ServerURL")] = entry
elif told not in held and verb in ("get", "erase"):
    print("credentials not found in native keychain")
    sys.exit(1)
elif verb == "get":
    print(json.dumps({{"ServerURL": told, **held[told]}}))
elif verb == "erase":
    del held[told]
else:
    sys.exit(2)
vault.write_text(json.dumps(held))
"""


@dataclass(frozen=True, slots=True)
class Vault:
    """The helper `docker-credential-NAME` in a directory for the PATH.

    Attributes:
        directory: where the program lies.
        name: NAME.
    """

    directory: Path
    name: str

    @property
    def held(self) -> dict[str, dict[str, str]]:
        """User and secret by server."""
        file = self.directory / f"{self.name}.vault"
        found: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
        return found

    @property
    def asked(self) -> list[str]:
        """The arguments it was called with, so far."""
        file = self.directory / f"{self.name}.asked"
        return file.read_text().splitlines() if file.exists() else []


def install_helper(directory: Path, name: str = "vault") -> Vault:
    """Write the program."""
    directory.mkdir(exist_ok=True)
    program = directory / f"docker-credential-{name}"
    vault, asked = str(directory / f"{name}.vault"), str(directory / f"{name}.asked")
    program.write_text(_PROGRAM.format(python=sys.executable, vault=vault, asked=asked))
    program.chmod(0o755)
    return Vault(directory, name)
