//! Simplified sliding sync (MSC4186): the client names windows into its list of rooms, and is told of those. What a
//! client has been told is kept in memory, by connection; rooms are told from the same memory as `/v3/sync`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    hash::{Hash as _, Hasher as _},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ruma::{OwnedRoomId, events::StateEventType};
use serde_json::{Map, Value, json};

use self::{
    connection::{Point, Reach, RoomConfig, Sent},
    request::{Body, Filters},
    room::{Asked, Matched, Told},
};
use super::{token::SyncToken, v3, waiting::Waiting};
use crate::{
    error::{Code, Result, refuse},
    http::caller::Requester,
    keys,
    rooms::live::{LiveUser, Membership},
    server::Server,
    store,
};

pub mod connection;
pub mod request;
mod room;

/// A room that rules match.
#[derive(Default)]
struct Scope<'a> {
    /// Shared by the rooms that the same rule matches alone.
    config: Arc<RoomConfig>,
    lists: BTreeSet<&'a str>,
    subscribed: bool,
}

impl Scope<'_> {
    /// Takes up a rule: the first as it is, of further ones what goes beyond.
    fn join(&mut self, config: &Arc<RoomConfig>) {
        if self.lists.is_empty() && !self.subscribed {
            self.config = Arc::clone(config);
        } else if self.config != *config {
            Arc::make_mut(&mut self.config).join(config);
        }
    }
}

/// Account data by room, "" for the global ones: (type, content, position).
type AccountData = BTreeMap<String, Vec<(String, String, i64)>>;

/// Answers a sliding sync.
pub async fn sync(
    server: &Arc<Server>,
    who: &Requester,
    pos: Option<&str>,
    timeout: Duration,
    body: &Body,
) -> Result<String> {
    body.check()?;
    let device = who.device_id.as_deref().unwrap_or_default();
    let name = body.conn_id.as_deref().unwrap_or_default();
    let connections = &server.sliding;
    let (run, point) = match pos.filter(|pos| !pos.is_empty()) {
        Some(pos) => {
            let (run, point) = connections.point(&who.user_id, device, name, pos, server.now())?;
            (run, Some(point))
        }
        None => {
            let run = crate::clock::random_token(8);
            (connections.begin(&who.user_id, device, name, run, server.now()), None)
        }
    };
    let first = point.is_none();
    let point = point.unwrap_or_default();
    let asked = asked(body);
    let new_question = point.asked != asked;
    let to_device = to_device_since(server, who, body).await?;
    let user = server.live.user(&who.user_id);
    let mut waiting = Waiting::new(server, who, timeout);
    loop {
        // The wake-up is asked for before looking, so that none is lost in between.
        let wake = user.wake.notified();
        tokio::pin!(wake);
        wake.as_mut().enable();
        let upto = SyncToken {
            position: server.live.position().max(point.upto.position),
            volatile: server.live.volatile(),
            typed: false,
        };
        let idle = !new_question
            && !v3::something_new(&user, point.upto, upto)
            && to_device.is_none_or(|since| user.personal_position.load(Ordering::Acquire) <= since);
        if !idle || waiting.over() {
            let mut answer = Answer::new(server, who, body, &point, upto, to_device);
            // Apart on the heap: a poll that waits does not hold the room that an answer takes while it is made.
            Box::pin(answer.make(&user)).await?;
            if first || new_question || answer.something || waiting.over() {
                let Answer { rooms_after, mut out, .. } = answer;
                let next = Point { upto, rooms: rooms_after, asked };
                let pos = connections.offer(&who.user_id, device, name, &run, next);
                let _ = write!(out, ",\"pos\":\"{pos}\"}}");
                return Ok(out);
            }
        }
        waiting.wait(&mut wake).await?;
    }
}

/// What a request asks for, beside what only says how far the client is.
fn asked(body: &Body) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    format!("{:?} {:?}", body.lists, body.room_subscriptions).hash(&mut hasher);
    hasher.finish()
}

