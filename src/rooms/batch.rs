//! One batch of the committer: what its units have done so far, and how that is undone and written.

use std::{collections::HashMap, sync::Arc};

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};

use super::{
    committer::{Context, Hint, TxnKey},
    effects::Effects,
    live::{Live, Membership, Receipt, RoomRow},
    pdu::{Event, Signer},
    state::RoomState,
};
use crate::{
    audit,
    config::Policy,
    error::{Result, not_found},
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
    pub(super) changed: bool,
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

/// An event that a unit empties.
pub(crate) struct Redacted {
    /// The event as it is afterwards.
    pub(crate) event: Arc<Event>,
    /// As it was, where the auditor keeps that.
    pub(crate) original: Option<Arc<str>>,
    /// The number by which the search index knows its room.
    pub(crate) room: i64,
    /// What the search index has of it.
    pub(crate) terms: Vec<String>,
    /// When.
    pub(crate) at: i64,
}

/// Everything buffered: written by `flush`, cut back by `undo`.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) state: Vec<StateRow>,
    /// (room, type, state key, to) of stored intervals that end.
    pub(crate) ends: Vec<(OwnedRoomId, String, String, i64)>,
    pub(crate) memberships: Vec<(OwnedUserId, OwnedRoomId, Membership)>,
    pub(crate) txns: Vec<(TxnKey, OwnedEventId, i64)>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) account_data: Vec<AccountData>,
    pub(crate) redacted: Vec<Redacted>,
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
    pub(super) conn: Conn,
    /// Memory, as of the last commit.
    pub live: Arc<Live>,
    /// The city's policies.
    pub policy: Arc<Policy>,
    /// Now, in milliseconds.
    pub now: i64,
    pub(super) signer: Arc<Signer>,
    pub(super) chain: audit::Chain,
    pub(super) position: i64,
    pub(super) rooms: HashMap<OwnedRoomId, RoomDraft>,
    /// Rooms as they were when the present unit first changed them.
    pub(super) undo: Vec<(OwnedRoomId, Option<RoomDraft>)>,
    pub(super) known_txns: HashMap<TxnKey, OwnedEventId>,
    pub(super) savepoint: bool,
    pub(super) pending: Pending,
    /// From where the one for whom the present unit runs acts.
    origin: Option<audit::Origin>,
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
            origin: None,
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
            self.pending.txns.push((key, nothing, self.now));
        }
    }

    /// An event by its id: of this batch, of memory, or of the database.
    pub async fn event(&mut self, event_id: &EventId) -> Result<Option<Arc<Event>>> {
        let redacted = self.pending.redacted.iter().map(|redacted| &redacted.event).rev();
        if let Some(event) = redacted.chain(&self.pending.events).find(|event| event.event_id == event_id) {
            return Ok(Some(Arc::clone(event)));
        }
        store::events::by_id(&mut self.conn, event_id).await
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
        let entry = match &self.origin {
            Some(origin) => entry.from(origin),
            None => entry,
        };
        self.pending.audit.push(entry);
    }

    /// Says from where somebody acts in this unit: its lines of the audit log about them have it.
    pub fn acting_from(&mut self, origin: audit::Origin) {
        self.origin = Some(origin);
    }

    /// Where the next unit begins.
    pub fn mark(&mut self) -> Mark {
        self.undo.clear();
        self.origin = None;
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
        for (key, _, _) in self.pending.txns.drain(mark.lengths[4]..) {
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
        // After what it empties, which may be of this batch.
        store::events::write_redacted(&mut script, &self.pending.redacted);
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
            self.redacted.len(),
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
        self.redacted.truncate(lengths[7]);
        self.audit.truncate(lengths[8]);
        self.media_links.truncate(lengths[9]);
        self.touched.truncate(lengths[10]);
        self.personal.truncate(lengths[11]);
        self.after.truncate(lengths[12]);
    }
}
