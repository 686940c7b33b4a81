"""A bridge as others write them: mautrix's appservice library with its own HTTP server, its intents, its registration file,
its state store and its dispatch of events. The other network is a list of what it was told."""

from __future__ import annotations

import asyncio
import collections
import logging
import pathlib
import threading
from typing import Any, Callable, Coroutine

import yaml
from aiohttp import web
from mautrix.appservice import AppService, IntentAPI
from mautrix.appservice.state_store import FileASStateStore
from mautrix.bridge import BaseBridgeConfig, BaseMatrixHandler, HomeserverSoftware
from mautrix.types import Event, EventType, ReceiptEvent, RoomID, TypingEvent, UserID

from harness import Server, free_ports, wait_for

NAME = "bridge"


class Complaints(logging.Handler):
    """What the library says that it could not do. It goes on after an event that it cannot read, and only logs it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


class Store(FileASStateStore):
    """The library's store in a file. Its classes stand in an order in which opening and closing pass the file over."""

    async def open(self) -> None:
        self._load()

    async def flush(self) -> None:
        self._save()


class User:
    """Somebody of the server, as the bridge knows them."""

    is_whitelisted, relay_whitelisted = True, False

    def __init__(self, mxid: UserID) -> None:
        self.mxid = mxid

    async def is_logged_in(self) -> bool:
        return True


class Puppet:
    """Somebody of the other network, as the server knows them."""

    def __init__(self, intent: IntentAPI) -> None:
        self.default_mxid_intent = self.intent = intent


class Portal:
    """A room that stands for one of the other network."""

    has_relay = False

    def __init__(self, bridge: Bridge, room_id: str) -> None:
        self.bridge, self.room_id = bridge, room_id

    async def handle_matrix_invite(self, invited_by: User, puppet: Puppet) -> None:
        """The ghost comes in."""

    async def handle_matrix_message(self, sender: User, message: Any, event_id: str) -> None:
        self.bridge.bridged.append((sender.mxid, message.body, event_id))

    async def schedule_disappearing(self) -> None:
        """Nothing disappears here."""


class Matrix(BaseMatrixHandler):
    """The library's dispatch; what it tells the bridge is written down as (what, …)."""

    def __init__(self, bridge: Bridge) -> None:
        self.told: list[tuple] = []
        super().__init__(bridge=bridge)

    async def handle_join(self, room_id, user_id, event_id) -> None:
        self.told.append(("join", room_id, user_id))

    async def handle_leave(self, room_id, user_id, event_id) -> None:
        self.told.append(("leave", room_id, user_id))

    async def handle_kick(self, room_id, user_id, kicked_by, reason, event_id) -> None:
        self.told.append(("kick", room_id, user_id, kicked_by, reason))

    async def handle_reject(self, room_id, user_id, reason, event_id) -> None:
        self.told.append(("reject", room_id, user_id))

    async def handle_member_info_change(self, room_id, user_id, content, prev_content, event_id) -> None:
        self.told.append(("info", room_id, user_id, prev_content.avatar_url, content.avatar_url))

    async def handle_event(self, evt) -> None:
        if evt.type == EventType.REACTION:
            self.told.append(("reaction", evt.sender, evt.content.relates_to.event_id, evt.content.relates_to.key))
        elif evt.type == EventType.ROOM_REDACTION:
            self.told.append(("redaction", evt.sender, evt.redacts, evt.content.reason))

    async def handle_read_receipt(self, user, portal, event_id, data) -> None:
        self.told.append(("read", portal.room_id, user.mxid, event_id))


