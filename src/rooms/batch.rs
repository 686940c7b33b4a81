//! One batch of the committer: what its units have done so far, and how that is undone, written and announced.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::{auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules},
};

use super::{
    committer::{Context, Hint, TxnKey},
    live::{Change, Live, Membership, Receipt, RoomRow, RoomView},
    pdu::{Draft, Event, Signer, Transaction},
    state::RoomState,
};
use crate::{
    audit,
    config::{Encryption, Policy},
    error::{Code, Error, Result, forbidden, not_found, refuse},
    store::{self, Conn, script::Script},
};

/// A room while a batch works on it.
#[derive(Clone)]
pub struct RoomDraft {
    /// The row.
    pub row: RoomRow,
    /// The state.
    pub state: RoomState,
    /// Whether this batch made the room.
    pub fresh: bool,
    /// Whether the row must be written.
    changed: bool,
}

/// An event that a unit wants in a room: a checked intent, not a finished event.
#[derive(Debug)]
pub struct Intent<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Who sends it.
    pub sender: &'a UserId,
    /// The type.
    pub kind: TimelineEventType,
    /// The state key, of state events.
    pub state_key: Option<String>,
    /// The content.
    pub content: CanonicalJsonObject,
    /// What it redacts.
    pub redacts: Option<&'a EventId>,
    /// The time to show, of appservices; now otherwise.
    pub ts: Option<i64>,
    /// The client transaction.
    pub txn: Option<TxnKey>,
    /// Whether a closed room lets it through (removal by the server, reopening, ordered redaction).
    pub through_closed: bool,
}

impl<'a> Intent<'a> {
    /// A state event.
    pub fn state(
        room_id: &'a RoomId,
        sender: &'a UserId,
        kind: &str,
        state_key: &str,
        content: serde_json::Value,
    ) -> Result<Self> {
        Ok(Self {
            room_id,
            sender,
            kind: kind.into(),
            state_key: Some(state_key.to_owned()),
            content: canonical(content)?,
            redacts: None,
            ts: None,
            txn: None,
            through_closed: false,
        })
    }

    /// A message event.
    pub fn message(
        room_id: &'a RoomId,
        sender: &'a UserId,
        kind: &str,
        content: serde_json::Value,
    ) -> Result<Self> {
        Ok(Self { state_key: None, ..Self::state(room_id, sender, kind, "", content)? })
    }
}

/// JSON of ours as canonical JSON.
pub fn canonical(value: serde_json::Value) -> Result<CanonicalJsonObject> {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        _ => Err(refuse(Code::BadJson, "The content must be a JSON object without fractional numbers.")),
    }
}

/// An interval of the room state, as it will be written.
pub(crate) struct StateRow {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) kind: String,
    pub(crate) state_key: String,
    pub(crate) event_id: OwnedEventId,
    pub(crate) from: i64,
    pub(crate) to: Option<i64>,
}

/// Account data that a unit sets.
pub struct AccountData {
    /// Whose.
    pub user_id: OwnedUserId,
    /// The room, or "" for global data.
    pub room_id: String,
    /// The type.
    pub kind: String,
    /// The content as JSON text.
    pub content: String,
    /// Position.
    pub position: i64,
}

/// Everything buffered: written by `flush`, cut back by `undo`.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) state: Vec<StateRow>,
    /// (room, type, state key, to) of stored intervals that end.
    pub(crate) ends: Vec<(OwnedRoomId, String, String, i64)>,
    pub(crate) memberships: Vec<(OwnedUserId, OwnedRoomId, Membership)>,
    pub(crate) txns: Vec<(TxnKey, OwnedEventId)>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) account_data: Vec<AccountData>,
    pub(crate) replaced: Vec<Arc<Event>>,
    pub(crate) audit: Vec<audit::Entry>,
    pub(crate) media_links: Vec<(String, String, String)>,
    /// Users to wake, beside the members of rooms with new events.
    pub(crate) touched: Vec<(OwnedUserId, i64)>,
    /// Users whose account data, keys or to-device messages changed.
    pub(crate) personal: Vec<(OwnedUserId, i64)>,
    /// Run after the commit, in order, before anyone is answered.
    pub(crate) after: Vec<Box<dyn FnOnce() + Send + Sync>>,
}