/// From where on messages to the device are wanted; what came before has arrived.
async fn to_device_since(server: &Arc<Server>, who: &Requester, body: &Body) -> Result<Option<i64>> {
    if body.extensions.to_device.enabled != Some(true) || who.device_id.is_none() {
        return Ok(None);
    }
    let Some(since) = body.extensions.to_device.since.as_deref().filter(|since| !since.is_empty()) else {
        return Ok(Some(0));
    };
    let token = SyncToken::parse(since, &server.epoch)?.ok_or_else(|| {
        refuse(Code::UnknownPos, "This token is from before a restore: start the sync afresh.")
    })?;
    keys::sync::acknowledge(server, who, token.position).await?;
    Ok(Some(token.position))
}

/// An answer being made.
struct Answer<'a> {
    server: &'a Arc<Server>,
    body: &'a Body,
    point: &'a Point,
    asked: Asked<'a>,
    to_device: Option<i64>,
    rooms_after: Arc<HashMap<OwnedRoomId, Sent>>,
    tags: HashMap<String, BTreeSet<String>>,
    out: String,
    something: bool,
}

static NO_TAGS: BTreeSet<String> = BTreeSet::new();

impl<'a> Answer<'a> {
    fn new(
        server: &'a Arc<Server>,
        who: &'a Requester,
        body: &'a Body,
        point: &'a Point,
        upto: SyncToken,
        to_device: Option<i64>,
    ) -> Self {
        Self {
            server,
            body,
            point,
            asked: Asked { who, since: point.upto, upto, now: server.now() },
            to_device,
            rooms_after: Arc::clone(&point.rooms),
            tags: HashMap::new(),
            out: String::from("{"),
            something: false,
        }
    }

    async fn make(&mut self, user: &Arc<LiveUser>) -> Result<()> {
        if let Some(txn_id) = &self.body.txn_id {
            let _ = write!(self.out, "\"txn_id\":{},", Value::from(txn_id.as_str()));
        }
        let memberships: BTreeMap<OwnedRoomId, Membership> = user
            .rooms
            .read()
            .iter()
            .filter(|(_, m)| m.changed_at <= self.asked.upto.position)
            .map(|(id, m)| (id.clone(), m.clone()))
            .collect();
        let account_data = self.account_data(user).await?;
        let direct = direct(self.server, self.asked.who, user).await?;
        self.read_tags().await?;
        let (scopes, counts) = self.scopes(&memberships, &direct).await?;
        self.out.push_str("\"lists\":");
        self.out.push_str(&Value::Object(counts).to_string());

        let direct_changed = account_data.get("").is_some_and(|l| l.iter().any(|(k, ..)| k == "m.direct"));
        let mut rooms = String::new();
        let (mut receipts, mut typing, mut data) = (Map::new(), Map::new(), Map::new());
        let mut delivered = Vec::new();
        for (room_id, scope) in &scopes {
            let Some(membership) = memberships.get(room_id) else { continue };
            let before = self.point.rooms.get(room_id);
            let mut matched =
                Matched { room_id, membership, config: &scope.config, lists: &scope.lists, before, dm: None };
            let joined = membership.membership == "join";
            if joined {
                let is_dm = direct.contains(room_id.as_str());
                let initial = matched.from(self.asked.since).1;
                matched.dm = (initial && is_dm || !initial && direct_changed).then_some(is_dm);
                let was_out_of_sight = before.is_some_and(|sent| sent.reach != Reach::Live);
                let told = room::write_joined(self.server, &self.asked, &matched, &mut rooms).await?;
                delivered.extend(told.events.last().map(|newest| (room_id.clone(), newest.position)));
                let extensions = &self.body.extensions;
                let covered = |switch: &request::Switch| {
                    switch.covers(room_id.as_str(), &scope.lists, scope.subscribed)
                };
                if covered(&extensions.receipts) {
                    self.receipts(room_id, &told, &mut receipts).await?;
                }
                if covered(&extensions.typing) {
                    self.typing(room_id, &told, was_out_of_sight, &mut typing).await?;
                }
                if covered(&extensions.account_data) {
                    let news: Vec<Value> = account_data
                        .get(room_id.as_str())
                        .into_iter()
                        .flatten()
                        .filter(|(.., position)| *position > told.from)
                        .map(|(kind, content, _)| event(kind, content))
                        .collect::<Result<_>>()?;
                    if !news.is_empty() {
                        data.insert(room_id.to_string(), news.into());
                    }
                }
            } else {
                room::write_invited(self.server, &self.asked, &matched, &mut rooms).await?;
            }
            self.remember(room_id, membership, scope);
        }
        crate::reading::delivered(self.server, self.asked.who, &delivered).await?;
        self.out_of_sight(&memberships, &scopes, &account_data, &mut rooms).await?;
        if !rooms.is_empty() {
            self.something = true;
            let _ = write!(self.out, ",\"rooms\":{{{rooms}}}");
        }
        let mut extensions = Map::new();
        self.whole_account(account_data, data, &mut extensions).await?;
        for (name, rooms) in [("receipts", receipts), ("typing", typing)] {
            if !rooms.is_empty() {
                self.something = true;
                extensions.insert(name.to_owned(), json!({"rooms": rooms}));
            }
        }
        let _ = write!(self.out, ",\"extensions\":{}", Value::Object(extensions));
        Ok(())
    }

