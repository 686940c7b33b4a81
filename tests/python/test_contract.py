"""The client-server API held against the specification's own data (OpenAPI, v1.19), in a city and in the open profile.

Valid requests: for every operation that is served, a scenario (scenarios.py) whose answers have the specified status and
error code and validate against the response schema; contents of events validate against the event schemas.

Invalid ones: thousands made from the valid ones (mutations.py). None is answered with a 5xx or not at all, every error is
a Matrix error object with a code of the specification, and the server goes on.

MATRIX_SPEC_DIR is where the data is. HEYA_CONTRACT_SEED, HEYA_CONTRACT_CASES (per operation) and
HEYA_CONTRACT_SECONDS make another run, or a longer one.
"""

from __future__ import annotations

import collections
import dataclasses
import http.client
import os
import re
import time
import urllib.parse

import pytest

import spec
from harness import Answer, Postgres
from mutations import Mutator, Request
from scenarios import NO_BODY, SCENARIOS, UNTRIED, Call, World, further, send
from test_coverage import MISSING, refusal, routes, served

pytestmark = pytest.mark.skipif(not spec.DATA.is_dir(), reason=spec.WHY_NOT)

PROFILES = ("city", "open")
SEED = os.environ.get("HEYA_CONTRACT_SEED", "1")
CASES = int(os.environ.get("HEYA_CONTRACT_CASES", "16"))
SECONDS = float(os.environ.get("HEYA_CONTRACT_SECONDS", "60"))

# Codes that clients know though the specification's text and data do not name them.
FURTHER_CODES = {"M_WEAK_PASSWORD": "MSC2000; Element has words for it", "M_UNKNOWN_POS": "MSC4186"}
# What fails, and why; a fix must take its line out. (profile or "both", operation)
KNOWN: dict[tuple[str, str], str] = {
}
# Members of bodies and parameters of queries that the server does not read, and so does not check.
UNREAD: dict[str, tuple[str, ...]] = {
    "claimKeys": ("timeout",), "queryKeys": ("timeout",),  # no other server is asked
    "getContentAuthed": ("timeout_ms",), "getContentOverrideNameAuthed": ("timeout_ms",),
    "getContentThumbnailAuthed": ("timeout_ms", "animated"),
    "queryPublicRooms": ("include_all_networks",), "requestTokenTo3PIDEmail": ("id_server", "id_access_token"),
    "postPusher": ("app_display_name", "device_display_name", "data", "lang", "append"),  # of a pusher that is to go
    "setPushRule": ("conditions", "pattern"),  # of rules of another kind
    "sync": ("set_presence",),  # presence is off
}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong request: the first one of the operation's scenario with these members, this body or this query."""

    body: dict[str, object] = dataclasses.field(default_factory=dict)
    inside: str = ""  # the member that `body` changes
    without: str = ""
    raw: bytes | None = None
    query: dict[str, str] = dataclasses.field(default_factory=dict)


