"""H13: many devices of one facility ID post at once; nothing gets lost and all see one order."""

from __future__ import annotations

import threading

import pytest

from harness import Client, Server

DEVICES, MESSAGES, TERMINALS = 50, 20, 10


def test_fifty_devices_of_one_facility_id(any_city: Server):
    facility = any_city.facility()
    shared = any_city.person(facility, kind="facility")
    readers = [any_city.person(facility) for _ in range(2)]
    room = any_city.room(shared, *readers, name="事業所の部屋")
    terminals = [shared.terminal] + [any_city.further_terminal(shared, f"端末{n}") for n in range(TERMINALS - 1)]
    devices = [shared.log_in(terminals[n % TERMINALS], initial_device_display_name=f"職員{n}") for n in range(DEVICES)]
    since = [reader.client.sync()["next_batch"] for reader in readers]
    start = threading.Barrier(DEVICES)
    sent: list[dict[int, str]] = [{} for _ in devices]
    failures: list[BaseException] = []

    def write(n: int, client: Client) -> None:
        try:
            client.get("/_matrix/client/versions")
            start.wait(30)
            for m in range(MESSAGES):
                # The same transaction ids on every device: they belong to the session.
                sent[n][m] = client.say(room, f"{n}-{m}", txn=f"m{m}")
        except BaseException as error:  # noqa: BLE001 - told by the test, not by a dead thread
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=write, args=(n, client)) for n, client in enumerate(devices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    acknowledged = {event: f"{n}-{m}" for n, one in enumerate(sent) for m, event in one.items()}
    assert len(acknowledged) == DEVICES * MESSAGES, "each its own event"

    def texts(events: list[dict]) -> list[tuple[str, str]]:
        return [(event["event_id"], event["content"]["body"]) for event in events
                if event["type"] == "m.room.message" and event["sender"] == shared.user_id]

    order = texts(readers[0].client.messages(room, "f", limit=100))
    assert len(order) == len(acknowledged) and dict(order) == acknowledged, "every one once, with its content"
    # One device's messages are in the order in which it wrote them.
    for n in range(DEVICES):
        own = [body for _, body in order if body.split("-")[0] == str(n)]
        assert own == [f"{n}-{m}" for m in range(MESSAGES)]
    # One order for all, by whatever way.
    for client in (readers[1].client, shared.client, devices[17]):
        assert texts(client.messages(room, "f", limit=333)) == order
    assert texts(readers[1].client.messages(room, "b", limit=77))[::-1] == order
    for reader, token in zip(readers, since):
        assert texts(_by_sync(reader.client, room, token)) == order


def _by_sync(client: Client, room: str, since: str) -> list[dict]:
    """Everything since a token, by sync, with its gaps filled as a client fills them."""
    events: list[dict] = []
    while True:
        answer = client.sync(since)
        part = answer.get("rooms", {}).get("join", {}).get(room)
        if part is None or not part["timeline"]["events"]:
            return events
        timeline = part["timeline"]
        if timeline.get("limited"):
            gap: list[dict] = []
            token, known = timeline["prev_batch"], {event["event_id"] for event in events}
            while token:
                page = client.ok("GET", f"/_matrix/client/v3/rooms/{room}/messages",
                                 query={"dir": "b", "from": token, "to": since, "limit": 100})
                gap += [event for event in page["chunk"] if event["event_id"] not in known]
                token = page.get("end") if page["chunk"] else None
            events += gap[::-1]
        events += timeline["events"]
        since = answer["next_batch"]


@pytest.mark.parametrize("name", ["職員の氏名"])
def test_who_wrote_it(any_city: Server, name: str):
    """H14, C13: a post of a facility ID can name the member of staff."""
    shared = any_city.person(kind="facility")
    room = any_city.room(shared)
    event = shared.client.say(room, "記録です", **{"jp.heya.author": {"name": name}})
    seen = shared.client.ok("GET", f"/_matrix/client/v3/rooms/{room}/event/{event}")
    assert seen["content"]["jp.heya.author"] == {"name": name}
