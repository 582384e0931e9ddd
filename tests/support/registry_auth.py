"""How the test registry tells its users apart: not at all, by Basic, or by bearer tokens.

Tokens are numbered, and die when `expire_tokens` is called: no clock is involved.
"""

import base64
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


@dataclass(slots=True)
class Access:
    """Who may do what.

    Attributes:
        mode: "open", "basic" or "token".
        users: passwords by name.
        identity_tokens: names by refresh token.
        anonymous_pull: whether a token without credentials is given out.
        expires_in: what tokens are said to live for, seconds; None is not to say it.
        realm: where tokens are to be had; "" is the registry itself.
        token_field: under which name the answer holds the token.
        powerless: users whose tokens allow nothing.
        offers_identity: the identity token given to who logs in with a password; "" is none.
    """

    mode: str = "open"
    users: Mapping[str, str] = field(default_factory=dict)
    identity_tokens: Mapping[str, str] = field(default_factory=dict)
    anonymous_pull: bool = True
    expires_in: int | None = 300
    realm: str = ""
    token_field: str = "token"
    offers_identity: str = ""
    powerless: frozenset[str] = frozenset()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tokens: dict[str, str] = field(default_factory=dict)
    _issued: int = 0

    def expire_tokens(self) -> None:
        """No token given out so far is accepted from now on."""
        with self._lock:
            self._tokens.clear()

    def challenge(self, header: str, repository: str, actions: str, base_url: str) -> str | None:
        """The WWW-Authenticate header for a request that is not let in; None lets it in."""
        if self.mode == "open":
            return None
        if self.mode == "basic":
            return None if self._basic_user(header) else 'Basic realm="test registry"'
        scope = f"repository:{repository}:{actions}" if repository else ""
        scheme, _, token = header.partition(" ")
        with self._lock:
            granted = self._tokens.get(token) if scheme.lower() == "bearer" else None
        if granted is not None and _covers(granted, scope):
            return None
        realm = self.realm or f"{base_url}/token"
        error = ',error="invalid_token"' if token else ""
        wanted = f',scope="{scope}"' if scope else ""
        return f'Bearer realm="{realm}",service="test registry"{wanted}{error}'

    def answer(self, method: str, query: str, body: bytes, header: str) -> tuple[int, dict[str, Any]]:
        """What the token endpoint says."""
        fields = parse_qs(body.decode() if method == "POST" else query)
        user = self._form_user(fields) if method == "POST" else self._basic_user(header)
        wrong = user is None and (method == "POST" or header)
        if wrong or (user is None and not self.anonymous_pull):
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]}
        with self._lock:
            self._issued += 1
            token = f"token-{self._issued}-for-{user or 'anyone'}"
            self._tokens[token] = "" if user in self.powerless else " ".join(fields.get("scope", ()))
        said: dict[str, Any] = {self.token_field: token}
        if self.offers_identity and user and fields.get("offline_token") == ["true"]:
            said["refresh_token"] = self.offers_identity
        return 200, said if self.expires_in is None else said | {"expires_in": self.expires_in}

    def _basic_user(self, header: str) -> str | None:
        scheme, _, encoded = header.partition(" ")
        if scheme.lower() != "basic":
            return None
        name, _, password = base64.b64decode(encoded).decode().partition(":")
        return name if self.users.get(name) == password else None

    def _form_user(self, fields: Mapping[str, list[str]]) -> str | None:
        def one(name: str) -> str:
            return fields.get(name, [""])[0]

        if one("grant_type") == "refresh_token":
            return self.identity_tokens.get(one("refresh_token"))
        name = one("username")
        return name if name and self.users.get(name) == one("password") else None


def _covers(granted: str, scope: str) -> bool:
    """Whether the granted scopes include every action of `scope`."""
    if not scope:  # of the registry as a whole
        return True
    name, _, actions = scope.rpartition(":")
    allowed = {
        action
        for one in granted.split()
        if one.rpartition(":")[0] == name
        for action in one.rpartition(":")[2].split(",")
    }
    return set(actions.split(",")) <= allowed


def error_json(said: Mapping[str, Any]) -> bytes:
    """The body of a token endpoint's answer."""
    return json.dumps(said).encode()