    /// Notes that a room is told up to this answer's end.
    fn remember(&mut self, room_id: &OwnedRoomId, membership: &Membership, scope: &Scope<'_>) {
        let before = self.point.rooms.get(room_id);
        let same = before.is_some_and(|sent| {
            sent.reach == Reach::Live
                && sent.membership == membership.membership
                && sent.config == scope.config
        });
        if !same {
            let sent = Sent {
                reach: Reach::Live,
                membership: membership.membership.clone(),
                config: Arc::clone(&scope.config),
            };
            Arc::make_mut(&mut self.rooms_after).insert(room_id.clone(), sent);
        }
    }

    /// The rooms that no rule matches now but did before: those that have news are told from here when they come into
    /// sight again, those that the user is not in any more are told so once.
    async fn out_of_sight(
        &mut self,
        memberships: &BTreeMap<OwnedRoomId, Membership>,
        scopes: &BTreeMap<OwnedRoomId, Scope<'_>>,
        account_data: &AccountData,
        rooms: &mut String,
    ) -> Result<()> {
        let since = self.asked.since.position;
        for (room_id, sent) in &*self.point.rooms {
            if scopes.contains_key(room_id) {
                continue;
            }
            let membership = memberships.get(room_id);
            match membership {
                // It changes after this answer's end: the next one tells.
                None => {}
                Some(membership) if matches!(membership.membership.as_str(), "join" | "invite" | "knock") => {
                    if sent.reach != Reach::Live {
                        continue;
                    }
                    let live = self.server.live.room(&self.server.db, room_id).await?;
                    let news = live.current()?.row.last_position > since
                        || live.receipts_at.load(Ordering::Acquire) > since
                        || live.typing_at.load(Ordering::Acquire) > self.asked.since.volatile
                        || account_data.contains_key(room_id.as_str());
                    if news {
                        let sent = Sent { reach: Reach::Upto(since), ..sent.clone() };
                        Arc::make_mut(&mut self.rooms_after).insert(room_id.clone(), sent);
                    }
                }
                Some(membership) => {
                    room::write_left(self.server, &self.asked, room_id, membership, rooms).await?;
                    Arc::make_mut(&mut self.rooms_after).remove(room_id);
                }
            }
        }
        if since == 0 && !(self.body.lists.is_empty() && self.body.room_subscriptions.is_empty()) {
            // Rooms that somebody put the user out of: a client that was told of them in an earlier run would keep them.
            for (room_id, membership) in memberships {
                let out = matches!(membership.membership.as_str(), "leave" | "ban") && !membership.forgotten;
                if out && self.put_out(room_id, membership).await? {
                    room::write_left(self.server, &self.asked, room_id, membership, rooms).await?;
                }
            }
        }
        Ok(())
    }

