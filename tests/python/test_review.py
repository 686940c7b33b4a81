"""What a hostile review found, and what must not come back: one request that costs everybody else."""

import time
from urllib.parse import quote

import pytest

from harness import Person, Server

R = "/_matrix/client/v3/rooms/"


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def person(server: Server) -> Person:
    return server.person()


@pytest.fixture(scope="module")
def room(server: Server, person: Person) -> str:
    return server.room(person, server.first_staff())


@pytest.mark.parametrize("length", [256, 9_000])
def test_long_transaction_ids_are_refused(server, person, room, length):
    """PostgreSQL's indexes hold no long keys: one member could have failed whole batches."""
    path = f"{R}{quote(room)}/send/m.room.message/{'t' * length}"
    answer = person.client.put(path, {"msgtype": "m.text", "body": "x"})
    assert answer.told == (400, "M_INVALID_PARAM"), answer


def test_invented_threads_are_refused(server, person, room):
    sent = person.client.put(f"{R}{quote(room)}/send/m.room.message/thread-{time.time_ns()}", {"msgtype": "m.text", "body": "x"})
    event = quote(sent.json["event_id"])
    for thread in ("t" * 9_000, "invented", "$invented"):
        answer = person.client.post(f"{R}{quote(room)}/receipt/m.read/{event}", {"thread_id": thread})
        assert answer.told == (400, "M_INVALID_PARAM"), answer


def test_rules_that_cannot_be_tried_are_refused(server, person):
    rule = {"actions": ["notify"], "conditions": [
        {"kind": "event_match", "key": "content.body", "pattern": "*a" * 12_000 + "*b"}]}
    answer = person.client.put("/_matrix/client/v3/pushrules/global/override/slow", rule)
    assert answer.told == (400, "M_INVALID_PARAM"), answer


def test_a_nul_in_a_path_is_refused(server, person, room):
    answer = person.client.put(f"{R}{quote(room)}/send/m.room.message/%00", {"msgtype": "m.text", "body": "x"})
    assert answer.told == (400, "M_INVALID_PARAM"), answer


def test_messages_are_no_state(server, person, room):
    for kind in ("m.room.redaction", "m.reaction", "m.room.message"):
        answer = person.client.put(f"{R}{quote(room)}/state/{kind}/x", {"redacts": "$x"})
        assert answer.told == (403, "M_FORBIDDEN"), (kind, answer)