/// Where a unit began.
pub struct Mark {
    position: i64,
    lengths: [usize; 13],
    ends_of_state: Vec<(usize, Option<i64>)>,
}

/// A batch in the making.
pub struct Batch {
    conn: Conn,
    /// Memory, as of the last commit.
    pub live: Arc<Live>,
    /// The city's policies.
    pub policy: Arc<Policy>,
    /// Now, in milliseconds.
    pub now: i64,
    signer: Arc<Signer>,
    chain: audit::Chain,
    position: i64,
    rooms: HashMap<OwnedRoomId, RoomDraft>,
    /// Rooms as they were when the present unit first changed them.
    undo: Vec<(OwnedRoomId, Option<RoomDraft>)>,
    known_txns: HashMap<TxnKey, OwnedEventId>,
    savepoint: bool,
    pending: Pending,
}

/// What is announced after the commit.
pub struct Effects {
    position: i64,
    rooms: HashMap<OwnedRoomId, RoomDraft>,
    pending: Pending,
    chain: audit::Chain,
    audit_heads: Vec<String>,
}

impl Batch {
    /// Begins the transaction and reads ahead what the units have hinted at.
    pub async fn open(context: &Context, mut conn: Conn, hints: &[Hint]) -> Result<Self> {
        let txns: Vec<&TxnKey> = hints.iter().filter_map(|hint| hint.txn.as_ref()).collect();
        let mut rooms: Vec<OwnedRoomId> = hints.iter().flat_map(|hint| hint.rooms.iter().cloned()).collect();
        rooms.sort_unstable();
        rooms.dedup();
        let opening = store::script::open(&mut conn, &txns, &rooms).await?;
        let mut batch = Batch {
            conn,
            live: Arc::clone(&context.live),
            policy: Arc::clone(&context.policy),
            now: context.clock.now_ms(),
            signer: Arc::clone(&context.signer),
            chain: context.chain.clone(),
            position: opening.position,
            rooms: HashMap::new(),
            undo: Vec::new(),
            known_txns: opening.txns.into_iter().collect(),
            savepoint: false,
            pending: Pending::default(),
        };
        for row in opening.rooms {
            batch.draft_from(row).await?;
        }
        Ok(batch)
    }

    /// The server's name.
    pub fn server_name(&self) -> &ruma::ServerName {
        &self.signer.server_name
    }

    /// The connection, for a unit whose writes are not events. The unit's statements are undone with it.
    pub async fn sql(&mut self) -> Result<&mut Conn> {
        if !self.savepoint {
            store::run!(&mut self.conn, "SAVEPOINT unit")?;
            self.savepoint = true;
        }
        Ok(&mut self.conn)
    }