    async fn put_out(&self, room_id: &OwnedRoomId, membership: &Membership) -> Result<bool> {
        let live = self.server.live.room(&self.server.db, room_id).await?;
        let event = crate::rooms::history::event_of(self.server, &live, &membership.event_id).await?;
        Ok(event.is_some_and(|event| event.sender != self.asked.who.user_id))
    }

    /// Account data that changed, and all of it for rooms that are new to the client.
    async fn account_data(&self, user: &LiveUser) -> Result<AccountData> {
        if !self.body.extensions.account_data.on() && self.asked.since.position == 0 {
            return Ok(AccountData::new());
        }
        let behind = self.point.rooms.values().any(|sent| sent.reach != Reach::Live);
        let changed = user.personal_position.load(Ordering::Acquire) > self.asked.since.position;
        let whole = behind || self.asked.since.position == 0 || self.new_rooms(user);
        if !changed && !whole {
            return Ok(AccountData::new());
        }
        let after = if whole { 0 } else { self.asked.since.position };
        let mut conn = self.server.db.read().await?;
        let rows = store::personal::account_data_with_position(
            &mut conn,
            self.asked.who.user_id.as_str(),
            (after, self.asked.upto.position),
        )
        .await?;
        let mut by_room = AccountData::new();
        for (room_id, kind, content, position) in rows {
            if !room_id.is_empty() || position > self.asked.since.position {
                by_room.entry(room_id).or_default().push((kind, content, position));
            }
        }
        Ok(by_room)
    }

    /// Whether the user is in a room that this connection has not told, as more than an invitation.
    fn new_rooms(&self, user: &LiveUser) -> bool {
        user.rooms.read().iter().any(|(room_id, membership)| {
            membership.membership == "join"
                && self.point.rooms.get(room_id).is_none_or(|sent| sent.membership != "join")
        })
    }

