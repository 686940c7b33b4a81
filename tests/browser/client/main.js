// A small web client on matrix-js-sdk, the engine of Element Web: it logs in, syncs, and shows rooms and a timeline.
// The tests drive it through `window`.

import * as sdk from "matrix-js-sdk";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.setLevel(logger.levels.ERROR);

window.sdk = sdk;

/** Logs in, and is there after the first sync. */
window.logIn = async (user, password) => {
    const baseUrl = location.origin;
    const { user_id, access_token, device_id } = await sdk.createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user },
        password,
        initial_device_display_name: "試験用クライアント",
    });
    const client = sdk.createClient({
        baseUrl,
        accessToken: access_token,
        userId: user_id,
        deviceId: device_id,
        timelineSupport: true,
    });
    window.client = client;
    // As Element does, also where the city forbids encryption: it must come to nothing, without an error.
    await client.initRustCrypto({ useIndexedDB: false });
    const ready = new Promise((done) => {
        client.on(sdk.ClientEvent.Sync, (state) => state === "PREPARED" && done());
    });
    await client.startClient({ initialSyncLimit: 20, threadSupport: true });
    await ready;
    for (const event of [sdk.ClientEvent.Event, sdk.RoomEvent.Timeline, sdk.RoomEvent.LocalEchoUpdated, sdk.RoomEvent.Redaction]) {
        client.on(event, show);
    }
    show();
    return user_id;
};

/** Shows a room. */
window.openRoom = (roomId) => {
    window.shown = roomId;
    show();
};

/** The event of a room with this id, from the timeline or a thread. */
window.eventOf = (roomId, eventId) => window.client.getRoom(roomId)?.findEventById(eventId);

/** Whether a room's newest events hold this text. */
window.has = (roomId, text) =>
    window.client.getRoom(roomId)?.getLiveTimeline().getEvents().some((event) => event.getContent().body === text) ?? false;

function show() {
    const client = window.client;
    document.getElementById("who").textContent = client.getUser(client.getUserId())?.displayName ?? client.getUserId();
    document.getElementById("rooms").replaceChildren(
        ...client.getRooms().map((room) => Object.assign(document.createElement("li"), { textContent: room.name })),
    );
    const room = client.getRoom(window.shown);
    const events = room?.getLiveTimeline().getEvents() ?? [];
    const messages = events.filter((event) => event.getType() === "m.room.message" && !event.isRelation("m.replace"));
    const list = document.getElementById("timeline");
    const items = new Map([...list.children].map((item) => [item.dataset.event, item]));
    list.replaceChildren(...messages.map((event) => line(room, event, items.get(event.getId()))));
}

function line(room, event, item = document.createElement("li")) {
    item.dataset.event = event.getId();
    const redacted = event.isRedacted();
    item.className = redacted ? "redacted" : "";
    const { msgtype, body, url } = event.getContent();
    if (msgtype === "m.image" && url?.startsWith("mxc:")) {
        if (!item.dataset.shown) image(item, url, body);
        return item;
    }
    const name = room.getMember(event.getSender())?.name ?? event.getSender();
    item.textContent = redacted ? "(削除されました)" : `${name}: ${body}${event.replacingEvent() ? " (編集済み)" : ""}`;
    return item;
}

/** Media need the access token, so an <img> cannot fetch them itself. */
async function image(item, mxc, name) {
    item.dataset.shown = "loading";
    const url = window.client.mxcUrlToHttp(mxc, 320, 240, "scale", false, true, true);
    const answer = await fetch(url, { headers: { authorization: `Bearer ${window.client.getAccessToken()}` } });
    const picture = document.createElement("img");
    picture.alt = name;
    picture.src = URL.createObjectURL(await answer.blob());
    await picture.decode();
    item.replaceChildren(picture);
    item.dataset.shown = "yes";
}