    /// The connection, to read with.
    pub fn reading(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// The next position.
    pub fn next_position(&mut self) -> i64 {
        self.position += 1;
        self.position
    }

    async fn draft_from(&mut self, row: RoomRow) -> Result<()> {
        // Memory is trusted only where the locked row says that it is the present.
        let in_memory = self.live.room_in_memory(&row.room_id).and_then(|room| room.view());
        let state = match in_memory {
            Some(view) if view.row.state_version == row.state_version => view.state.clone(),
            _ => {
                let mut state = RoomState::default();
                for event in store::rooms::current_state(&mut self.conn, &row.room_id).await? {
                    state.set(event);
                }
                state
            }
        };
        self.rooms.insert(row.room_id.clone(), RoomDraft { row, state, fresh: false, changed: false });
        Ok(())
    }

    /// The room as this batch has it so far.
    pub async fn room(&mut self, room_id: &RoomId) -> Result<&RoomDraft> {
        if !self.rooms.contains_key(room_id) {
            let row = store::rooms::rows(&mut self.conn, std::slice::from_ref(&room_id.to_owned()))
                .await?
                .pop()
                .ok_or_else(|| not_found("No such room."))?;
            self.draft_from(row).await?;
        }
        self.rooms.get(room_id).ok_or_else(|| not_found("No such room."))
    }

    /// The room, to change it: the unit's undo copy is kept.
    pub async fn room_mut(&mut self, room_id: &RoomId) -> Result<&mut RoomDraft> {
        self.room(room_id).await?;
        let room = self.rooms.get_mut(room_id).ok_or_else(|| not_found("No such room."))?;
        if !self.undo.iter().any(|(id, _)| id == room_id) {
            self.undo.push((room_id.to_owned(), Some(room.clone())));
        }
        room.changed = true;
        Ok(room)
    }

    /// The event that an earlier request with the same transaction id made.
    pub fn known_txn(&self, key: &TxnKey) -> Option<OwnedEventId> {
        self.known_txns.get(key).cloned()
    }

    /// Remembers a client transaction that made no event.
    pub fn remember_txn(&mut self, key: TxnKey) {
        if let Ok(nothing) = OwnedEventId::try_from("$none") {
            self.known_txns.insert(key.clone(), nothing.clone());
            self.pending.txns.push((key, nothing));
        }
    }

    /// Makes a room: its create event, with the creator joined. The room id comes from the event in version 12.
    pub fn create_room(
        &mut self,
        creator: &UserId,
        version: RoomVersionId,
        kind: &str,
        mut content: CanonicalJsonObject,
    ) -> Result<OwnedRoomId> {
        let rules = rules_of(&version)?;
        content.insert("room_version".to_owned(), CanonicalJsonValue::String(version.to_string()));
        if !rules.authorization.use_room_create_sender {
            content.insert("creator".to_owned(), CanonicalJsonValue::String(creator.to_string()));
        }
        let position = self.next_position();
        let own_id = if rules.authorization.room_create_event_id_as_room_id {
            None
        } else {
            Some(RoomId::new_v1(&self.signer.server_name))
        };
        // Two rooms made by one sender in one millisecond with equal content would have one id in version 12:
        // the creation time is moved on until it is free.
        let mut ts = self.now;
        let event = loop {
            let draft = Draft {
                room_id: own_id.as_deref(),
                kind: &TimelineEventType::RoomCreate,
                state_key: Some(""),
                sender: creator,
                content: content.clone(),
                redacts: None,
                ts,
                depth: 1,
                prev_events: Vec::new(),
                auth_events: Vec::new(),
            };
            let event = draft.sign(&self.signer, &rules, position)?;
            if !self.rooms.contains_key(&event.room_id) && self.live.room_in_memory(&event.room_id).is_none()
            {
                break event;
            }
            ts += 1;
        };
        check_state_independent_auth_rules(&rules.authorization, &event, |_| None::<Arc<Event>>)
            .map_err(|why| refuse(Code::BadJson, format!("The room cannot be made: {why}.")))?;
        let room_id = event.room_id.clone();
        let row = RoomRow {
            room_id: room_id.clone(),
            version,
            head: Vec::new(),
            depth: 0,
            state_version: 0,
            last_position: 0,
            status: "open".to_owned(),
            kind: kind.to_owned(),
            room_number: None,
            facility: None,
            subject_key: None,
            created_at: self.now,
            closed_at: None,
            archived_at: None,
            opened_by_case: None,
        };
        self.undo.push((room_id.clone(), None));
        self.rooms.insert(
            room_id.clone(),
            RoomDraft { row, state: RoomState::default(), fresh: true, changed: true },
        );
        self.place(event, None)?;
        Ok(room_id)
    }

    /// Authorises an intent on the room's present state, builds the event and puts it at the room's head.
    /// A state event that changes nothing answers the present one.
    pub async fn append(&mut self, intent: Intent<'_>) -> Result<Arc<Event>> {
        if let Some(key) = &intent.txn
            && let Some(event_id) = self.known_txn(key)
        {
            return self.event(&event_id).await?.ok_or_else(|| not_found("No such event."));
        }
        self.check_policy(&intent)?;
        self.room_mut(intent.room_id).await?;
        let room = self.rooms.get(intent.room_id).ok_or_else(|| not_found("No such room."))?;
        check_status(room, &intent)?;
        if let Some(state_key) = &intent.state_key {
            let kind = StateEventType::from(intent.kind.to_string());
            if let Some(present) = room.state.event(&kind, state_key)
                && present.sender == *intent.sender
                && present.content.get() == serde_json::to_string(&intent.content)?
            {
                let present = Arc::clone(present);
                check_sender_joined(room, &intent)?;
                return Ok(present);
            }
        }
        let rules = rules_of(&room.row.version)?;
        let content = serde_json::value::to_raw_value(&intent.content)?;
        let auth_types = auth_types_for_event(
            &intent.kind,
            intent.sender,
            intent.state_key.as_deref(),
            &content,
            &rules.authorization,
        )
        .map_err(|why| refuse(Code::BadJson, format!("The event is not well formed: {why}.")))?;
        let auth_events = auth_types
            .iter()
            .filter_map(|(kind, key)| room.state.event(kind, key))
            .map(|event| event.event_id.clone())
            .collect();
        let draft = Draft {
            room_id: Some(intent.room_id),
            kind: &intent.kind,
            state_key: intent.state_key.as_deref(),
            sender: intent.sender,
            content: intent.content,
            redacts: intent.redacts,
            ts: intent.ts.unwrap_or(self.now),
            depth: room.row.depth + 1,
            prev_events: room.row.head.clone(),
            auth_events,
        };
        let mut event = draft.sign(&self.signer, &rules, self.position + 1)?;
        check_state_dependent_auth_rules(&rules.authorization, &event, |kind, key| {
            room.state.event(kind, key).cloned()
        })
        .map_err(|why| {
            tracing::debug!(why, "an event was refused by the room's rules");
            forbidden("You are not allowed to do this in this room.")
        })?;
        self.next_position();
        event.txn = intent
            .txn
            .as_ref()
            .map(|key| Transaction { device_id: key.device_id.clone(), txn_id: key.txn_id.clone() });
        let event = self.place(event, intent.txn)?;
        self.link_media_of(&event).await?;
        Ok(event)
    }

    /// Links the media that an event shows to it, where its sender may read them (DESIGN 12).
    async fn link_media_of(&mut self, event: &Event) -> Result<()> {
        if !event.content.get().contains("mxc://") {
            return Ok(());
        }
        let content: serde_json::Value = serde_json::from_str(event.content.get())?;
        let server_name = self.signer.server_name.clone();
        for media_id in crate::media::links::media_ids(&content, &server_name) {
            let Some(medium) = store::media::medium(&mut self.conn, &media_id).await? else { continue };
            let readable = medium.user_id == event.sender
                || store::media::links(&mut self.conn, &media_id).await?.iter().any(|(room_id, _)| {
                    <&RoomId>::try_from(room_id.as_str())
                        .is_ok_and(|room_id| self.live.is_joined(&event.sender, room_id))
                });
            if readable {
                self.link_media(&media_id, event.room_id.as_str(), event.event_id.as_str());
            }
        }
        Ok(())
    }

    /// Puts a signed and authorised event at its room's head.
    fn place(&mut self, event: Event, txn: Option<TxnKey>) -> Result<Arc<Event>> {
        let event = Arc::new(event);
        let room = self
            .rooms
            .get_mut(&event.room_id)
            .ok_or_else(|| Error::internal("an event was placed in a room that is not open in this batch"))?;
        room.row.head = vec![event.event_id.clone()];
        room.row.depth = event.depth;
        room.row.last_position = event.position;
        if let Some(state_key) = &event.state_key {
            room.row.state_version = event.position;
            let replaced = room.state.set(Arc::clone(&event));
            let had = replaced.is_some();
            // What it replaced is known here for nothing; from the database it would cost a query.
            let _ = event.extra.set(super::pdu::Extra { replaces: replaced.map(shallow), because: None });
            if had {
                let open = self.pending.state.iter_mut().rev().find(|row| {
                    row.to.is_none()
                        && row.room_id == event.room_id
                        && row.state_key == *state_key
                        && row.kind == event.kind.to_string()
                });
                match open {
                    Some(row) => row.to = Some(event.position),
                    None => self.pending.ends.push((
                        event.room_id.clone(),
                        event.kind.to_string(),
                        state_key.clone(),
                        event.position,
                    )),
                }
            }
            self.pending.state.push(StateRow {
                room_id: event.room_id.clone(),
                kind: event.kind.to_string(),
                state_key: state_key.clone(),
                event_id: event.event_id.clone(),
                from: event.position,
                to: None,
            });
            if let (Some(membership), Ok(user_id)) =
                (event.membership.clone(), OwnedUserId::try_from(state_key.as_str()))
            {
                self.set_membership(user_id, &event, membership);
            }
        }
        if let Some(key) = txn {
            self.known_txns.insert(key.clone(), event.event_id.clone());
            self.pending.txns.push((key, event.event_id.clone()));
        }
        self.pending.events.push(Arc::clone(&event));
        Ok(event)
    }

    fn set_membership(&mut self, user_id: OwnedUserId, event: &Event, membership: String) {
        let before = self
            .pending
            .memberships
            .iter()
            .rev()
            .find(|(user, room, _)| *user == user_id && *room == event.room_id)
            .map(|(_, _, m)| m.clone())
            .or_else(|| self.live.membership(&user_id, &event.room_id));
        let changed_at = match before {
            Some(before) if before.membership == membership => before.changed_at,
            _ => event.position,
        };
        let row = Membership {
            membership,
            event_id: event.event_id.clone(),
            changed_at,
            position: event.position,
            forgotten: false,
        };
        self.pending.touched.push((user_id.clone(), event.position));
        self.pending.memberships.push((user_id, event.room_id.clone(), row));
    }

    fn check_policy(&self, intent: &Intent<'_>) -> Result<()> {
        let kind = intent.kind.to_string();
        if self.policy.encryption == Encryption::Forbidden
            && (kind == "m.room.encryption" || kind == "m.room.encrypted")
        {
            return Err(forbidden(
                "Encryption between users is switched off on this server (部屋の暗号化はできません).",
            ));
        }
        Ok(())
    }

    /// An event by its id: of this batch, of memory, or of the database.
    pub async fn event(&mut self, event_id: &EventId) -> Result<Option<Arc<Event>>> {
        if let Some(event) = self.pending.events.iter().find(|event| event.event_id == event_id) {
            return Ok(Some(Arc::clone(event)));
        }
        store::events::by_id(&mut self.conn, event_id).await
    }

    /// Empties an event (redaction): everywhere in the same unit; the original goes to the auditor's table.
    pub async fn redact(&mut self, target: &Event, by: &Arc<Event>) -> Result<()> {
        let rules = {
            let room = self.room(&target.room_id).await?;
            rules_of(&room.row.version)?
        };
        let CanonicalJsonValue::Object(mut object) = serde_json::from_str::<CanonicalJsonValue>(&target.pdu)?
        else {
            return Err(Error::internal("a stored event is not an object"));
        };
        ruma::canonical_json::redact_in_place(&mut object, &rules.redaction, None)
            .map_err(|error| Error::internal(error.to_string()))?;
        let pdu = serde_json::to_string(&object)?;
        let mut event =
            Event::from_pdu(&pdu, target.event_id.clone(), target.room_id.clone(), target.position)?;
        event.redacted_by = Some(by.event_id.clone());
        let _ = event.extra.set(super::pdu::Extra { replaces: None, because: Some(Arc::clone(by)) });
        let now = self.now;
        store::events::redact(self.sql().await?, target, &pdu, &by.event_id, now).await?;
        let event = Arc::new(event);
        if let Some(state_key) = &event.state_key {
            let kind = StateEventType::from(event.kind.to_string());
            let room = self.room_mut(&event.room_id).await?;
            let later: Vec<_> = room.state.events().filter_map(|e| e.with_former(&event)).collect();
            for copy in later {
                room.state.set(copy);
            }
            if room.state.event(&kind, state_key).is_some_and(|e| e.event_id == event.event_id) {
                room.state.set(Arc::clone(&event));
            }
        }
        self.pending.replaced.push(event);
        Ok(())
    }

    /// Moves a receipt.
    pub fn receipt(&mut self, mut receipt: Receipt) {
        receipt.position = self.next_position();
        self.pending.receipts.push(receipt);
    }

    /// Sets account data.
    pub fn account_data(&mut self, user_id: &UserId, room_id: &str, kind: &str, content: String) {
        let position = self.next_position();
        self.pending.account_data.push(AccountData {
            user_id: user_id.to_owned(),
            room_id: room_id.to_owned(),
            kind: kind.to_owned(),
            content,
            position,
        });
        self.pending.personal.push((user_id.to_owned(), position));
    }

    /// Says that something of a user's own changed (keys, to-device messages), at a new position.
    pub fn personal_change(&mut self, user_id: &UserId) -> i64 {
        let position = self.next_position();
        self.pending.personal.push((user_id.to_owned(), position));
        position
    }

    /// Runs after the commit and before anyone is answered, whether or not the caller still waits: the way in which
    /// a unit brings other memory (sessions, certificates, pushers) up to date.
    pub fn after_commit(&mut self, work: impl FnOnce() + Send + Sync + 'static) {
        self.pending.after.push(Box::new(work));
    }

    /// Wakes a user for something at the newest position.
    pub fn touch(&mut self, user_id: &UserId) {
        self.pending.touched.push((user_id.to_owned(), self.position));
    }

    /// Links a medium to an event, or to an account as its avatar (room and event "").
    pub fn link_media(&mut self, media_id: &str, room_id: &str, event_id: &str) {
        self.pending.media_links.push((media_id.to_owned(), room_id.to_owned(), event_id.to_owned()));
    }

    /// Writes a line of the audit log.
    pub fn audit(&mut self, entry: audit::Entry) {
        self.pending.audit.push(entry);
    }

    /// Where the next unit begins.
    pub fn mark(&mut self) -> Mark {
        self.undo.clear();
        Mark {
            position: self.position,
            lengths: self.pending.lengths(),
            ends_of_state: self.pending.state.iter().map(|row| row.to).enumerate().collect(),
        }
    }

    /// The unit is kept.
    pub async fn keep(&mut self, _mark: Mark) -> Result<()> {
        if std::mem::take(&mut self.savepoint) {
            store::run!(&mut self.conn, "RELEASE SAVEPOINT unit")?;
        }
        Ok(())
    }

    /// The unit was refused: it leaves nothing behind.
    pub async fn undo(&mut self, mark: Mark) -> Result<()> {
        if std::mem::take(&mut self.savepoint) {
            store::run!(&mut self.conn, "ROLLBACK TO SAVEPOINT unit")?;
            store::run!(&mut self.conn, "RELEASE SAVEPOINT unit")?;
        }
        for (room_id, before) in self.undo.drain(..).rev() {
            match before {
                Some(room) => self.rooms.insert(room_id, room),
                None => self.rooms.remove(&room_id),
            };
        }
        for (key, _) in self.pending.txns.drain(mark.lengths[4]..) {
            self.known_txns.remove(&key);
        }
        self.pending.cut(&mark.lengths);
        for (i, to) in mark.ends_of_state {
            self.pending.state[i].to = to;
        }
        self.position = mark.position;
        Ok(())
    }

    /// The statements that write everything buffered and commit, and what is announced afterwards.
    pub async fn flush(&mut self, batch_id: &str) -> Result<(Script, Effects)> {
        self.name_actors().await?;
        let mut script = Script::new(&self.conn);
        store::events::insert(&mut script, &self.pending);
        let changed: Vec<&RoomRow> =
            self.rooms.values().filter(|room| room.changed).map(|room| &room.row).collect();
        store::rooms::write_rows(&mut script, &changed)?;
        store::rooms::write_memberships(&mut script, &self.pending.memberships);
        store::rooms::write_receipts(&mut script, &self.pending.receipts);
        store::personal::write_account_data(&mut script, &self.pending.account_data);
        store::media::write_links(&mut script, &self.pending.media_links);
        let audit_heads = self.chain.append(&mut script, &self.pending.audit)?;
        store::meta::write_position(&mut script, self.position, batch_id);
        store::meta::commit(&mut script);
        let effects = Effects {
            position: self.position,
            rooms: std::mem::take(&mut self.rooms),
            pending: std::mem::take(&mut self.pending),
            chain: self.chain.clone(),
            audit_heads,
        };
        Ok((script, effects))
    }

    /// Who did it has a name in the audit log as it was at that time (C22).
    async fn name_actors(&mut self) -> Result<()> {
        let mut names: HashMap<String, String> = HashMap::new();
        for entry in &mut self.pending.audit {
            if !entry.name.is_empty() || !entry.actor.starts_with('@') {
                continue;
            }
            if !names.contains_key(&entry.actor) {
                let profile = store::personal::profile(&mut self.conn, &entry.actor).await?;
                let name = profile.and_then(|profile| profile.display_name).unwrap_or_default();
                names.insert(entry.actor.clone(), name);
            }
            entry.name = names.get(&entry.actor).cloned().unwrap_or_default();
        }
        Ok(())
    }

    /// The connection back, at the end.
    pub fn into_connection(self) -> Conn {
        self.conn
    }
}

impl Pending {
    fn lengths(&self) -> [usize; 13] {
        [
            self.events.len(),
            self.state.len(),
            self.ends.len(),
            self.memberships.len(),
            self.txns.len(),
            self.receipts.len(),
            self.account_data.len(),
            self.replaced.len(),
            self.audit.len(),
            self.media_links.len(),
            self.touched.len(),
            self.personal.len(),
            self.after.len(),
        ]
    }

