"""The benchmark's relay before a registry: it counts, and can be down for a while."""

import http.client

import pytest

from bench.cold.tap import tap
from tests.support.registry import Registry


def ask(address: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/v2/")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_a_relay_counts_and_refuses_while_it_is_stopped():
    with Registry() as registry, tap(registry.host, "127.0.0.1") as relay:
        assert ask(relay.address) == 200
        with relay.stopped(), pytest.raises(ConnectionRefusedError):
            ask(relay.address)
        assert ask(relay.address) == 200
        seen = relay.take()
        assert [(exchange.method, exchange.target, exchange.status) for exchange in seen] == [
            ("GET", "/v2/", 200)
        ]
