// A small web client on matrix-js-sdk, the engine of Element Web: it logs in, syncs, and shows rooms and a timeline.
// The tests drive it through `window`.

import * as sdk from "matrix-js-sdk";
import { PollEndEvent } from "matrix-js-sdk/lib/extensible_events_v1/PollEndEvent.js";
import { PollResponseEvent } from "matrix-js-sdk/lib/extensible_events_v1/PollResponseEvent.js";
import { PollStartEvent } from "matrix-js-sdk/lib/extensible_events_v1/PollStartEvent.js";
import { logger } from "matrix-js-sdk/lib/logger.js";
import { decrypt, encrypt } from "./attachment.js";

logger.setLevel(logger.levels.ERROR);

window.sdk = sdk;
window.polls = { PollStartEvent, PollResponseEvent, PollEndEvent };
window.attachment = { encrypt, decrypt };

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
    const { Event } = sdk.ClientEvent;
    const { Timeline, LocalEchoUpdated, Redaction } = sdk.RoomEvent;
    const { Decrypted, Replaced } = sdk.MatrixEventEvent;
    for (const event of [Event, Timeline, LocalEchoUpdated, Redaction, Decrypted, Replaced]) client.on(event, show);
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

/**
 * Writes a message, in a thread where one is named, and returns its id. As Element does when a thread is opened: it is made
 * before its first message is sent, or the SDK would not know where that message went.
 */
window.write = async (roomId, rootId, content) => {
    const room = window.client.getRoom(roomId);
    if (rootId && !room.getThread(rootId)) {
        const root = room.findEventById(rootId);
        const thread = room.createThread(rootId, root, [root], true);
        while (!thread.initialEventsFetched) await new Promise((done) => thread.once(sdk.ThreadEvent.Update, done));
    }
    return (await window.client.sendMessage(roomId, rootId, content)).event_id;
};

/** Who has reacted to an event and how, as the client counts them: `{ key: [user ids] }`. */
window.reactionsTo = (roomId, eventId) => {
    const related = window.client.getRoom(roomId).relations.getChildEventsForEvent(eventId, "m.annotation", "m.reaction");
    const keys = related?.getSortedAnnotationsByKey()?.filter(([, events]) => events.size) ?? [];
    return Object.fromEntries(keys.map(([key, events]) => [key, [...events].map((event) => event.getSender()).sort()]));
};

/** A room's thread as the client has it; null where it knows none. */
window.threadOf = (roomId, rootId) => {
    const room = window.client.getRoom(roomId);
    const thread = room.getThread(rootId);
    if (!thread?.initialEventsFetched) return null;
    return {
        root: thread.rootEvent?.getId(),
        length: thread.length,
        replies: thread.events.filter((event) => event.isRelation("m.thread") && !event.isRedacted()).map((event) => event.getId()),
        last: thread.replyToEvent?.getId(),
        total: room.getThreadUnreadNotificationCount(rootId, "total"),
        highlight: room.getThreadUnreadNotificationCount(rootId, "highlight"),
    };
};

/** What a room's timeline beside the threads has unread. */
window.unreadOf = (roomId) => {
    const room = window.client.getRoom(roomId);
    return { total: room.getRoomUnreadNotificationCount("total"), highlight: room.getRoomUnreadNotificationCount("highlight") };
};

/** Downloads a file with the token, in full or as thumbnail. */
window.download = (mxc, ...size) => {
    const [width, height, method] = size;
    const url = window.client.mxcUrlToHttp(mxc, width, height, method, false, true, true);
    return fetch(url, { headers: { authorization: `Bearer ${window.client.getAccessToken()}` } });
};

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
    const { msgtype, body, url, file, info } = event.getContent();
    if (msgtype === "m.image" && (file?.url ?? url)?.startsWith("mxc:")) {
        if (!item.dataset.shown) image(item, url, file, info, body);
        return item;
    }
    const name = room.getMember(event.getSender())?.name ?? event.getSender();
    item.textContent = redacted ? "(削除されました)" : `${name}: ${body}${event.replacingEvent() ? " (編集済み)" : ""}`;
    return item;
}

/** Media need the access token, so an <img> cannot fetch them itself. An encrypted one has no thumbnail on the server. */
async function image(item, mxc, file, info, name) {
    item.dataset.shown = "loading";
    const answer = await (file ? window.download(file.url) : window.download(mxc, 320, 240, "scale"));
    const blob = file ? new Blob([await decrypt(await answer.arrayBuffer(), file)], { type: info.mimetype }) : await answer.blob();
    const picture = document.createElement("img");
    picture.alt = name;
    picture.src = URL.createObjectURL(blob);
    await picture.decode();
    item.replaceChildren(picture);
    item.dataset.shown = "yes";
}