BROKEN = {"signed_curve25519:AAAA": [None]}
# What the generated requests have found, and what is like it. (operation, how the finding begins)
WRONG: dict[tuple[str, str], Wrong] = {
    ("login", "no answer"): Wrong(raw=b"{}"),
    ("login", "no answer, empty"): Wrong(raw=b""),
    ("createRoom", "a wrong body was taken: visibility"): Wrong({"visibility": "x"}),
    ("delete3pidFromAccount", "a wrong body was taken: medium"): Wrong({"medium": "x"}),
    ("getMembersByRoom", "a wrong query was taken: membership"): Wrong(query={"membership": "x"}),
    ("getMembersByRoom", "a wrong query was taken: not_membership"): Wrong(query={"not_membership": "x"}),
    ("getThreadRoots", "a wrong query was taken: include"): Wrong(query={"include": "x"}),
    ("getRoomStateWithKey", "a wrong query was taken: format"): Wrong(query={"format": "x"}),
    ("sync", "a wrong query was taken: use_state_after"): Wrong(query={"use_state_after": "x"}),
    ("sync", "a wrong query was taken: full_state"): Wrong(query={"full_state": "x"}),
    ("pingAppservice", "a wrong body was taken: the whole"): Wrong(raw=b'"x"'),
    ("pingAppservice", "a wrong body was taken: transaction_id"): Wrong({"transaction_id": 5}),
    ("postPusher", "a wrong body was taken: a required member"): Wrong(without="kind"),
    ("search", "a wrong body was taken: search_categories.room_events.order_by"): Wrong(
        {"search_categories": {"room_events": {"search_term": "x", "order_by": "x"}}}),
    ("search", "a wrong body was taken: search_categories.room_events.groupings"): Wrong(
        {"search_categories": {"room_events": {"search_term": "x", "groupings": {"group_by": [{"key": "x"}]}}}}),
    ("sendToDevice", "a wrong body was taken: messages"): Wrong({"messages": {"@x:example.jp": {"*": "x"}}}),
    ("setPresence", "a body that is no JSON was taken"): Wrong(raw=b'{"presence":"online"}{}'),
    ("setPresence", "a wrong body was taken: the whole"): Wrong(raw=b"1.5"),
    ("setPresence", "a wrong body was taken: a required member"): Wrong(without="presence"),
    ("setPresence", "a wrong body was taken: presence"): Wrong({"presence": "x"}),
    ("setPresence", "a wrong body was taken: status_msg"): Wrong({"status_msg": 5}),
    ("setRoomTag", "a wrong body was taken: order"): Wrong({"order": "x"}),
    ("uploadKeys", "a wrong body was taken: the whole"): Wrong(raw=b"[null]"),
    ("updateDevice", "a wrong body was taken: the whole"): Wrong(raw=b"[null]"),
    ("postReceipt", "a wrong body was taken: the whole"): Wrong(raw=b"[]"),
    ("uploadKeys", "a wrong body was taken: one_time_keys"): Wrong({"one_time_keys": BROKEN}),
    ("uploadKeys", "a wrong body was taken: fallback_keys"): Wrong({"fallback_keys": BROKEN}),
    ("uploadKeys", "a wrong body was taken: device_keys"): Wrong({"algorithms": [True]}, inside="device_keys"),
}
# Those that are not right yet.
KNOWN_WRONG: set[tuple[str, str]] = set()
# What follows from them elsewhere, and cannot be asked by itself. "*" is every operation.
FOLLOWS: set[tuple[str, str]] = set()
# What the log holds because of them.
KNOWN_IN_LOG: tuple[str, ...] = ()


def is_served(operation: spec.Operation) -> bool:
    return (operation.method, spec.shape(operation.path)) in served() and operation.name not in MISSING


@pytest.fixture(scope="module", params=PROFILES)
def world(request: pytest.FixtureRequest) -> World:
    """The city is on SQLite, the open profile on PostgreSQL: what one of them cannot store shows here."""
    database = "sqlite"
    if request.param == "open":
        try:
            Postgres.shared()
            database = "postgres"
        except RuntimeError as error:
            print(f"on SQLite: {error}")
    world = World(request.param, database)
    yield world
    world.close()


def test_every_operation_has_a_scenario_or_a_reason():
    names = set(spec.operations())
    assert len(names) == 166
    assert not names - set(SCENARIOS) - set(UNTRIED), "operations without a scenario"
    assert not (set(SCENARIOS) | set(UNTRIED)) - names, "scenarios of operations that are not in the specification"
    assert all(UNTRIED.values()) and all(why for entry in SCENARIOS.values() for why in entry.not_in.values())


def test_the_table_is_the_data():
    """endpoints.tsv names the operations of the data, no more and no less."""
    listed = {(row.operation, row.method, row.path) for row in spec.endpoints() if row.api == "client-server"}
    assert listed == {(one.name, one.method, one.path) for one in spec.operations().values()}


# Valid requests ------------------------------------------------------------------------------------------------------


def error_faults(answer: Answer, body: object) -> list[str]:
    """What is wrong with an error's body (client-server API, "Standard error response")."""
    if not isinstance(body, dict):
        return ["the error is no JSON object"]
    if answer.status == 401 and "flows" in body:
        # User-interactive authentication.
        fine = isinstance(body.get("session"), str) and isinstance(body["flows"], list)
        return [] if fine else ["the flows of user-interactive authentication are not whole"]
    code = body.get("errcode")
    if not isinstance(code, str) or not isinstance(body.get("error"), str):
        return ["the error has no errcode and error"]
    return [] if code in spec.all_codes() or code in FURTHER_CODES else [f"{code} is no code of the specification"]