class Bridge:
    """One bridge in a thread of its own. What tests do with it they do by `run`; `start` and `stop` are a process's."""

    def __init__(self, server: Server, folder: pathlib.Path) -> None:
        (self.port,) = free_ports(1)
        self.folder, self.domain = folder, server.server_name
        self.config = self._configure(server)
        self.registration = yaml.safe_load((folder / "registration.yaml").read_text())
        self.portals: set[str] = set()
        self.complaints = Complaints()
        logging.getLogger("mau").addHandler(self.complaints)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        # Over all its lives:
        self.events: list[Event] = []
        self.ephemeral: list[ReceiptEvent | TypingEvent] = []
        self.bridged: list[tuple[str, str, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.bodies: dict[str, list[bytes]] = collections.defaultdict(list)
        # So many transactions are taken, and the answer is lost.
        self.losing = 0
        self.query_user: Callable[[str], Coroutine] | None = None
        self.query_alias: Callable[[str], Coroutine] | None = None
        self.homeserver_software = HomeserverSoftware.STANDARD
        self.az: AppService | None = None

    def _configure(self, server: Server) -> BaseBridgeConfig:
        path = self.folder / "bridge.yaml"
        path.write_text(yaml.safe_dump({
            "homeserver": {"address": server.internal_base, "domain": self.domain, "verify_ssl": True,
                           "message_send_checkpoint_endpoint": None},
            "appservice": {"id": NAME, "address": f"http://127.0.0.1:{self.port}", "hostname": "127.0.0.1", "port": self.port,
                           "bot_username": "bridgebot", "bot_displayname": "電話の橋", "bot_avatar": None,
                           "as_token": "not yet", "hs_token": "not yet", "ephemeral_events": True},
            "bridge": {"username_template": "bridge_{userid}", "alias_template": "bridge_{groupname}", "command_prefix": "!bridge",
                       "encryption": {"allow": False, "msc4190": False}, "relay": {"enabled": False}},
        }, allow_unicode=True))
        config = BaseBridgeConfig(str(path), str(self.folder / "registration.yaml"), str(path))
        config.load()
        config.generate_registration()
        config.save()
        return config

    # A process's life

    def start(self) -> None:
        """Starts as a bridge does: its server, the checks of the connection, its bot."""
        self.run(self._start())

    async def _start(self) -> None:
        async def user(user_id: str):
            return await self.query_user(user_id) if self.query_user else None

        async def alias(alias: str):
            return await self.query_alias(alias) if self.query_alias else None

        self.store = Store(path=str(self.folder / "mx-state.json"), binary=False)
        self.az = AppService(
            server=self.config["homeserver.address"], domain=self.domain, id=NAME, as_token=self.config["appservice.as_token"],
            hs_token=self.config["appservice.hs_token"], bot_localpart=self.config["appservice.bot_username"], loop=self.loop,
            query_user=user, query_alias=alias, bridge_name=NAME, state_store=self.store, ephemeral_events=True,
            aiohttp_params={"middlewares": [self._hear]})
        self.az.matrix_event_handler(self._take)
        self.matrix = Matrix(self)
        await self.az.start("127.0.0.1", self.port)
        try:
            await self.matrix.wait_for_connection()
        except SystemExit as error:
            raise AssertionError(f"the bridge gives up: {error.code}: {self.complaints.said}") from error
        await self.matrix.init_as_bot()

    def stop(self) -> None:
        if self.az is not None:
            self.run(self.az.stop())
            self.az = None

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        logging.getLogger("mau").removeHandler(self.complaints)

    @web.middleware
    async def _hear(self, request: web.Request, handler):
        self.requests.append((request.method, request.path))
        if request.method == "PUT":
            self.bodies[request.path].append(await request.read())
        try:
            # Of a transaction that it knows the library raises its answer.
            return await handler(request)
        finally:
            if request.method == "PUT" and self.losing:
                self.losing -= 1
                raise web.HTTPBadGateway

    async def _take(self, event: Event) -> None:
        (self.ephemeral if event.type.is_ephemeral else self.events).append(event)

    # What the library asks its bridge

    async def get_user(self, user_id: UserID, create: bool = True) -> User | None:
        return None if self.is_bridge_ghost(user_id) or user_id == self.az.bot_mxid else User(user_id)

    async def get_puppet(self, user_id: UserID, create: bool = False) -> Puppet | None:
        return Puppet(self.az.intent.user(user_id)) if self.is_bridge_ghost(user_id) else None

    async def get_double_puppet(self, user_id: UserID) -> None:
        return None

    async def get_portal(self, room_id: RoomID) -> Portal | None:
        return Portal(self, room_id) if room_id in self.portals else None

    def is_bridge_ghost(self, user_id: str) -> bool:
        return user_id.startswith("@bridge_") and user_id.endswith(f":{self.domain}")

    # For tests

    def run(self, work: Coroutine, seconds: float = 30) -> Any:
        """Does something in the bridge's loop; its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    @property
    def bot(self) -> IntentAPI:
        return self.az.intent

    def id_of(self, name: str) -> str:
        return f"@bridge_{name}:{self.domain}"

    def ghost(self, name: str) -> IntentAPI:
        return self.az.intent.user(UserID(self.id_of(name)))

    def ids(self, room_id: str) -> list[str]:
        """The room's events in the order in which its handler got them."""
        return [event.event_id for event in self.events if event.room_id == room_id]

    def got(self, event_id: str) -> Event:
        """Waits until its handler has got an event."""
        found = wait_for(lambda: [event for event in self.events if event.event_id == event_id], what=f"{event_id} at the bridge")
        return found[0]

    def told(self, *what: Any) -> tuple:
        """Waits until the dispatch has told something that begins so."""
        return wait_for(lambda: next((one for one in self.matrix.told if one[:len(what)] == what), None), what=f"{what} at the bridge")
