"""From a name to a connected socket: every address has its turn, and what was not connected is closed."""

import socket

import pytest

from resilience.testing import DeadPort
from resilience.workers.resolver import first_connected, literal


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def addresses(*ports):
    return [address for port in ports for address in literal("127.0.0.1", port)]


def test_the_next_address_is_tried_where_one_refuses(listening):
    tried = []
    with DeadPort() as dead:

        def connect(made, address):
            tried.append(made)
            made.connect(address)

        made = first_connected(addresses(dead.port, listening.getsockname()[1]), connect)
        with made:
            assert tried[-1] is made
            assert made.getpeername() == listening.getsockname()
    assert [one.fileno() for one in tried[:-1]] == [-1]


def test_where_all_refuse_the_last_error_is_raised():
    with DeadPort() as dead, pytest.raises(ConnectionRefusedError):
        first_connected(addresses(dead.port, dead.port), socket.socket.connect)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_anything_else_ends_it_at_once_with_nothing_open(error):
    tried = []

    def connect(made, address):
        tried.append(made)
        raise error

    with pytest.raises(error):
        first_connected(addresses(1, 2), connect)
    assert [one.fileno() for one in tried] == [-1]


def test_a_name_without_addresses_is_an_error():
    with pytest.raises(OSError, match="no address"):
        first_connected([], socket.socket.connect)