def answer_faults(operation: spec.Operation, answer: Answer, with_events: bool = True) -> list[str]:
    """What is wrong with an answer by itself; with the contents of its events, unless the test has written nonsense."""
    if 300 <= answer.status < 400:
        return [] if answer.headers["Location"] else ["a redirection to nowhere"]
    schema = operation.schema(answer.status)
    if answer.status < 400 and schema is None:
        return []  # a file, or nothing that is described
    kind = (answer.headers["Content-Type"] or "").split(";")[0]
    if kind != "application/json":
        return [f"the type of the answer is {kind!r}"]
    try:
        body = answer.json
    except ValueError:
        return ["the answer is no JSON"]
    found: list[str] = []
    if answer.status >= 400:
        found = error_faults(answer, body)
        if answer.status == 401 and "flows" not in body:
            schema = None  # about the token, not about user-interactive authentication
    elif with_events:
        found = spec.event_faults(body)
    return found + (spec.faults(body, schema) if schema is not None else [])


def play(world: World, operation: spec.Operation) -> list[str]:
    """Plays a scenario; what was wrong."""
    run = SCENARIOS[operation.name].run(world)
    found: list[str] = []
    number = 0
    try:
        call = next(run)
        while True:
            number += 1
            answer = send(world, operation.method, operation.path, call)
            told = f"call {number}, {answer.status} {answer.content[:400].decode(errors='replace')}"
            if answer.status != call.status or (call.errcode and answer.errcode != call.errcode):
                found.append(f"{told}: {call.status} {call.errcode or ''} is specified")
            if answer.status < 400 and str(answer.status) not in operation.responses:
                found.append(f"{told}: the specification has no such status")
            found += [f"{told}: {fault}" for fault in answer_faults(operation, answer)]
            call = run.send(answer)
    except StopIteration:
        assert number, "a scenario without a call"
    except (AssertionError, KeyError, ValueError) as error:
        if not found:
            raise
        found.append(f"the rest was not tried: {error!r}"[:300])
    return found


def names() -> list[str]:
    return sorted(spec.operations()) if spec.DATA.is_dir() else []


@pytest.mark.parametrize("name", names())
def test_valid(world: World, name: str, request: pytest.FixtureRequest):
    operation = spec.operations()[name]
    entry = SCENARIOS.get(name)
    if entry is None:
        pytest.skip(UNTRIED[name])
    if not is_served(operation):
        pytest.skip("not served yet (docs/coverage.md)")
    if world.profile in entry.not_in:
        pytest.skip(entry.not_in[world.profile])
    if (refused := refusal(name)) and refused.applies(world.profile):
        pytest.skip(f"refused by {refused.setting}: test_coverage.py asks")
    why = KNOWN.get((world.profile, name)) or KNOWN.get(("both", name))
    if why:
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    found = play(world, operation)
    assert not found, "\n".join(found)


# Invalid requests ----------------------------------------------------------------------------------------------------


class Sender:
    """Sends bytes as they are, over kept connections, one for each address and certificate."""

    def __init__(self) -> None:
        self.connections: dict[tuple, http.client.HTTPConnection] = {}

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()

    def send(self, request: Request) -> Answer | str:
        """The answer, or why there was none."""
        key = (request.client.base, request.client.cert)
        for _ in range(2):
            kept = self.connections.pop(key, None)
            try:
                connection = kept or request.client.connect()
                # Paths that no client would send.
                connection._validate_path = lambda _: None
                connection.putrequest(request.method, request.path, skip_accept_encoding=True)
                if request.body is not None:
                    connection.putheader("Content-Length", str(len(request.body)))
                for name, value in request.headers:
                    connection.putheader(name, value)
                connection.endheaders(request.body)
                response = connection.getresponse()
                answer = Answer(response.status, response.headers, response.read())
                if not response.will_close:
                    self.connections[key] = connection
                return answer
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                why = f"no answer: {type(error).__name__}"
                if kept is None:
                    return why
        return why


# A body beyond limits.json_bytes may be cut off.
CUT_OFF = 1_048_576
# Statuses of 5xx that an operation may have because somebody else does not answer (the specification lists them).
ELSEWHERE = {502, 504}


