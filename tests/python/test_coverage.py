"""docs/coverage.md: what of the Matrix specification Heya serves, refuses by policy, or lacks.

The page is made of three tables (endpoints.tsv: the operations; policies.tsv: the refusals; MISSING below) and of the
router. `HEYA_WRITE_COVERAGE=1` writes it anew; without it this test fails where the page is not what it would be. Every
refusal is asked for, and every operation that is called missing is.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import tomllib

import pytest

import spec
from harness import ROOT, binary
from scenarios import SCENARIOS, World, send

PAGE = ROOT / "docs" / "coverage.md"
POLICIES = ROOT / "tests" / "policies.tsv"

# Not there yet: no route, or one that says M_UNRECOGNIZED. Whoever adds one takes it out of here.
MISSING: frozenset[str] = frozenset("""
""".split())

# The calls that the server makes to appservices: the source that makes each, and how it names it.
APPSERVICE_CALLS = {
    "ping": ("mod.rs", r"/_matrix/app/v1/ping"),
    "sendTransaction": ("delivery.rs", r"/_matrix/app/v1/transactions/\{txn_id\}"),
    "queryUserById": ("ask.rs", r'&\["users", '),
    "queryRoomByAlias": ("ask.rs", r'&\["rooms", '),
    "getProtocolMetadata": ("ask.rs", r'&\["thirdparty", "protocol", '),
    "queryUserByProtocol": ("ask.rs", r'&\["thirdparty", kind, '),
    "queryLocationByProtocol": ("ask.rs", r'&\["thirdparty", kind, '),
    "queryUserByID": ("ask.rs", r'&\["thirdparty", "user"\]'),
    "queryLocationByAlias": ("ask.rs", r'&\["thirdparty", "location"\]'),
}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An operation that a policy refuses. `setting` is one of config.toml, "profile" where only the open profile allows it,
    or "always"."""

    operation: str
    method: str
    path: str
    setting: str
    value: str
    status: int
    errcode: str
    reason: str

    def applies(self, profile: str) -> bool:
        return self.setting == "always" or profile == "city"

    def __str__(self) -> str:
        where = {"always": "always", "profile": "in a city"}.get(self.setting, f"{self.setting} = {self.value}")
        return f"refused: {self.status} {self.errcode}, {where}: {self.reason}"


