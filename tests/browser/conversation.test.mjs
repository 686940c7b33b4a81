// What people do with messages in a Matrix client, by matrix-js-sdk: reactions, edits, threads with their unread counts and
// list, files, polls, search. The same story twice: in a room that the city opened, and in an encrypted one that a person
// opened in a city that allows it. Hanako has a second device that comes later and must find out by itself.

import assert from "node:assert/strict";
import { eventually, newPage } from "./browser.mjs";
import { clean } from "./client.test.mjs";

/** Refusals that the tests below ask for. */
const RIGHT_REFUSALS = [
    // The same reaction twice (client-server API, "Avoiding duplicate annotations").
    [400, /\/_matrix\/client\/v3\/rooms\/[^/]+\/send\/m\.reaction\//],
    // A picture without a token.
    [401, /\/_matrix\/client\/v1\/media\/download\//],
    [404, /\/_matrix\/media\/v3\/download\//],
];
/** What the SDK logs as errors and goes on after. */
const NOISE = [
    // It gets a new room's state before it has the room.
    /MatrixRTCSessionManager\] Got room state event for unknown room/,
    // The refusal that the second equal reaction gets.
    /^Error sending event M_DUPLICATE_ANNOTATION/,
    // The test that keeps a device from syncing.
    /net::ERR_FAILED \(\S+\/sync\?|^\/sync error %s ConnectionError/,
];
/** What a client's `/sync` looks back (client/main.js), and more: who comes after so many messages does not see what was before. */
const MORE_THAN_A_SYNC = 22;

export function conversationTests(test, given) {
    story(test, given, { kind: "plain room", city: () => given.city, encrypted: false });
    story(test, given, { kind: "encrypted room", city: given.sealed, encrypted: true });
}

function story(test, { browser }, { kind, city, encrypted }) {
    const people = {};
    const pages = {};
    let room;
    /** The room's events by a name of ours. */
    const ids = {};

    const as = (who, run, ...args) => pages[who].evaluate(run, [room, ...args]);
    const until = (who, condition, ...args) => pages[who].waitForFunction(condition, [room, ...args], { polling: 50 });
    /** Writes a message, in a thread where one is named, and returns its id. */
    const say = (who, body, { thread = null, mentions = [] } = {}) =>
        as(
            who,
            ([room, thread, body, mentions]) => {
                const content = { msgtype: "m.text", body, "m.mentions": mentions.length ? { user_ids: mentions } : {} };
                return window.write(room, thread, content);
            },
            thread,
            body,
            mentions,
        );
    /** Waits until somebody's client has an event, and can read it. */
    const has = (who, id) =>
        until(who, ([room, id]) => {
            const event = window.eventOf(room, id);
            return event && !event.isBeingDecrypted() && !event.isDecryptionFailure() && event.getType() !== "m.room.encrypted";
        }, id); // prettier-ignore
    /** Waits until what a client knows is this, and otherwise says what it knows. */
    const becomes = (who, read, args, wanted) => eventually(pages[who], read, [room, ...args], wanted, `${who}'s client`);
    const reactions = (who, id, wanted) => becomes(who, ([room, id]) => window.reactionsTo(room, id), [id], wanted);
    const thread = (who, root, wanted) =>
        becomes(who, ([room, root, fields]) => {
            const known = window.threadOf(room, root);
            return known && Object.fromEntries(fields.map((field) => [field, known[field]]));
        }, [root, Object.keys(wanted)], wanted); // prettier-ignore
    const unread = (who, wanted) => becomes(who, ([room]) => window.unreadOf(room), [], wanted);
    const react = (who, id, key) =>
        as(who, ([room, id, key]) => window.client.sendEvent(room, "m.reaction", { "m.relates_to": { rel_type: "m.annotation", event_id: id, key } })
            .then((sent) => sent.event_id, (error) => {
                // What could not be sent stays in the room to be tried again, and counts, until it is given up.
                const failed = window.client.getRoom(room).getLiveTimeline().getEvents().filter((event) => event.status === "not_sent");
                for (const event of failed) window.client.cancelPendingEvent(event);
                return `${error.httpStatus} ${error.errcode}`;
            }), id, key); // prettier-ignore
    const edit = (who, id, body, thread = null) =>
        as(who, ([room, thread, id, body]) => {
            const content = { msgtype: "m.text", body };
            const relation = { rel_type: "m.replace", event_id: id };
            return window.client.sendMessage(room, thread, { ...content, body: `* ${body}`, "m.new_content": content, "m.relates_to": relation })
                .then((sent) => sent.event_id);
        }, thread, id, body); // prettier-ignore
    const redact = (who, id) => as(who, ([room, id]) => window.client.redactEvent(room, id).then(() => {}), id);
    const read = (who, id) => as(who, ([room, id]) => window.client.sendReadReceipt(window.eventOf(room, id)).then(() => {}), id);
    /** The relations API, as the SDK asks for it: ids of one page. */
    const related = (who, id, relation, type, options) =>
        as(who, async ([room, id, relation, type, options]) => {
            const { events, nextBatch } = await window.client.relations(room, id, relation, type, options ?? undefined);
            return { ids: events.map((event) => event.getId()), types: events.map((event) => event.getType()), next: nextBatch };
        }, id, relation, type, options ?? null); // prettier-ignore
    /** All of a room or thread as a client shows it, paged back to the beginning: id, and whether it is of the thread. */
    const shown = (who, root) =>
        as(who, async ([room, root]) => {
            const known = window.client.getRoom(room);
            const view = new window.sdk.TimelineWindow(window.client, root ? known.getThread(root).timelineSet : known.getUnfilteredTimelineSet());
            await view.load();
            for (let i = 0; i < 50 && view.canPaginate("b"); i += 1) await view.paginate("b", 30);
            return view.getEvents().map((event) => [event.getId(), event.isRelation("m.thread")]);
        }, root); // prettier-ignore
    /** What the server bundles with an event. */
    const bundled = (who, id) => as(who, ([room, id]) => window.client.fetchRoomEvent(room, id).then((event) => event.unsigned?.["m.relations"] ?? {}), id);
    const body = ([room, id]) => window.eventOf(room, id)?.getContent().body;
    const enter = async (who, person) => {
        pages[who] = await newPage(browser(), city().certificate(person));
        await pages[who].goto(city().origin);
        await pages[who].evaluate(([id, password]) => window.logIn(id, password), [person.loginId, person.password]);
    };

    test(`${kind}: two people come into it`, async () => {
        const facility = await city().facility("みどり在宅クリニック");
        for (const [who, name] of [["hanako", "伊藤花子"], ["taro", "渡辺太郎"]]) {
            people[who] = await city().enrol(await city().person(facility, name));
        }
        await Promise.all(["hanako", "taro"].map((who) => enter(who, people[who])));
        room = (
            await city().call("POST", "rooms", {
                case: `conversation ${kind}`,
                kind: "association",
                name: "在宅医療連携会議",
                subject: null,
                members: [people.hanako.userId, people.taro.userId],
                opening_notice: "部屋を開設しました。",
                requested_by: null,
                confirm_second: false,
            })
        ).room_id;
        await until("hanako", ([room]) => window.client.getRoom(room)?.getMyMembership() === "join");
        if (encrypted) {
            ids.association = room;
            room = await as("hanako", ([, other]) =>
                window.client.createRoom({
                    is_direct: true,
                    invite: [other],
                    initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
                }).then((made) => made.room_id), people.taro.userId); // prettier-ignore
            await until("taro", ([room]) => window.client.getRoom(room)?.getMyMembership() === "invite");
            await as("taro", ([room]) => window.client.joinRoom(room).then(() => {}));
            await until("hanako", ([room]) => window.client.getRoom(room)?.getJoinedMemberCount() === 2);
        }
        for (const who of ["hanako", "taro"]) {
            await until(who, ([room, both]) => both.every((user) => window.client.getRoom(room)?.getMember(user)?.membership === "join"), [
                people.hanako.userId,
                people.taro.userId,
            ]);
            await as(who, ([room]) => window.openRoom(room));
        }
        ids.root = await say("hanako", "体重が先月より2kg減りました。");
        await has("taro", ids.root);
        const stored = await as("taro", ([room, id]) => window.client.fetchRoomEvent(room, id), ids.root);
        assert.equal(stored.type, encrypted ? "m.room.encrypted" : "m.room.message");
        assert.equal(JSON.stringify(stored).includes("体重"), !encrypted);
    });

    test(`${kind}: reactions are counted, paged through, given once each, and taken back`, async () => {
        const [hanako, taro] = [people.hanako.userId, people.taro.userId];
        const seen = await react("taro", ids.root, "了解");
        const thumbs = [await react("taro", ids.root, "👍"), await react("hanako", ids.root, "👍")];
        for (const who of ["hanako", "taro"]) await reactions(who, ids.root, { 了解: [taro], "👍": [hanako, taro].sort() });
        assert.equal(await react("taro", ids.root, "了解"), "400 M_DUPLICATE_ANNOTATION");

        const first = await related("hanako", ids.root, "m.annotation", "m.reaction", { dir: "b", limit: 2 });
        assert.deepEqual(first.ids, [thumbs[1], thumbs[0]]);
        const second = await related("hanako", ids.root, "m.annotation", "m.reaction", { dir: "b", limit: 2, from: first.next });
        assert.deepEqual([second.ids, second.next], [[seen], null]);

        await redact("taro", seen);
        for (const who of ["hanako", "taro"]) await reactions(who, ids.root, { "👍": [hanako, taro].sort() });
        assert.deepEqual((await related("taro", ids.root, "m.annotation", "m.reaction")).ids, [thumbs[1], thumbs[0]]);
        // One that was taken back may be given again.
        assert.match(await react("taro", ids.root, "了解"), /^\$/);
        await reactions("hanako", ids.root, { 了解: [taro], "👍": [hanako, taro].sort() });
    });

    test(`${kind}: the newest edit is what is shown, and taking it back brings the one before`, async () => {
        const edits = [];
        for (const text of ["体重が先月より3kg減りました。", "体重が先月より4kg減りました。"]) {
            edits.push(await edit("hanako", ids.root, text));
            await becomes("taro", body, [ids.root], text);
        }
        const replaced = ([room, id]) => {
            const event = window.eventOf(room, id);
            return [event.replacingEventId(), event.getOriginalContent().body, event.getContent().body];
        };
        for (const who of ["hanako", "taro"]) {
            await becomes(who, replaced, [ids.root], [edits[1], "体重が先月より2kg減りました。", "体重が先月より4kg減りました。"]);
        }
        assert.match(await pages.taro.locator(`[data-event="${ids.root}"]`).innerText(), /4kg減りました。 \(編集済み\)$/);
        assert.equal((await bundled("taro", ids.root))["m.replace"].event_id, edits[1]);

        await redact("hanako", edits[1]);
        for (const who of ["hanako", "taro"]) {
            await becomes(who, replaced, [ids.root], [edits[0], "体重が先月より2kg減りました。", "体重が先月より3kg減りました。"]);
        }
        assert.equal((await bundled("taro", ids.root))["m.replace"].event_id, edits[0]);
        // Asked for last: once the SDK was told of a bundled edit, it lets no older one stand (`Relations.getLastReplacement`).
        assert.deepEqual((await related("taro", ids.root, "m.replace", "m.room.message")).ids, [edits[0]]);
    });

    test(`${kind}: a thread is begun by one and answered by the other, with a reaction, an edit and a deletion in it`, async () => {
        ids.first = await say("taro", "食事の量はいかがですか。", { thread: ids.root });
        await thread("hanako", ids.root, { root: ids.root, length: 1, replies: [ids.first], last: ids.first });
        ids.second = await say("hanako", "半分ほど残されます。", { thread: ids.root });
        for (const who of ["hanako", "taro"]) {
            await has(who, ids.second);
            await thread(who, ids.root, { length: 2, replies: [ids.first, ids.second], last: ids.second });
        }
        const shape = await as("taro", ([room, root, first, second]) => {
            const known = window.client.getRoom(room);
            const main = known.getLiveTimeline().getEvents().map((event) => event.getId());
            const answer = window.eventOf(room, second);
            return {
                main: [root, first, second].map((id) => main.includes(id)),
                rootOfThread: window.eventOf(room, root).isThreadRoot,
                threads: [first, second].map((id) => window.eventOf(room, id).threadRootId),
                // A client without threads shows it as an answer to the one before.
                fallback: [answer.getWireContent()["m.relates_to"].is_falling_back, answer.getWireContent()["m.relates_to"]["m.in_reply_to"].event_id],
                body: answer.getContent().body,
            };
        }, ids.root, ids.first, ids.second); // prettier-ignore
        assert.deepEqual(shape, {
            main: [true, false, false],
            rootOfThread: true,
            threads: [ids.root, ids.root],
            fallback: [true, ids.first],
            body: "半分ほど残されます。",
        });

        await react("hanako", ids.first, "ありがとう");
        await edit("taro", ids.first, "食事と水分の量はいかがですか。", ids.root);
        for (const who of ["hanako", "taro"]) {
            await reactions(who, ids.first, { ありがとう: [people.hanako.userId] });
            await becomes(who, body, [ids.first], "食事と水分の量はいかがですか。");
            await thread(who, ids.root, { length: 2, replies: [ids.first, ids.second] });
        }
        const wrong = await say("taro", "別の方の話でした。", { thread: ids.root });
        await thread("hanako", ids.root, { length: 3, replies: [ids.first, ids.second, wrong], last: wrong });
        await redact("taro", wrong);
        for (const who of ["hanako", "taro"]) await thread(who, ids.root, { length: 2, replies: [ids.first, ids.second] });

        for (const who of ["hanako", "taro"]) {
            const { "m.thread": summary } = await bundled(who, ids.root);
            assert.deepEqual([summary.count, summary.latest_event.event_id, summary.current_user_participated], [2, ids.second, true]);
        }
        assert.deepEqual((await related("taro", ids.root, "m.thread", null)).ids, [ids.second, ids.first]);
        const all = await related("taro", ids.root, null, null, { dir: "f", recurse: true });
        for (const id of [ids.first, ids.second]) assert.ok(all.ids.includes(id), `${id} is not in ${all.ids}`);
        // What relates to a message of the thread comes along (recurse), though it relates to the root by that message only.
        assert.ok(all.types.filter((type) => type === "m.reaction").length >= 4, `${all.types}`);
    });

    test(`${kind}: a thread is unread by itself, and a receipt in it clears it alone`, async () => {
        // Everything is read: a receipt for no thread in particular.
        await as("hanako", ([room, id]) => window.client.sendReadReceipt(window.eventOf(room, id), "m.read", true).then(() => {}), ids.second);
        ids.asideMain = await say("taro", "明日の訪問は10時です。");
        await has("hanako", ids.asideMain);
        await read("hanako", ids.asideMain);
        await unread("hanako", { total: 0, highlight: 0 });
        await thread("hanako", ids.root, { total: 0, highlight: 0 });

        const one = await say("taro", "むせ込みはありますか。", { thread: ids.root });
        ids.third = await say("taro", "嚥下の評価をお願いします。", { thread: ids.root, mentions: [people.hanako.userId] });
        const main = await say("taro", "駐車場は裏手です。");
        for (const id of [one, ids.third, main]) await has("hanako", id);
        await thread("hanako", ids.root, { length: 4, total: 2, highlight: 1 });
        await unread("hanako", { total: 1, highlight: 0 });
        assert.equal(await as("hanako", ([room]) => window.client.getRoom(room).getUnreadNotificationCount("total")), 3);
        // The writer has nothing unread.
        await thread("taro", ids.root, { total: 0, highlight: 0 });

        await read("hanako", one);
        // In an encrypted room the SDK counts for itself, and takes of the server only that nothing is left.
        if (!encrypted) await thread("hanako", ids.root, { total: 1, highlight: 1 });
        await read("hanako", ids.third);
        await thread("hanako", ids.root, { total: 0, highlight: 0 });
        await unread("hanako", { total: 1, highlight: 0 });
        await becomes("taro", ([room, root, reader, ids]) => {
            const known = window.client.getRoom(room);
            return [...ids.slice(0, 2).map((id) => known.getThread(root).hasUserReadEvent(reader, id)), known.hasUserReadEvent(reader, ids[2])];
        }, [ids.root, people.hanako.userId, [one, ids.third, main]], [true, true, false]); // prettier-ignore
        await read("hanako", main);
        await unread("hanako", { total: 0, highlight: 0 });
        await becomes("taro", ([room, reader, id]) => window.client.getRoom(room).hasUserReadEvent(reader, id), [people.hanako.userId, main], true);
    });

    test(`${kind}: the list of threads has the newest first, one's own apart, and pages`, async () => {
        ids.other = await say("hanako", "連絡帳の様式について。");
        await has("taro", ids.other);
        ids.otherReply = await say("hanako", "来月から新しいものを使います。", { thread: ids.other });
        await thread("taro", ids.other, { root: ids.other, length: 1, last: ids.otherReply });
        const listed = (who) =>
            as(who, async ([room]) => {
                const known = window.client.getRoom(room);
                await known.createThreadsTimelineSets();
                await known.fetchRoomThreads();
                return known.threadsTimelineSets.map((set) => set.getLiveTimeline().getEvents().map((event) => event.getId()).sort());
            });
        const both = [ids.root, ids.other].sort();
        assert.deepEqual(await listed("taro"), [both, [ids.root]]);
        assert.deepEqual(await listed("hanako"), [both, both]);
        const pages = () =>
            as("taro", async ([room]) => {
                const found = [];
                let from = null;
                do {
                    const page = await window.client.createThreadListMessagesRequest(room, from, 1);
                    found.push(page.chunk.map((event) => [event.event_id, event.unsigned["m.relations"]["m.thread"].latest_event.event_id]));
                    from = page.end;
                } while (from && found.length < 5);
                return found.filter((page) => page.length);
            });
        assert.deepEqual(await pages(), [[[ids.other, ids.otherReply]], [[ids.root, ids.third]]]);
        // An answer brings a thread to the top.
        ids.fourth = await say("taro", "評価は来週になります。", { thread: ids.root });
        assert.deepEqual(await pages(), [[[ids.root, ids.fourth]], [[ids.other, ids.otherReply]]]);
        await becomes("taro", ([room]) => window.client.getRoom(room).threadsTimelineSets[0].getLiveTimeline().getEvents().at(-1).getId(), [], ids.root);
    });

    test(`${kind}: a second device learns of threads by syncing, and of what the first has read`, async () => {
        await has("hanako", ids.fourth);
        for (let i = 0; i < MORE_THAN_A_SYNC; i += 1) ids.newest = await say("taro", `褥瘡の処置 ${i + 1}回目`);
        await enter("second", people.hanako);
        await until("second", ([room, id]) => window.eventOf(room, id), ids.newest);
        const known = await as("second", ([room, ...all]) => all.map((id) => !!window.eventOf(room, id)), ids.root, ids.first, ids.other);
        assert.deepEqual(known, [false, false, false], "these are before what the device has read");
        if (!encrypted) {
            // From the first sync's `unread_thread_notifications`; the thread itself is not known yet.
            const count = ([room, root]) => window.client.getRoom(room).getThreadUnreadNotificationCount(root, "total");
            await becomes("second", count, [ids.root], 1);
            await becomes("second", count, [ids.other], 0);
            await unread("second", { total: MORE_THAN_A_SYNC, highlight: 0 });
        }
        if (encrypted) {
            // Keys are given to the devices that a sender knows of: it learns of this one by syncing.
            const device = await as("second", () => window.client.getDeviceId());
            await becomes("taro", ([, user, device]) =>
                window.client.getCrypto().getUserDeviceInfo([user]).then((known) => known.get(user).has(device)), [people.hanako.userId, device], true); // prettier-ignore
        }
        // An answer comes to a thread whose beginning the device has never seen.
        const fifth = await say("taro", "主治医にも伝えました。", { thread: ids.root });
        await has("second", fifth);
        const wanted = [ids.first, ids.second, ids.third, ids.fourth, fifth];
        await thread("second", ids.root, { root: ids.root, length: 6, last: fifth });
        const replies = await as("second", ([room, root]) => window.threadOf(room, root).replies, ids.root);
        assert.equal(replies.length, 6);
        for (const id of wanted) assert.ok(replies.includes(id), `${id} is not in ${replies}`);
        // What was edited comes as it was edited last, and what was reacted to with its reactions: from the relations API.
        await reactions("second", ids.first, { ありがとう: [people.hanako.userId] });
        const root = await as("second", async ([room, id]) => {
            const event = window.client.getRoom(room).getThread(id).rootEvent;
            return [event.replacingEventId() !== undefined, event.isThreadRoot];
        }, ids.root); // prettier-ignore
        assert.deepEqual(root, [true, true]);
        if (!encrypted) {
            await becomes("second", body, [ids.root], "体重が先月より3kg減りました。");
            await becomes("second", body, [ids.first], "食事と水分の量はいかがですか。");
        }
        const lists = await as("second", async ([room]) => {
            const known = window.client.getRoom(room);
            await known.createThreadsTimelineSets();
            await known.fetchRoomThreads();
            return known.threadsTimelineSets.map((set) => set.getLiveTimeline().getEvents().map((event) => event.getId()).sort());
        });
        assert.deepEqual(lists, [[ids.root, ids.other].sort(), [ids.root, ids.other].sort()]);
        await thread("second", ids.other, { root: ids.other, length: 1, last: ids.otherReply });

        // A thread that begins while both devices are there; what one reads is read on the other.
        ids.begun = await say("taro", "体圧分散マットを替えたいです。", { thread: ids.newest });
        for (const who of ["hanako", "second"]) {
            await has(who, ids.begun);
            await thread(who, ids.newest, { root: ids.newest, length: 1, replies: [ids.begun], last: ids.begun });
        }
        ids.asked = await say("taro", "ご意見をください。", { thread: ids.newest, mentions: [people.hanako.userId] });
        for (const who of ["hanako", "second"]) {
            await has(who, ids.asked);
            await thread(who, ids.newest, { length: 2, ...(encrypted ? { highlight: 1 } : { total: 2, highlight: 1 }) });
        }
        await read("hanako", ids.asked);
        for (const who of ["hanako", "second"]) await thread(who, ids.newest, { total: 0, highlight: 0 });
        if (!encrypted) await thread("second", ids.root, { total: 2, highlight: 0 });
    });

    test(`${kind}: a device that was away comes back over a gap to the right threads and counts`, async () => {
        const away = pages.second;
        const isSync = (url) => url.pathname === "/_matrix/client/v3/sync";
        await as("hanako", ([room, id]) => window.client.sendReadReceipt(window.eventOf(room, id), "m.read", true).then(() => {}), ids.newest);
        for (const id of [ids.root, ids.newest]) {
            const last = await as("hanako", ([room, root]) => window.client.getRoom(room).getThread(root).replyToEvent.getId(), id);
            await read("hanako", last);
        }
        for (const root of [ids.root, ids.newest]) await thread("second", root, { total: 0, highlight: 0 });
        await unread("second", { total: 0, highlight: 0 });

        await away.route(isSync, (route) => route.abort());
        // The sync that is under way brings this one yet, and nothing more.
        const last = await say("taro", "業者に問い合わせます。");
        await has("second", last);
        const during = await say("taro", "マットの見積もりが来ました。", { thread: ids.newest });
        for (let i = 0; i < MORE_THAN_A_SYNC; i += 1) ids.newestMain = await say("taro", `褥瘡の処置 ${MORE_THAN_A_SYNC + i + 1}回目`);
        const after = await say("hanako", "拝見します。", { thread: ids.newest });
        await say("taro", "お願いします。", { thread: ids.root });
        await away.unroute(isSync);
        await away.evaluate(() => window.client.retryImmediately());
        await has("second", after);
        await thread("second", ids.newest, { last: after });
        // (The SDK itself may count one less: it counts on from before the gap until it reads the root again.)
        assert.deepEqual((await bundled("second", ids.newest))["m.thread"].count, 4);
        // What was written in the gap comes by paging back, as a client does that shows the thread.
        const replies = (await shown("second", ids.newest)).filter(([, inThread]) => inThread).map(([id]) => id);
        assert.deepEqual(replies, [ids.begun, ids.asked, during, after]);
        await thread("second", ids.root, { length: 7 });
        if (!encrypted) {
            // Hanako's own answer read that thread.
            await thread("second", ids.newest, { total: 0 });
            await thread("second", ids.root, { total: 1 });
            await unread("second", { total: MORE_THAN_A_SYNC + 1, highlight: 0 });
        }
        // Back through the gap to what was before, without a hole and nothing twice.
        const main = (await shown("second", null)).map(([id]) => id);
        assert.equal(new Set(main).size, main.length, "an event twice");
        const order = [ids.root, ids.asideMain, ids.other, ids.newest, ids.newestMain].map((id) => main.indexOf(id));
        assert.ok(order.every((at, i) => at > (order[i - 1] ?? -1)), `${order}`);
    });

    test(`${kind}: a photo arrives byte for byte, and shows`, async () => {
        const sent = await as("hanako", async ([room, encrypted]) => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
            const paint = canvas.getContext("2d");
            paint.fillStyle = "#2277aa";
            paint.fillRect(0, 0, 640, 480);
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const content = { msgtype: "m.image", body: "創部.png", info: { mimetype: "image/png", size: blob.size, w: 640, h: 480 } };
            if (encrypted) {
                const { sealed, file } = await window.attachment.encrypt(await blob.arrayBuffer());
                const { content_uri } = await window.client.uploadContent(new Blob([sealed]), { includeFilename: false, type: "application/octet-stream" });
                content.file = { ...file, url: content_uri };
            } else {
                content.url = (await window.client.uploadContent(blob, { name: "創部.png", type: "image/png" })).content_uri;
            }
            const digest = async (data) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))].join();
            return { id: (await window.client.sendMessage(room, content)).event_id, digest: await digest(await blob.arrayBuffer()), size: blob.size };
        }, encrypted); // prettier-ignore
        await has("taro", sent.id);
        const got = await as("taro", async ([room, id]) => {
            const { url, file, info } = window.eventOf(room, id).getContent();
            const answer = await window.download(file?.url ?? url);
            const stored = await answer.arrayBuffer();
            const data = file ? await window.attachment.decrypt(stored, file) : stored;
            const digest = async (data) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))].join();
            // As an <img> would fetch it by itself: no token. And where media were before they needed one.
            const bare = new Image();
            bare.src = window.client.mxcUrlToHttp(file?.url ?? url, undefined, undefined, undefined, false, true, true);
            const old = new Image();
            old.src = window.client.mxcUrlToHttp(file?.url ?? url);
            const shows = (image) => image.decode().then(() => true, () => false);
            return {
                digest: await digest(data),
                stored: await digest(stored),
                size: [data.byteLength, info.size],
                type: answer.headers.get("content-type"),
                disposition: answer.headers.get("content-disposition"),
                bare: [await shows(bare), await shows(old)],
            };
        }, sent.id); // prettier-ignore
        assert.equal(got.digest, sent.digest);
        assert.deepEqual(got.size, [sent.size, sent.size]);
        assert.equal(got.stored === sent.digest, !encrypted);
        assert.equal(got.type, encrypted ? "application/octet-stream" : "image/png");
        if (encrypted) assert.ok(!/filename/.test(got.disposition), got.disposition);
        else assert.match(got.disposition, /filename\*=UTF-8''%E5%89%B5%E9%83%A8\.png/);
        assert.deepEqual(got.bare, [false, false]);

        const picture = pages.taro.locator(`[data-event="${sent.id}"][data-shown="yes"] img`);
        await picture.waitFor();
        const [width, height, colour] = await picture.evaluate((image) => {
            const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
            const paint = canvas.getContext("2d");
            paint.drawImage(image, 0, 0, 1, 1);
            return [image.naturalWidth, image.naturalHeight, [...paint.getImageData(0, 0, 1, 1).data]];
        });
        // The server makes a thumbnail of what it can read only.
        assert.deepEqual([width, height], encrypted ? [640, 480] : [320, 240]);
        assert.ok([0x22, 0x77, 0xaa].every((wanted, i) => Math.abs(colour[i] - wanted) < 8), `colour ${colour}`);
    });

    test(`${kind}: a poll is opened, answered, answered otherwise, and closed`, async () => {
        const poll = await as("hanako", ([room]) => {
            const { type, content } = window.polls.PollStartEvent.from("次回の会議", ["火曜", "木曜"], "org.matrix.msc3381.poll.disclosed").serialize();
            return window.client.sendEvent(room, type, content).then((sent) => sent.event_id);
        });
        for (const who of ["hanako", "taro"]) await until(who, ([room, id]) => window.client.getRoom(room).polls.has(id), poll);
        const vote = (who, choice) =>
            as(who, ([room, id, choice]) => {
                const { answers } = window.client.getRoom(room).polls.get(id).pollEvent;
                const chosen = answers.find((answer) => answer.text === choice).id;
                const { type, content } = window.polls.PollResponseEvent.from([chosen], id).serialize();
                return window.client.sendEvent(room, type, content).then(() => {});
            }, poll, choice); // prettier-ignore
        /** The last vote of each person: `{ user: answer }`. */
        const votes = async ([room, id]) => {
            const poll = window.client.getRoom(room).polls.get(id);
            const responses = (await poll.getResponses()).getRelations().sort((a, b) => a.getTs() - b.getTs());
            const chosen = (event) => poll.pollEvent.answers.find((answer) => answer.id === event.unstableExtensibleEvent.answerIds[0])?.text;
            return [poll.isEnded, Object.fromEntries(responses.map((event) => [event.getSender(), chosen(event)]))];
        };
        const [hanako, taro] = [people.hanako.userId, people.taro.userId];
        await vote("hanako", "火曜");
        await vote("taro", "火曜");
        for (const who of ["hanako", "taro"]) await becomes(who, votes, [poll], [false, { [hanako]: "火曜", [taro]: "火曜" }]);
        await vote("taro", "木曜");
        for (const who of ["hanako", "taro"]) await becomes(who, votes, [poll], [false, { [hanako]: "火曜", [taro]: "木曜" }]);
        await as("hanako", ([room, id]) => {
            const { type, content } = window.polls.PollEndEvent.from(id, "次回は調整します。").serialize();
            return window.client.sendEvent(room, type, content).then(() => {});
        }, poll); // prettier-ignore
        for (const who of ["hanako", "taro"]) await becomes(who, votes, [poll], [true, { [hanako]: "火曜", [taro]: "木曜" }]);
        // The second device, which has asked for nothing so far, gets all of it from the relations API.
        await until("second", ([room, id]) => window.client.getRoom(room).polls.has(id), poll);
        await becomes("second", votes, [poll], [true, { [hanako]: "火曜", [taro]: "木曜" }]);
    });

    /** Searches until the index, which follows the committer, has what is wanted. */
    const searched = (who, term, wanted) =>
        becomes(who, ([, term]) => window.client.searchRoomEvents({ term }).then((found) => found.count), [term], wanted);

    if (encrypted) {
        test(`${kind}: the server finds nothing of it, though the same words in the plain room beside it`, async () => {
            const plain = await as("taro", ([, room]) => window.client.sendTextMessage(room, "褥瘡の勉強会を開きます。").then((sent) => sent.event_id), ids.association);
            await searched("hanako", "褥瘡", 1);
            const found = await as("hanako", () => window.client.searchRoomEvents({ term: "褥瘡" }).then((found) => found.results.map((one) => one.context.ourEvent.getId())));
            assert.deepEqual(found, [plain]);
        });
    } else {
        test(`${kind}: Japanese words are found with what surrounds them, marked, page by page, in threads too`, async () => {
            const many = 2 * MORE_THAN_A_SYNC;
            await searched("hanako", "褥瘡", many);
            const found = await as("hanako", async ([room]) => {
                const search = await window.client.searchRoomEvents({ term: "褥瘡", filter: { rooms: [room], limit: 10 } });
                const sizes = [search.results.length];
                while (search.next_batch && sizes.length < 20) {
                    await window.client.backPaginateRoomEventsSearch(search);
                    sizes.push(search.results.length);
                }
                const [, second] = search.results;
                return {
                    sizes,
                    count: search.count,
                    highlights: search.highlights,
                    bodies: search.results.map((one) => one.context.ourEvent.getContent().body),
                    // The SDK's context is oldest first; who wrote it comes along.
                    around: second.context.getTimeline().map((event) => event.getContent().body),
                    sender: second.context.ourEvent.sender?.name,
                };
            });
            assert.deepEqual(found.bodies, Array.from({ length: many }, (_, i) => `褥瘡の処置 ${many - i}回目`));
            assert.deepEqual(found.sizes.slice(0, 5), [10, 20, 30, 40, 44]);
            assert.equal(found.count, many);
            assert.deepEqual(found.highlights, ["褥瘡"]);
            assert.equal(found.around.length, 3);
            assert.equal(found.around[1], `褥瘡の処置 ${many - 1}回目`);
            assert.equal(found.sender, people.taro.displayName);

            // Two words that must both be there; by relevance, as `searchMessageText` asks; and a message of a thread.
            const text = (query) =>
                as("taro", ([, query]) =>
                    window.client.searchMessageText({ query, keys: ["content.body"] }).then(({ search_categories: { room_events } }) => ({
                        bodies: room_events.results.map((one) => one.result.content.body),
                        highlights: [...room_events.highlights].sort(),
                    })), query); // prettier-ignore
            const exact = await text("褥瘡 44回目");
            assert.deepEqual(exact, { bodies: ["褥瘡の処置 44回目"], highlights: ["44回目", "褥瘡"].sort() });
            assert.deepEqual((await text("嚥下")).bodies, ["嚥下の評価をお願いします。"]);
            const inThread = await as("taro", () =>
                window.client.searchRoomEvents({ term: "嚥下" }).then(({ results: [one] }) => [one.context.ourEvent.getId(), one.context.ourEvent.threadRootId]),
            );
            assert.deepEqual(inThread, [ids.third, ids.root]);
            // Neither what was taken back nor what was never there; and nothing of a room that is not asked for.
            for (const term of ["別の方の話", "減塩食"]) assert.deepEqual(await text(term), { bodies: [], highlights: [term] }, term);
            const elsewhere = await as("taro", () => window.client.searchRoomEvents({ term: "褥瘡", filter: { rooms: [] } }).then((found) => found.count));
            assert.equal(elsewhere, 0);
        });
    }

    test(`${kind}: no client logged an error or asked outside`, async () => {
        for (const page of Object.values(pages)) {
            await clean(page, RIGHT_REFUSALS, NOISE);
            assert.deepEqual([...page.watched.origins], [city().origin]);
            await page.context().close();
        }
    });
}