def without_nulls(value: object) -> object:
    """Members that are null count as not there: clients in languages with options send them."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def body_faults(operation: spec.Operation, value: object) -> list[str]:
    """Where a JSON body is wrong, with its nulls and without them."""
    unread = UNREAD.get(operation.name, ())
    ways = [[place for place in spec.wrong_places(one, operation.body) if place.split(".")[0] not in unread]
            for one in (value, without_nulls(value))]
    return min(ways, key=len)


def query_faults(operation: spec.Operation, query: list[tuple[str, str]]) -> list[str]:
    """What is wrong with the parameters of a query that the specification describes. An empty one counts as not there."""
    found = []
    given = {name: urllib.parse.unquote_plus(value) for name, value in query}
    for one in operation.parameters:
        if one.where != "query" or sum(name == one.name for name, _ in query) > 1:
            continue  # which of two counts is not said
        value = given.get(one.name)
        if not value:
            found += [f"{one.name} is missing"] if one.required and value is None else []
        elif one.schema.get("type") == "integer" and not re.fullmatch(r"[+-]?\d+", value):
            found.append(f"{one.name} is no integer")
        elif one.schema.get("type") == "boolean" and value not in ("true", "false"):
            found.append(f"{one.name} is no boolean")
        elif "enum" in one.schema and value not in one.schema["enum"]:
            found.append(f"{one.name} has a value that is not in the list")
    return found


def invalid_faults(operation: spec.Operation, request: Request, answer: Answer | str, schemas: bool) -> list[str]:
    """What is wrong with the answer to a wrong request. `schemas`: where it succeeds, it validates all the same."""
    if isinstance(answer, str):
        return [] if len(request.body or b"") > CUT_OFF else [answer]
    if answer.status >= 500 and not (answer.status in ELSEWHERE and str(answer.status) in operation.responses):
        return [f"status {answer.status}"]
    if request.method != operation.method and answer.status < 400:
        return ["a method that the specification does not have was answered"]
    if not operation.path.startswith(("/_matrix/", "/_synapse/", "/.well-known/")):
        return []  # pages, and what speaks OAuth's errors
    if answer.status < 400 and operation.body is not None and request.body is not None:
        if request.value is NO_BODY and request.body:
            return ["a body that is no JSON was taken"]
        if request.body:
            if wrong := body_faults(operation, request.value):
                return [f"a wrong body was taken: {place}" for place in wrong]
    if answer.status < 400:
        wrong = [fault for fault in query_faults(operation, request.query) if fault.split(" ")[0] not in UNREAD.get(operation.name, ())]
        if wrong:
            return [f"a wrong query was taken: {fault}" for fault in wrong]
        if not schemas:
            return []
    try:
        return answer_faults(operation, answer, with_events=False)
    except RecursionError:
        return ["the answer cannot be read"]


def first_call(world: World, name: str) -> Call:
    """The operation as its scenario asks for it first."""
    run = SCENARIOS[name].run(world)
    call = next(run)
    run.close()
    call.client = call.client or world.me.client
    return call


def asked(world: World) -> list[spec.Operation]:
    """All that the server serves: the specification's operations, and whatever else has a route."""
    found = [operation for name, operation in sorted(spec.operations().items())
             if name in SCENARIOS and is_served(operation) and world.profile not in SCENARIOS[name].not_in]
    shapes = {(one.method, spec.shape(one.path)) for one in spec.operations().values()}
    for method, path in sorted(routes()):
        if (method, spec.shape(path)) in shapes or "/r0/" in path:
            continue
        query = [spec.Parameter("query", name, False, {}) for name in ("pos", "timeout", "from", "limit", "order_by")]
        api = path.startswith(("/_matrix/", "/_synapse/"))
        found.append(spec.Operation(f"{method} {path}", method, path, query, {} if api and method in ("POST", "PUT") else None,
                                    not api, {}, ""))
    return found


