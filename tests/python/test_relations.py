"""What relates to an event: bundled aggregations, `/relations`, threads, and what ignored users wrote.

Client-server API, "Aggregations of child events", "Event replacements", "Threading", "Ignoring Users". Each is asked by
a member, by somebody who was removed, by an outsider, and in a room that was closed.
"""

from __future__ import annotations

import itertools

import pytest

from harness import Person, Server, quote, wait_for

C = "/_matrix/client/v3"
V1 = "/_matrix/client/v1"
_txn = itertools.count()


def send(person: Person, room: str, kind: str, content: dict) -> str:
    path = f"{C}/rooms/{quote(room)}/send/{quote(kind)}/rel{next(_txn)}"
    return person.client.ok("PUT", path, content)["event_id"]


def say(person: Person, room: str, text: str, **content) -> str:
    return send(person, room, "m.room.message", {"msgtype": "m.text", "body": text, **content})


def edit(person: Person, room: str, target: str, text: str, **content) -> str:
    new = {"msgtype": "m.text", "body": text}
    return say(person, room, f"* {text}", **({"m.new_content": new, "m.relates_to": {
        "rel_type": "m.replace", "event_id": target}} | content))


def reply(person: Person, room: str, root: str, text: str) -> str:
    return say(person, room, text, **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})


def refer(person: Person, room: str, target: str) -> str:
    return send(person, room, "jp.example.answer", {"m.relates_to": {"rel_type": "m.reference", "event_id": target}})


def react(person: Person, room: str, target: str, key: str) -> str:
    return send(person, room, "m.reaction", {"m.relates_to": {
        "rel_type": "m.annotation", "event_id": target, "key": key}})


def redact(person: Person, room: str, event: str) -> None:
    person.client.ok("PUT", f"{C}/rooms/{quote(room)}/redact/{quote(event)}/rel{next(_txn)}", {})


def ignore(person: Person, *users: Person) -> None:
    person.client.ok("PUT", f"{C}/user/{quote(person.user_id)}/account_data/m.ignored_user_list",
                     {"ignored_users": {user.user_id: {} for user in users}})


def relations(person: Person, room: str, event: str, tail: str = "", **query) -> dict:
    return person.client.ok("GET", f"{V1}/rooms/{quote(room)}/relations/{quote(event)}{tail}", query=query)


def threads(person: Person, room: str, **query) -> dict:
    return person.client.ok("GET", f"{V1}/rooms/{quote(room)}/threads", query=query)


def ids(events: list[dict]) -> list[str]:
    return [event["event_id"] for event in events]


def of(events: list[dict], event_id: str) -> dict:
    """`m.relations` of an event in a list; {} where nothing is bundled."""
    event = next(event for event in events if event["event_id"] == event_id)
    return event["unsigned"].get("m.relations", {})


def everywhere(person: Person, room: str, event: str) -> list[dict]:
    """What is bundled with an event on every path that tells it."""
    client, r = person.client, quote(room)
    around = client.ok("GET", f"{C}/rooms/{r}/context/{quote(event)}")
    before = client.ok("GET", f"{C}/rooms/{r}/messages", query={"dir": "f", "limit": 500})["chunk"]
    after = client.messages(room)
    found = [
        client.ok("GET", f"{C}/rooms/{r}/event/{quote(event)}")["unsigned"].get("m.relations", {}),
        around["event"]["unsigned"].get("m.relations", {}),
        of(before, event),
        of(after, event),
    ]
    timeline = client.sync(filter='{"room":{"timeline":{"limit":100}}}')["rooms"]["join"][room]["timeline"]["events"]
    if event in ids(timeline):
        found.append(of(timeline, event))
    return found


def same(found: list[dict]) -> dict:
    """All paths tell the same, but for the age."""

    def ageless(value):
        if isinstance(value, dict):
            return {key: ageless(one) for key, one in value.items() if key != "age"}
        return [ageless(one) for one in value] if isinstance(value, list) else value

    first = ageless(found[0])
    for one in found[1:]:
        assert ageless(one) == first
    return found[0]


@pytest.fixture(scope="module")
def people(any_city: Server):
    return [any_city.person() for _ in range(4)]


@pytest.fixture
def room(any_city: Server, people) -> str:
    return any_city.room(*people[:3])


# Bundled -------------------------------------------------------------------------------------------------------------