    /// Which rooms the rules match, with what, and how many rooms each list has.
    async fn scopes(
        &self,
        memberships: &BTreeMap<OwnedRoomId, Membership>,
        direct: &BTreeSet<String>,
    ) -> Result<(BTreeMap<OwnedRoomId, Scope<'a>>, Map<String, Value>)> {
        let mut scopes: BTreeMap<OwnedRoomId, Scope<'a>> = BTreeMap::new();
        let mut counts = Map::new();
        if !self.body.lists.is_empty() {
            if self.asked.since.position == 0 {
                let joined = memberships.iter().filter(|(_, m)| m.membership == "join");
                let joined = joined.map(|(room_id, _)| room_id.clone()).collect();
                self.server.live.prepare(&self.server.db, joined).await?;
            }
            let mut order = Vec::with_capacity(memberships.len());
            for (room_id, membership) in memberships {
                match membership.membership.as_str() {
                    "join" => {
                        let room = self.server.live.room(&self.server.db, room_id).await?;
                        order.push((room.current()?.row.last_position, room_id, membership));
                    }
                    "invite" | "knock" => order.push((membership.position, room_id, membership)),
                    _ => {}
                }
            }
            // The newest activity first.
            order.sort_unstable_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)));
            for (name, list) in &self.body.lists {
                let config = Arc::new(request::config(list.timeline_limit, &list.required_state));
                let mut index = 0;
                for (_, room_id, membership) in &order {
                    if let Some(filters) = &list.filters
                        && !self.passes(filters, room_id, membership, direct).await?
                    {
                        continue;
                    }
                    if list.has(index) {
                        let scope = scopes.entry((*room_id).clone()).or_default();
                        scope.join(&config);
                        scope.lists.insert(name.as_str());
                    }
                    index += 1;
                }
                counts.insert(name.clone(), json!({"count": index}));
            }
        }
        for (room_id, wants) in &self.body.room_subscriptions {
            let inside = memberships
                .get(room_id)
                .is_some_and(|m| matches!(m.membership.as_str(), "join" | "invite" | "knock"));
            if inside {
                let scope = scopes.entry(room_id.clone()).or_default();
                scope.join(&Arc::new(request::config(wants.timeline_limit, &wants.required_state)));
                scope.subscribed = true;
            }
        }
        Ok((scopes, counts))
    }

    async fn passes(
        &self,
        filters: &Filters,
        room_id: &OwnedRoomId,
        membership: &Membership,
        direct: &BTreeSet<String>,
    ) -> Result<bool> {
        let differs = |wanted: Option<bool>, is: bool| wanted.is_some_and(|wanted| wanted != is);
        if differs(filters.is_dm, direct.contains(room_id.as_str()))
            || differs(filters.is_invite, membership.membership == "invite")
        {
            return Ok(false);
        }
        let view = self.server.live.room(&self.server.db, room_id).await?.current()?;
        let encrypted = view.state.event(&StateEventType::RoomEncryption, "").is_some();
        let kind = view.state.content_str(&StateEventType::RoomCreate, "", "type");
        if differs(filters.is_encrypted, encrypted)
            || filters.room_types.as_ref().is_some_and(|types| !types.contains(&kind))
            || filters.not_room_types.as_ref().is_some_and(|types| types.contains(&kind))
        {
            return Ok(false);
        }
        if let Some(spaces) = &filters.spaces {
            let mut child = false;
            for space in spaces {
                if self.server.live.is_joined(&self.asked.who.user_id, space) {
                    let view = self.server.live.room(&self.server.db, space).await?.current()?;
                    child |= view
                        .state
                        .event(&StateEventType::SpaceChild, room_id.as_str())
                        .is_some_and(|event| event.content_field("via").is_some());
                }
            }
            if !child {
                return Ok(false);
            }
        }
        if filters.tags.is_some() || filters.not_tags.is_some() {
            let tags = self.tags.get(room_id.as_str()).unwrap_or(&NO_TAGS);
            let any = |wanted: &Vec<String>| wanted.iter().any(|tag| tags.contains(tag));
            if filters.tags.as_ref().is_some_and(|wanted| !any(wanted))
                || filters.not_tags.as_ref().is_some_and(any)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tags of the user's rooms, where a filter asks for them.
    async fn read_tags(&mut self) -> Result<()> {
        let asks = |filters: &Filters| filters.tags.is_some() || filters.not_tags.is_some();
        if !self.body.lists.values().filter_map(|list| list.filters.as_ref()).any(asks) {
            return Ok(());
        }
        let mut conn = self.server.db.read().await?;
        let user_id = self.asked.who.user_id.as_str();
        for (room_id, text) in store::personal::of_kind(&mut conn, user_id, "m.tag").await? {
            let content: Value = serde_json::from_str(&text)?;
            let tags =
                content["tags"].as_object().into_iter().flatten().map(|(tag, _)| tag.clone()).collect();
            self.tags.insert(room_id, tags);
        }
        Ok(())
    }

    async fn receipts(&self, room_id: &OwnedRoomId, told: &Told, out: &mut Map<String, Value>) -> Result<()> {
        let live = self.server.live.room(&self.server.db, room_id).await?;
        if live.receipts_at.load(Ordering::Acquire) <= told.from {
            return Ok(());
        }
        let upto = self.asked.upto.position;
        if let Some(text) = room::write_receipts(&live, &self.asked.who.user_id, told, upto) {
            out.insert(room_id.to_string(), serde_json::from_str(&text)?);
        }
        Ok(())
    }

    async fn typing(
        &self,
        room_id: &OwnedRoomId,
        told: &Told,
        was_out_of_sight: bool,
        out: &mut Map<String, Value>,
    ) -> Result<()> {
        let live = self.server.live.room(&self.server.db, room_id).await?;
        let users = live.typing_users();
        // Who comes new to a room is told who types, not that nobody does.
        let news = if told.initial {
            !users.is_empty()
        } else {
            // Of what came while the room was out of sight it is not known when: it is told as it is now.
            was_out_of_sight || live.typing_at.load(Ordering::Acquire) > self.asked.since.volatile
        };
        if news {
            out.insert(room_id.to_string(), json!({"type": "m.typing", "content": {"user_ids": users}}));
        }
        Ok(())
    }

    /// The extensions that are not about one room.
    async fn whole_account(
        &mut self,
        mut account_data: AccountData,
        rooms: Map<String, Value>,
        out: &mut Map<String, Value>,
    ) -> Result<()> {
        let (server, who) = (self.server, self.asked.who);
        if self.body.extensions.account_data.on() {
            let global = account_data.remove("").unwrap_or_default();
            let mut events: Vec<Value> =
                global.iter().map(|(kind, content, _)| event(kind, content)).collect::<Result<_>>()?;
            if self.asked.since.position == 0
                && !global.iter().any(|(kind, ..)| kind == crate::push::rules::KIND)
            {
                let rules = crate::push::rules::ruleset(server, &who.user_id).await?;
                let content = json!({"global": crate::push::rules::global(&rules)?});
                events.push(json!({"type": crate::push::rules::KIND, "content": content}));
            }
            if !events.is_empty() || !rooms.is_empty() {
                self.something = true;
                out.insert("account_data".to_owned(), json!({"global": events, "rooms": rooms}));
            }
        }
        if let Some(since) = self.to_device {
            let limit = self
                .body
                .extensions
                .to_device
                .limit
                .map_or(keys::sync::TO_DEVICE_MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
            let told = keys::sync::to_device(server, who, since, self.asked.upto.position, limit).await?;
            self.something |= !told.events.is_empty();
            let next = SyncToken { position: told.upto, ..SyncToken::default() }.to_text(&server.epoch);
            let events: Vec<Value> =
                told.events.iter().map(|text| Ok(serde_json::from_str(text)?)).collect::<Result<_>>()?;
            out.insert("to_device".to_owned(), json!({"next_batch": next, "events": events}));
        }
        if self.body.extensions.e2ee.on() {
            let (since, upto) = (self.asked.since.position, self.asked.upto.position);
            let e2ee = keys::sync::e2ee(server, who, since, upto).await?;
            self.something |= e2ee.is_news();
            let mut news = json!({"device_lists": {"changed": e2ee.changed, "left": e2ee.left}});
            if let Some(counts) = &e2ee.counts {
                news["device_one_time_keys_count"] = serde_json::to_value(&counts.one_time)?;
                news["device_unused_fallback_key_types"] = serde_json::to_value(&counts.unused_fallbacks)?;
            }
            out.insert("e2ee".to_owned(), news);
        }
        Ok(())
    }
}

/// Account data as an event.
fn event(kind: &str, content: &str) -> Result<Value> {
    Ok(json!({"type": kind, "content": serde_json::from_str::<Value>(content)?}))
}

/// The rooms that the user calls direct (client-server API, "Direct Messaging").
async fn direct(server: &Server, who: &Requester, user: &LiveUser) -> Result<Arc<BTreeSet<String>>> {
    let generation = user.generation.load(Ordering::Acquire);
    if let Some((of, rooms)) = &*user.direct.lock()
        && *of == generation
    {
        return Ok(Arc::clone(rooms));
    }
    let text = {
        let mut conn = server.db.read().await?;
        store::personal::account_data(&mut conn, who.user_id.as_str(), "", "m.direct").await?
    };
    let content: Value = text.as_deref().map_or(Ok(Value::Null), serde_json::from_str)?;
    let rooms: BTreeSet<String> = content
        .as_object()
        .into_iter()
        .flat_map(|of| of.values())
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(|room| room.as_str().map(ToOwned::to_owned))
        .collect();
    let rooms = Arc::new(rooms);
    if user.generation.load(Ordering::Acquire) == generation {
        *user.direct.lock() = Some((generation, Arc::clone(&rooms)));
    }
    Ok(rooms)
}