@pytest.mark.timeout(max(600, SECONDS * 2 + 200))
def test_invalid(world: World):
    """Thousands of wrong requests; fewer in a city, since it forbids much before it looks."""
    cases = CASES if world.profile == "open" else max(CASES // 2, 5)
    print(f"HEYA_CONTRACT_SEED={SEED} HEYA_CONTRACT_CASES={CASES}: {cases} requests per operation")
    sender = Sender()
    known = {operation for profile, operation in KNOWN if profile in ("both", world.profile)}
    findings: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    sent, statuses, not_asked = 0, collections.Counter(), []
    began = time.monotonic()
    operations = {one.name: (one, Mutator(one, f"{SEED}/{world.profile}")) for one in asked(world)}
    calls: dict[str, Call] = {}
    for number in range(cases):
        if number >= 5 and time.monotonic() - began > SECONDS:
            print(f"after {SECONDS:.0f} s: {number} requests per operation (HEYA_CONTRACT_SECONDS)")
            break
        for name, (operation, mutator) in list(operations.items()):
            if number % 20 == 0:
                try:
                    calls[name] = first_call(world, name) if name in SCENARIOS else further(world, operation.method, operation.path)
                except AssertionError:
                    not_asked.append(name)  # what it needs is refused, or missing
                    del operations[name]
                    continue
            request = mutator.request(calls[name])
            answer = sender.send(request)
            sent += 1
            statuses[answer.status if isinstance(answer, Answer) else "none"] += 1
            for fault in invalid_faults(operation, request, answer, schemas=name not in known):
                told = answer if isinstance(answer, str) else f"{answer.status} {answer.content[:200]!r}"
                fault = re.sub(r"'[@!$#][^']*'", "…", fault)
                findings[name, fault[:80]].append(f"{request} → {told}")
    sender.close()
    print(f"{sent} requests in {time.monotonic() - began:.0f} s: {dict(statuses)}; not asked: {', '.join(not_asked) or 'none'}")
    assert len(operations) > 100 and sent >= 500, "too few operations were asked"
    assert world.me.client.get("/_matrix/client/v3/account/whoami").status == 200, "the server goes on"
    world.me.client.say(world.room, "それでも動く")
    unknown = {key: examples for key, examples in findings.items()
               if not any(name in (key[0], "*") and key[1].startswith(start) for name, start in KNOWN_WRONG | FOLLOWS)}
    assert not unknown, "\n".join(f"{name}: {fault} ({len(examples)}×)\n    {examples[0]}" for (name, fault), examples in sorted(unknown.items()))


@pytest.mark.parametrize("row", sorted(WRONG), ids=lambda row: f"{row[0]}: {row[1]}")
def test_wrong(world: World, row: tuple[str, str], request: pytest.FixtureRequest):
    """Each by itself: what was found once stays refused."""
    name, _ = row
    if not is_served(spec.operations()[name]):
        pytest.skip("not served yet (docs/coverage.md)")
    if (refused := refusal(name)) and refused.applies(world.profile):
        pytest.skip(f"refused by {refused.setting}")
    if row in KNOWN_WRONG:
        request.applymarker(pytest.mark.xfail(strict=True, reason="taken, or not answered"))
    operation, wrong, call = spec.operations()[name], WRONG[row], first_call(world, name)
    if isinstance(call.body, dict):
        changed = {wrong.inside: call.body[wrong.inside] | wrong.body} if wrong.inside else wrong.body
        call.body = {key: value for key, value in (call.body | changed).items() if key != wrong.without}
    if wrong.raw is not None:
        call.body, call.raw, call.headers = NO_BODY, wrong.raw, call.headers | {"Content-Type": "application/json"}
    call.query = call.query | wrong.query
    try:
        answer = send(world, operation.method, operation.path, call)
    except (http.client.HTTPException, OSError) as error:
        pytest.fail(f"no answer: {error!r}")
    assert answer.status == 400 and not error_faults(answer, answer.json), answer


def test_a_refusal_reaches_who_is_still_sending(world: World):
    """A client whose session has ended hears of it with its upload, not of a broken connection."""
    client = world.server.public(world.me.terminal, "unknown")
    try:
        answer = client.request("POST", "/_matrix/media/v3/upload", body=b"x" * 20_000_000, headers={"Content-Type": "text/plain"})
    except OSError as error:
        pytest.fail(f"no answer: {error!r}")
    finally:
        client.close()
    assert answer.told == (401, "M_UNKNOWN_TOKEN")


def test_nothing_bad_in_the_log(world: World):
    """After all of it: no panic, and no error that the server could not name."""
    bad = [line for line in world.server.log().splitlines() if "panicked at" in line or " ERROR " in line]
    unknown = [line for line in bad if not any(known in line for known in KNOWN_IN_LOG)]
    assert not unknown, "\n".join(dict.fromkeys(unknown))