@functools.cache
def refusals() -> dict[str, Refusal]:
    with open(POLICIES, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [Refusal(row["operation"], row["method"], row["path"], row["setting"], row["value"], int(row["status"]),
                     row["errcode"], row["reason"]) for row in rows]
    assert len({one.operation for one in found}) == len(found), "an operation twice"
    return {one.operation: one for one in found}


def refusal(operation: str) -> Refusal | None:
    return refusals().get(operation)


@functools.cache
def routes() -> list[tuple[str, str]]:
    """Method and path of every route of the public listener."""
    done = subprocess.run([binary(), "routes"], capture_output=True, text=True, check=True, timeout=60)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [(method, path) for listener, method, path in rows if listener == "public"]


@functools.cache
def served() -> frozenset[tuple[str, str]]:
    """The same without the names of the paths' parameters."""
    return frozenset((method, spec.shape(path)) for method, path in routes())


def clients() -> list[spec.Endpoint]:
    return [row for row in spec.endpoints() if row.api == "client-server"]


def appservices() -> list[spec.Endpoint]:
    return [row for row in spec.endpoints() if row.api == "application-service"]


# Which tests name an operation ---------------------------------------------------------------------------------------

# What the tests' own clients do for them.
SHORT = {"getRoomEvents": r"\.messages\(", "sync": r"\.sync\(", "sendMessage": r"\.say\(", "getRoomStateWithKey": r"\.state\(",
         "login": r"\.log_in\(", "uploadContent": r"\bupload\("}
# They name all of them, or only the paths.
NOT_COUNTED = {"test_coverage.py", "test_contract.py", "test_routes.py", "scenarios.py", "spec.py", "mutations.py", "harness.py"}


@functools.cache
def sources() -> dict[str, list[str]]:
    """The lines of every file with tests, without what is made of them or fetched for them."""
    found: dict[str, list[str]] = {}
    for base, kinds in (("python", ("py",)), ("browser", ("mjs", "js", "ts")), ("sdk", ("rs",))):
        for folder, folders, files in os.walk(ROOT / "tests" / base):
            folders[:] = sorted(set(folders) - {"node_modules", ".venv", "target", "__pycache__", "build"})
            for name in sorted(files):
                path = pathlib.Path(folder) / name
                if path.suffix[1:] in kinds and name not in NOT_COUNTED:
                    inside = path.relative_to(ROOT / "tests").as_posix()
                    found[inside] = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return found


def _pattern(row: spec.Endpoint) -> re.Pattern[str]:
    """A path as tests write it: its beginning is a constant, most of the time, and its parameters are expressions."""
    path = re.sub(r"^/_matrix/(client|media|app)(/v\d)?", "", row.path)
    path = re.sub(r"^/(rooms/\{roomId\}|user/\{userId\})(?=/.)", "", path)
    parts = [r"[^/\s\"'`?]+" if part.startswith("{") else re.escape(part) for part in path.rstrip("/").split("/")[1:]]
    return re.compile("/" + "/".join(parts) + r"/?(?=[?\"'`\s)\\]|$)")


def named_in(row: spec.Endpoint) -> list[str]:
    """The files whose tests name the operation's path, with its method nearby where others have the same path."""
    pattern = _pattern(row)
    alike = [other.method for other in spec.endpoints() if spec.shape(other.path) == spec.shape(row.path)]
    method = re.compile(rf"\b{row.method}\b|\.{row.method.lower()}\(" + (r"|fetch\(" if row.method == "GET" else ""))
    found = []
    for name, lines in sources().items():
        for number, line in enumerate(lines):
            near = " ".join(lines[max(number - 2, 0):number + 3])
            if (pattern.search(line) and (len(set(alike)) == 1 or method.search(near))) or (
                    name.startswith("python/") and row.operation in SHORT and re.search(SHORT[row.operation], line)):
                found.append(name)
                break
    return found


# The page ------------------------------------------------------------------------------------------------------------


def state(row: spec.Endpoint) -> str:
    found = refusal(row.operation)
    if row.operation in MISSING:
        return f"**missing** ({found})" if found else "**missing**"
    return str(found) if found else "served"


def naming(row: spec.Endpoint) -> str:
    files = named_in(row)
    own = "contract" if row.operation in SCENARIOS and row.operation not in MISSING else ""
    shown = [name.removeprefix("python/") for name in files]
    if len(shown) > 4:
        shown = [*shown[:4], "…"]
    return ", ".join(filter(None, [own, *shown])) or "–"


def page() -> str:
    rows, asked = clients(), appservices()
    states = [state(row) for row in rows]
    refused, missing = sum(one.startswith("refused") for one in states), sum(one.startswith("**") for one in states)
    in_city = sum(1 for one in refusals().values() if one.setting != "always" and one.operation not in MISSING)
    lines = [
        "# Coverage of the Matrix specification", "",
        "Made by `tests/python/test_coverage.py` from the router, `tests/endpoints.tsv` (Matrix v1.19) and `tests/policies.tsv`; "
        "`HEYA_WRITE_COVERAGE=1` writes it anew.", "",
        f"Client-server API: {len(rows)} operations, {len(rows) - missing - refused} served, {refused} refused by policy "
        f"({in_city} of them served where the setting allows it), {missing} missing. "
        f"Application Service API: {len(asked)} calls that the server makes.", "",
        "*served*: a route, and valid requests answered as the specification's schemas say (`test_contract.py`, named *contract* below). "
        "*refused*: the error that a policy gives, asked for in the city's profile by the same test. "
        "The tests named beside it are those whose files name the path.", "",
        "## Client-server API", "", "| operation | call | state | tests |", "|---|---|---|---|",
    ]
    for row in rows:
        old = " (deprecated)" if row.deprecated else ""
        lines.append(f"| {row.operation}{old} | `{row.method} {row.path}` | {state(row)} | {naming(row)} |")
    lines += ["", "## Application Service API", "", "The server is the caller.", "", "| operation | call | made by | tests |", "|---|---|---|---|"]
    for row in asked:
        source = APPSERVICE_CALLS.get(row.operation, ("", ""))[0]
        lines.append(f"| {row.operation} | `{row.method} {row.path}` | src/appservices/{source} | test_appservice.py |")
    return "\n".join(lines) + "\n"


def test_the_page_is_what_it_would_be():
    made = page()
    if os.environ.get("HEYA_WRITE_COVERAGE"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made, "HEYA_WRITE_COVERAGE=1 writes docs/coverage.md anew"


def test_the_router_has_what_is_not_missing():
    assert len(clients()) == 166 and len(appservices()) == 9
    names = {row.operation for row in clients()}
    assert not MISSING - names, "no such operations"
    without = {row.operation for row in clients() if row.shape not in served()}
    assert not without - MISSING, "operations without a route that are not called missing"


def test_appservices_are_called():
    """Application Service API: each call stands in the source, and test_appservice.py has it made."""
    assert set(APPSERVICE_CALLS) == {row.operation for row in appservices()}
    for operation, (source, pattern) in APPSERVICE_CALLS.items():
        text = (ROOT / "src" / "appservices" / source).read_text(encoding="utf-8")
        assert re.search(pattern, text), f"{operation} is not in src/appservices/{source}"


def test_policies_are_settings():
    """Each refusal names an operation, and a setting with the default that refuses."""
    rows = {(row.operation, row.method, row.path) for row in clients()}
    with open(ROOT / "config.toml", "rb") as file:
        config = tomllib.load(file)
    for one in refusals().values():
        assert (one.operation, one.method, one.path) in rows, one
        if one.setting not in ("always", "profile"):
            table, _, key = one.setting.partition(".")
            default = config[table][key]
            assert one.value == (str(default).lower() if isinstance(default, bool) else default), one


@pytest.fixture(scope="module", params=["city", "open"])
def world(request: pytest.FixtureRequest) -> World:
    world = World(request.param)
    yield world
    world.close()


@pytest.mark.skipif(not spec.DATA.is_dir(), reason=spec.WHY_NOT)
@pytest.mark.parametrize("operation", sorted(refusals()))
def test_refused(world: World, operation: str):
    """What a policy refuses is refused, with exactly that error."""
    one = refusals()[operation]
    if not one.applies(world.profile):
        pytest.skip("allowed in the open profile: test_contract.py asks")
    call = next(SCENARIOS[operation].run(world))
    assert send(world, one.method, one.path, call).told == (one.status, one.errcode)


@pytest.mark.skipif(not spec.DATA.is_dir(), reason=spec.WHY_NOT)
def test_missing(world: World):
    """What is called missing has no route, or says so."""
    if world.profile == "city":
        pytest.skip("what is refused there may be missing or not: the open profile tells")
    there = []
    for row in clients():
        if row.operation not in MISSING or row.shape not in served():
            continue
        entry, told = SCENARIOS[row.operation], None
        if world.profile not in entry.not_in:
            try:
                told = send(world, row.method, row.path, next(entry.run(world))).errcode
            except AssertionError:
                continue  # what it needs is missing as well
        if told != "M_UNRECOGNIZED":
            there.append(row.operation)
    assert not there, "these are there: take them out of MISSING"