def test_an_edit_is_bundled_with_what_it_replaces(people, room):
    a, b, _, _ = people
    event = say(a, room, "体温36.5")
    assert same(everywhere(b, room, event)) == {}
    edit(a, room, event, "体温36.8")
    last = edit(a, room, event, "体温37.2")
    found = same(everywhere(b, room, event))
    assert set(found) == {"m.replace"}
    replacement = found["m.replace"]
    assert replacement["event_id"] == last and replacement["sender"] == a.user_id
    assert replacement["content"]["m.new_content"]["body"] == "体温37.2"
    assert replacement["room_id"] == room and replacement["type"] == "m.room.message"
    # The original keeps its own content, for whoever looks what it was.
    told = b.client.ok("GET", f"{C}/rooms/{quote(room)}/event/{quote(event)}")
    assert told["content"]["body"] == "体温36.5"


def test_only_a_valid_edit_replaces(people, room):
    """The same sender, the same type, new content; and no edit of an edit."""
    a, b, _, _ = people
    event = say(a, room, "本文")
    good = edit(a, room, event, "訂正")
    edit(b, room, event, "他人の訂正")
    send(a, room, "jp.example.note", {"m.new_content": {}, "m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    say(a, room, "* 中身なし", **{"m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    say(a, room, "* 文字", **{"m.new_content": "x", "m.relates_to": {"rel_type": "m.replace", "event_id": event}})
    edit(a, room, good, "訂正の訂正")
    found = same(everywhere(b, room, event))
    assert found["m.replace"]["event_id"] == good
    assert same(everywhere(b, room, good)) == {}


def test_a_redacted_edit_vanishes_and_a_redacted_event_has_none(people, room):
    a, b, _, _ = people
    event = say(a, room, "本文")
    first = edit(a, room, event, "一")
    second = edit(a, room, event, "二")
    redact(a, room, second)
    assert same(everywhere(b, room, event))["m.replace"]["event_id"] == first
    redact(a, room, event)
    assert same(everywhere(b, room, event)) == {}


def test_a_thread_is_told_with_its_newest_reply(people, room):
    a, b, c, _ = people
    root = say(a, room, "相談")
    reply(b, room, root, "一")
    last = reply(b, room, root, "二")
    found = same(everywhere(c, room, root))
    assert set(found) == {"m.thread"}
    thread = found["m.thread"]
    assert thread["count"] == 2 and thread["latest_event"]["event_id"] == last
    assert thread["current_user_participated"] is False
    assert same(everywhere(a, room, root))["m.thread"]["current_user_participated"] is True, "who began it took part"
    assert same(everywhere(b, room, root))["m.thread"]["current_user_participated"] is True
    # The newest reply is told as it was edited, and a redacted one does not count.
    edited = edit(b, room, last, "二の訂正")
    newest = same(everywhere(c, room, root))["m.thread"]["latest_event"]
    assert newest["unsigned"]["m.relations"]["m.replace"]["event_id"] == edited
    redact(b, room, last)
    thread = same(everywhere(c, room, root))["m.thread"]
    assert thread["count"] == 1 and thread["latest_event"]["content"]["body"] == "一"


def test_references_are_told_and_reactions_are_not(people, room):
    a, b, c, _ = people
    event = say(a, room, "アンケート")
    answers = [refer(b, room, event), refer(c, room, event)]
    react(b, room, event, "👍")
    found = same(everywhere(a, room, event))
    assert found == {"m.reference": {"chunk": [{"event_id": one} for one in answers]}}


def test_memory_and_the_database_tell_the_same(any_city, people, room):
    """An event that has left memory is told with the same relations."""
    a, b, c, _ = people
    root = say(a, room, "昔の話")
    reply(b, room, root, "返事")
    edit(a, room, root, "昔の話（訂正）")
    refer(c, room, root)
    wrong = edit(b, room, root, "他人の訂正")
    before = same(everywhere(b, room, root))
    assert set(before) == {"m.replace", "m.thread", "m.reference"}
    for i in range(140):
        say(a, room, f"その後{i}")
    found = everywhere(b, room, root)
    assert len(found) == 4, "it is no longer in what sync tells"
    after = same(found)
    assert after["m.replace"]["event_id"] == before["m.replace"]["event_id"] != wrong
    assert after["m.thread"]["count"] == 1 and after["m.reference"] == before["m.reference"]
    # Something new that relates to the old event is in memory while the event is not.
    last = reply(c, room, root, "最近の返事")
    assert same(everywhere(b, room, root))["m.thread"]["latest_event"]["event_id"] == last
    # An invalid edit as the newest of its sender's does not hide the valid one before it.
    say(a, room, "* 中身なし", **{"m.relates_to": {"rel_type": "m.replace", "event_id": root}})
    assert same(everywhere(b, room, root))["m.replace"]["event_id"] == before["m.replace"]["event_id"]


def test_search_tells_what_relates(people, room):
    a, b, _, _ = people
    event = say(a, room, "関係検索の語")
    last = reply(b, room, event, "返事です")
    body = {"search_categories": {"room_events": {"search_term": "関係検索", "event_context": {
        "before_limit": 0, "after_limit": 1}}}}

    def found() -> dict | None:
        results = b.client.ok("POST", f"{C}/search", body)["search_categories"]["room_events"]["results"]
        return next((one["result"] for one in results if one["result"]["event_id"] == event), None)

    hit = wait_for(found, 30, 0.1, "the event in the index")
    assert hit["unsigned"]["m.relations"]["m.thread"]["latest_event"]["event_id"] == last


# /relations ----------------------------------------------------------------------------------------------------------


def test_relations_page_both_ways(people, room):
    a, b, _, _ = people
    root = say(a, room, "話")
    replies = [reply(b, room, root, str(i)) for i in range(7)]
    react(a, room, root, "👍")
    seen, start = [], None
    while True:
        page = relations(b, room, root, "/m.thread", limit=3, dir="b", **({"from": start} if start else {}))
        seen += ids(page["chunk"])
        start = page.get("next_batch")
        if start is None:
            break
    assert seen == replies[::-1]
    seen, start = [], None
    while True:
        page = relations(b, room, root, "/m.thread", limit=3, dir="f", **({"from": start} if start else {}))
        seen += ids(page["chunk"])
        start = page.get("next_batch")
        if start is None:
            break
    assert seen == replies
    # Back from the second page to the first.
    first = relations(b, room, root, "/m.thread", limit=3)
    second = relations(b, room, root, "/m.thread", limit=3, **{"from": first["next_batch"]})
    back = relations(b, room, root, "/m.thread", dir="f", **{"from": second["prev_batch"]})
    assert ids(back["chunk"]) == ids(first["chunk"])[::-1]
    assert "prev_batch" not in first
    assert ids(relations(b, room, root, "/m.annotation/m.reaction")["chunk"]) != []
    assert relations(b, room, root, "/m.annotation/m.room.message")["chunk"] == []


def test_relations_recurse(people, room):
    """Indirect relations come along, three levels deep."""
    a, b, _, _ = people
    root = say(a, room, "根")
    one = reply(b, room, root, "枝")
    heart = react(a, room, one, "❤")
    two = refer(b, room, heart)
    three = refer(b, room, two)
    assert ids(relations(a, room, root)["chunk"]) == [one]
    found = relations(a, room, root, recurse="true")
    assert ids(found["chunk"]) == [two, heart, one] and found["recursion_depth"] == 3
    assert three not in ids(found["chunk"])
    assert "recursion_depth" not in relations(a, room, root)
    assert ids(relations(a, room, root, "/m.annotation", recurse="true")["chunk"]) == [heart]
    assert ids(relations(a, room, root, recurse="true", dir="f", limit=2)["chunk"]) == [one, heart]
    page = relations(a, room, root, recurse="true", limit=2)
    rest = relations(a, room, root, recurse="true", limit=2, **{"from": page["next_batch"]})
    assert ids(page["chunk"]) + ids(rest["chunk"]) == [two, heart, one] and "next_batch" not in rest


def test_relations_of_what_is_not_there(people, room):
    a, _, _, outsider = people
    event = say(a, room, "話")
    path = f"{V1}/rooms/{quote(room)}/relations/"
    assert a.client.get(path + quote("$nothing")).told == (404, "M_NOT_FOUND")
    assert outsider.client.get(path + quote(event)).told == (403, "M_FORBIDDEN")
    assert a.client.get(path + quote(event) + "?from=x").told == (400, "M_INVALID_PARAM")


# Threads -------------------------------------------------------------------------------------------------------------


def test_threads_are_listed_by_their_newest_reply(people, room):
    a, b, c, outsider = people
    roots = [say(a, room, f"話{i}") for i in range(4)]
    for root in roots:
        reply(b, room, root, "返事")
    reply(c, room, roots[0], "また")
    found = threads(a, room)
    assert ids(found["chunk"]) == [roots[0], roots[3], roots[2], roots[1]] and "next_batch" not in found
    assert of(found["chunk"], roots[0])["m.thread"]["count"] == 2
    # A message without a thread is none, and neither is one whose replies were redacted.
    say(a, room, "ただの話")
    alone = say(c, room, "独り言")
    redact(c, room, reply(c, room, alone, "間違い"))
    assert alone not in ids(threads(a, room)["chunk"])
    mine = threads(c, room, include="participated")
    assert ids(mine["chunk"]) == [roots[0]]
    assert ids(threads(a, room, include="participated")["chunk"]) == ids(found["chunk"]), "who began it took part"
    first = threads(a, room, limit=3)
    rest = threads(a, room, limit=3, **{"from": first["next_batch"]})
    assert ids(first["chunk"]) + ids(rest["chunk"]) == ids(found["chunk"]) and "next_batch" not in rest
    path = f"{V1}/rooms/{quote(room)}/threads"
    assert a.client.get(path + "?from=x").told == (400, "M_INVALID_PARAM")
    assert outsider.client.get(path).told == (403, "M_FORBIDDEN")


# Ignored users -------------------------------------------------------------------------------------------------------


def test_ignored_users_are_left_out(people, room):
    a, b, c, _ = people
    root = say(a, room, "無視検索の話")
    reply(c, room, root, "返事")
    heard = say(b, room, "無視検索の発言")
    last = reply(b, room, root, "無視される返事")
    theirs = say(b, room, "無視される話題")
    reply(c, room, theirs, "返事")
    refer(b, room, root)
    since = a.client.sync()["next_batch"]
    assert same(everywhere(a, room, root))["m.thread"]["count"] == 2
    ignore(a, b)
    try:
        found = same(everywhere(a, room, root))
        assert found["m.thread"]["count"] == 1 and "m.reference" not in found
        assert ids(relations(a, room, root)["chunk"]) == ids(relations(a, room, root, recurse="true")["chunk"])
        assert last not in ids(relations(a, room, root)["chunk"])
        shown = a.client.messages(room)
        assert heard not in ids(shown) and root in ids(shown)
        # State of theirs is told all the same.
        assert any(event["type"] == "m.room.member" and event["state_key"] == b.user_id for event in shown)
        event = f"{C}/rooms/{quote(room)}/event/{quote(heard)}"
        assert a.client.get(event).told == (404, "M_NOT_FOUND") and c.client.get(event).status == 200
        around = a.client.ok("GET", f"{C}/rooms/{quote(room)}/context/{quote(root)}?limit=50")
        assert heard not in ids(around["events_after"])
        later = say(b, room, "後の発言")
        told = a.client.sync(since).get("rooms", {}).get("join", {}).get(room, {}).get("timeline", {}).get("events", [])
        assert later not in ids(told)
        body = {"search_categories": {"room_events": {"search_term": "無視検索"}}}


        def hits() -> list[str]:
            results = a.client.ok("POST", f"{C}/search", body)["search_categories"]["room_events"]["results"]
            return [hit["result"]["event_id"] for hit in results]

        wait_for(lambda: hits() == [root], 30, 0.1, "the event in the index, alone")
        # The root of theirs is told as if it had been redacted.
        listed = threads(a, room)["chunk"]
        emptied = next(one for one in listed if one["event_id"] == theirs)
        assert emptied["content"] == {} and emptied["unsigned"]["m.relations"]["m.thread"]["count"] == 1
        assert "無視される話題" not in str(listed)
    finally:
        ignore(a)
    assert heard in ids(a.client.messages(room)), "all of it comes back"


def test_unread_counts_leave_ignored_users_out(people, room):
    a, b, c, _ = people

    def count() -> int:
        return a.client.sync()["rooms"]["join"][room]["unread_notifications"]["notification_count"]

    a.client.ok("POST", f"{C}/rooms/{quote(room)}/receipt/m.read/{quote(say(a, room, '既読'))}", {})
    say(b, room, "一")
    say(c, room, "二")
    assert count() == 2
    ignore(a, b)
    try:
        assert count() == 1
        say(b, room, "三")
        assert count() == 1
    finally:
        ignore(a)
    assert count() == 3


def test_the_city_is_never_ignored(any_city, people):
    a, b, _, _ = people
    a.client.ok("PUT", f"{C}/user/{quote(a.user_id)}/account_data/m.ignored_user_list",
                {"ignored_users": {any_city.city_user: {}, a.user_id: {}}})
    try:
        room = any_city.room(a, b)
        mine = say(a, room, "自分")
        assert any(event["sender"] == any_city.city_user and event["type"] == "m.room.message"
                   for event in a.client.messages(room))
        assert mine in ids(a.client.messages(room))
    finally:
        ignore(a)


def test_an_ignored_users_invitation_is_not_told(people):
    a, b, _, _ = people
    ignore(a, b)
    try:
        room = b.client.ok("POST", f"{C}/createRoom", {"invite": [a.user_id], "is_direct": True})["room_id"]
        assert room not in a.client.sync()["rooms"].get("invite", {})
    finally:
        ignore(a)
    assert room in a.client.sync()["rooms"]["invite"]


def test_a_list_that_is_none_ignores_nobody(people, room):
    a, b, _, _ = people
    for content in ({}, {"ignored_users": [b.user_id]}, {"ignored_users": b.user_id}):
        a.client.ok("PUT", f"{C}/user/{quote(a.user_id)}/account_data/m.ignored_user_list", content)
        event = say(b, room, "聞こえる")
        assert event in ids(a.client.messages(room))
    ignore(a)


# Who may ask ---------------------------------------------------------------------------------------------------------


def test_outsiders_and_former_members_read_no_relations(any_city, people, room):
    a, b, c, outsider = people
    root = say(a, room, "話")
    reply(b, room, root, "返事")
    any_city.change_members(room, remove=[c])
    r, e = quote(room), quote(root)
    for person in (outsider, c):
        for path in (f"{V1}/rooms/{r}/relations/{e}", f"{V1}/rooms/{r}/relations/{e}/m.thread", f"{V1}/rooms/{r}/threads",
                     f"{C}/rooms/{r}/event/{e}", f"{C}/rooms/{r}/context/{e}"):
            # One event that cannot be seen is one that is not there (client-server API, GET /event).
            expected = (404, "M_NOT_FOUND") if "/event/" in path else (403, "M_FORBIDDEN")
            assert person.client.get(path).told == expected, path


def test_a_closed_room_is_read_with_its_relations(any_city, people, room):
    a, b, _, _ = people
    root = say(a, room, "話")
    reply(b, room, root, "返事")
    edit(a, room, root, "訂正")
    any_city.close_room(room)
    assert set(same(everywhere(b, room, root))) == {"m.replace", "m.thread"}
    assert ids(threads(b, room)["chunk"]) == [root]
    path = f"{C}/rooms/{quote(room)}/send/m.room.message/closed{next(_txn)}"
    for relation in ({"rel_type": "m.thread", "event_id": root}, {"rel_type": "m.replace", "event_id": root}):
        answer = a.client.put(path, {"msgtype": "m.text", "body": "x", "m.new_content": {}, "m.relates_to": relation})
        assert answer.told == (403, "M_FORBIDDEN")


def test_history_from_before_is_not_bundled(fresh):
    """Who sees from joining on is told of no reply from before: the count is of what they may read."""
    server = fresh(profile="open")
    a, b = server.register(), server.register()
    made = a.client.ok("POST", f"{C}/createRoom", {"preset": "public_chat", "initial_state": [
        {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}}]})["room_id"]
    root = say(a, made, "before")
    reply(a, made, root, "before too")
    b.client.ok("POST", f"{C}/join/{quote(made)}", {})
    reply(a, made, root, "after")
    assert b.client.get(f"{V1}/rooms/{quote(made)}/relations/{quote(root)}").told == (404, "M_NOT_FOUND")
    assert threads(b, made)["chunk"] == []
    second = say(a, made, "root")
    reply(b, made, second, "one")
    b.client.ok("POST", f"{C}/rooms/{quote(made)}/leave", {})
    reply(a, made, second, "two")
    # Former members read up to where they left here, and count no further.
    assert threads(b, made)["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"] == 1
    assert threads(a, made)["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"] == 2