    fn cut(&mut self, lengths: &[usize; 13]) {
        self.events.truncate(lengths[0]);
        self.state.truncate(lengths[1]);
        self.ends.truncate(lengths[2]);
        self.memberships.truncate(lengths[3]);
        self.txns.truncate(lengths[4]);
        self.receipts.truncate(lengths[5]);
        self.account_data.truncate(lengths[6]);
        self.replaced.truncate(lengths[7]);
        self.audit.truncate(lengths[8]);
        self.media_links.truncate(lengths[9]);
        self.touched.truncate(lengths[10]);
        self.personal.truncate(lengths[11]);
        self.after.truncate(lengths[12]);
    }
}

impl Effects {
    /// Brings memory up to date and wakes whoever waits. Called after COMMIT and never before.
    pub fn publish(self, context: &mut Context) {
        let live = &context.live;
        context.chain = self.chain;
        context.chain.write_heads(&self.audit_heads);
        let mut touched: BTreeMap<OwnedUserId, i64> = BTreeMap::new();
        let mut touch = |user_id: &UserId, at: i64| {
            let newest = touched.entry(user_id.to_owned()).or_insert(at);
            *newest = (*newest).max(at);
        };
        let mut changes: HashMap<OwnedRoomId, Vec<Change>> = HashMap::new();
        for event in &self.pending.events {
            changes.entry(event.room_id.clone()).or_default().push(Change::Event(Arc::clone(event)));
        }
        for event in &self.pending.replaced {
            changes.entry(event.room_id.clone()).or_default().push(Change::Replaced(Arc::clone(event)));
        }
        for receipt in &self.pending.receipts {
            changes.entry(receipt.room_id.clone()).or_default().push(Change::Receipt(receipt.clone()));
            if receipt.kind != "m.read" {
                touch(&receipt.user_id, receipt.position);
            }
        }
        let public_receipts: HashMap<&RoomId, i64> = self
            .pending
            .receipts
            .iter()
            .filter(|receipt| receipt.kind == "m.read")
            .map(|receipt| (&*receipt.room_id, receipt.position))
            .collect();
        for (room_id, room) in &self.rooms {
            let newest = public_receipts.get(&**room_id).copied();
            if room.changed || newest.is_some() {
                let at = newest.unwrap_or_default().max(room.row.last_position);
                for (user_id, _) in room.state.members("join") {
                    touch(&user_id, at);
                }
            }
            if room.changed {
                changes.entry(room_id.clone()).or_default().push(Change::Row(room.row.clone()));
            }
        }
        // A receipt alone does not open its room in the batch: the members come from memory.
        for (room_id, at) in &public_receipts {
            if !self.rooms.contains_key(*room_id)
                && let Some(view) = live.room_in_memory(room_id).and_then(|room| room.view())
            {
                for (user_id, _) in view.state.members("join") {
                    touch(&user_id, *at);
                }
            }
        }
        for (room_id, room) in self.rooms {
            if room.fresh {
                let events: Vec<_> =
                    self.pending.events.iter().filter(|e| e.room_id == room_id).cloned().collect();
                changes.remove(&room_id);
                live.insert(RoomView { row: room.row, state: room.state }, events);
            }
        }
        for (room_id, list) in changes {
            live.merge(&room_id, list);
        }
        for (user_id, room_id, membership) in self.pending.memberships {
            live.user(&user_id).rooms.write().insert(room_id, membership);
        }
        for (user_id, at) in &self.pending.personal {
            let user = live.user(user_id);
            user.generation.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            user.personal_position.fetch_max(*at, std::sync::atomic::Ordering::AcqRel);
            touch(user_id, *at);
        }
        for (user_id, at) in &self.pending.touched {
            touch(user_id, *at);
        }
        for work in self.pending.after {
            work();
        }
        live.advance(self.position, &touched);
    }
}

/// A copy of an event without what it replaced itself: a chain of them would never be dropped.
fn shallow(event: Arc<Event>) -> Arc<Event> {
    if event.extra.get().is_none_or(|extra| extra.replaces.is_none()) {
        return event;
    }
    match Event::from_pdu(&event.pdu, event.event_id.clone(), event.room_id.clone(), event.position) {
        Ok(copy) => Arc::new(copy),
        Err(_) => event,
    }
}

/// The rules of a room version that Heya offers.
pub fn rules_of(version: &RoomVersionId) -> Result<RoomVersionRules> {
    match version {
        RoomVersionId::V10 | RoomVersionId::V11 | RoomVersionId::V12 => version
            .rules()
            .ok_or_else(|| refuse(Code::UnsupportedRoomVersion, "This room version is not offered.")),
        _ => Err(refuse(Code::UnsupportedRoomVersion, "This room version is not offered: use 12, 11 or 10.")),
    }
}

/// A closed room takes nothing more (DESIGN 15), whoever asks.
fn check_status(room: &RoomDraft, intent: &Intent<'_>) -> Result<()> {
    if room.row.status == "open" || intent.through_closed {
        return Ok(());
    }
    let leaves = intent.kind == TimelineEventType::RoomMember
        && intent.state_key.as_deref() == Some(intent.sender.as_str())
        && intent.content.get("membership").and_then(CanonicalJsonValue::as_str) == Some("leave");
    if leaves {
        return Ok(());
    }
    Err(forbidden(
        "This room has been closed: it can be read, and nothing can be added (この部屋は終了しました).",
    )
    .with("jp.heya.room", room.row.status.clone()))
}

/// A repeated state event is answered only to someone who could have sent it.
fn check_sender_joined(room: &RoomDraft, intent: &Intent<'_>) -> Result<()> {
    if room.state.membership(intent.sender) == ruma::events::room::member::MembershipState::Join {
        return Ok(());
    }
    Err(forbidden("You are not allowed to do this in this room."))
}
