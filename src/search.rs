//! Search that finds Japanese (DESIGN 16): text after NFKC and in lower case, as pairs of characters for runs of
//! Japanese script (most clinical words have two) and as words for the rest. Every hit is checked against the text
//! itself, so that the index may be coarse. What is redacted is in neither.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedRoomId, RoomId, UserId};
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

use crate::{
    error::{Code, Error, Result},
    rooms::{
        committer::Hint,
        history::{self, Sight},
        live::LiveRoom,
        pdu::Event,
    },
    server::Server,
    store,
};

/// The cursor's name.
const NAME: &str = "search";
/// Events read at once.
const CHUNK: usize = 200;
/// Rows of the index written in one unit at most, so that senders do not wait for it.
const ROWS_MAX: usize = 10_000;
/// Terms of one event at most.
const TERMS_MAX: usize = 2_000;
/// The longest word, in characters; longer ones are found by their beginning.
const WORD_MAX: usize = 64;
/// Terms and words of a query at most.
const QUERY_MAX: usize = 32;
/// Units that wait in the committer before indexing steps aside.
const BUSY: usize = 16;
/// Entries of the index read from one room at once.
const ROOM_HITS: usize = 200;
/// Events compared with the query for one page at most.
const TRIES_MAX: usize = 500;

// ── Terms ───────────────────────────────────────────────────────────────────────────────────

/// Text as it is compared: full-width and half-width forms are one, and so are capital and small letters.
pub fn normal(text: &str) -> String {
    text.nfkc().flat_map(char::to_lowercase).collect()
}

/// What a text is indexed by. A redaction deletes by it: whoever changes this makes the index anew (a migration that empties
/// it and its follower's cursor).
pub fn terms(text: &str) -> Vec<String> {
    split(text, true, TERMS_MAX)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    Japanese,
    Word,
    Other,
}

fn script(c: char) -> Script {
    match c {
        // 々 〆 〇, hiragana, katakana with the prolonged sound mark (the middle dot ・ and ゠ divide words).
        '\u{3005}'..='\u{3007}' | '\u{3041}'..='\u{309f}' | '\u{30a1}'..='\u{30fa}' | '\u{30fc}'..='\u{30ff}'
        | '\u{31f0}'..='\u{31ff}'
        // Han: extension A, the main block, compatibility forms, the supplementary planes.
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{323af}' => Script::Japanese,
        c if c.is_alphanumeric() => Script::Word,
        _ => Script::Other,
    }
}

/// Splits text into terms, each once. `single`: whether a lone Japanese character is a term.
fn split(text: &str, single: bool, max: usize) -> Vec<String> {
    let text: Vec<char> = normal(text).chars().collect();
    let mut seen = HashSet::new();
    let mut terms = Vec::new();
    let mut at = 0;
    while at < text.len() && terms.len() < max {
        let kind = script(text[at]);
        let end = text[at..].iter().position(|c| script(*c) != kind).map_or(text.len(), |n| at + n);
        let run = &text[at..end];
        at = end;
        let mut add = |chars: &[char]| {
            let term: String = chars.iter().collect();
            if terms.len() < max && seen.insert(term.clone()) {
                terms.push(term);
            }
        };
        match kind {
            Script::Other => {}
            Script::Word => add(&run[..run.len().min(WORD_MAX)]),
            Script::Japanese if run.len() > 1 => run.windows(2).for_each(add),
            Script::Japanese if single => add(run),
            Script::Japanese => {}
        }
    }
    terms
}

/// What somebody looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Terms that must all be in the index.
    terms: Vec<String>,
    /// The words as they were typed, in their normal form: each must stand in the text.
    pub words: Vec<String>,
}

impl Query {
    /// Reads a query; none where it has nothing that could be found.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<String> = normal(text)
            .split_whitespace()
            .filter(|word| word.chars().any(|c| script(c) != Script::Other))
            .take(QUERY_MAX)
            .map(ToOwned::to_owned)
            .collect();
        // A lone character beside other words («CTを») stands in longer runs of the text, which the index has only as
        // pairs: the text itself decides.
        let text = words.join(" ");
        let mut terms = split(&text, false, QUERY_MAX);
        if terms.is_empty() {
            terms = split(&text, true, QUERY_MAX);
        }
        (!terms.is_empty()).then_some(Self { terms, words })
    }

    /// Whether every word stands in the text.
    pub fn matches(&self, text: &str) -> bool {
        let text = normal(text);
        self.words.iter().all(|word| text.contains(word.as_str()))
    }
}

/// Which fields are searched (`keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// `content.body`.
    pub body: bool,
    /// `content.name`.
    pub name: bool,
    /// `content.topic`.
    pub topic: bool,
}

/// All of them.
pub const ALL_FIELDS: Fields = Fields { body: true, name: true, topic: true };

/// The text of an event that is searched. An edit is found by its new text, at the edit.
pub fn text_of(event: &Event, fields: Fields) -> Option<String> {
    if event.redacted_by.is_some() {
        return None;
    }
    let kind = event.kind.to_string();
    match (kind.as_str(), event.is_state()) {
        ("m.room.message", false) if fields.body => {
            let edited = event.content_field("m.new_content");
            match edited.as_ref().and_then(|content| content.get("body")).and_then(Value::as_str) {
                Some(body) => Some(body.to_owned()),
                None => event.content_str("body"),
            }
        }
        ("m.room.name", true) if fields.name => event.content_str("name"),
        ("m.room.topic", true) if fields.topic => event.content_str("topic"),
        _ => None,
    }
}

/// What the index has of an event.
pub fn terms_of(event: &Event) -> Vec<String> {
    text_of(event, ALL_FIELDS).map(|text| terms(&text)).unwrap_or_default()
}

// ── The index ───────────────────────────────────────────────────────────────────────────────

/// Keeps the index up to date until the server stops.
pub async fn run(server: Arc<Server>) {
    let mut stopping = server.stopping.subscribe();
    tokio::select! {
        () = follow(&server) => {}
        () = crate::server::stopped(&mut stopping) => {}
    }
}

/// How long new events are gathered before they are indexed.
const GATHER: Duration = Duration::from_millis(500);

async fn follow(server: &Arc<Server>) {
    let mut at = None;
    let mut wait = Duration::from_millis(500);
    loop {
        // Registered before the position is looked at: a commit in between is not missed.
        let mut committed = pin!(server.live.committed.notified());
        committed.as_mut().enable();
        match step(server, at).await {
            Ok(reached) => {
                wait = Duration::from_millis(500);
                at = Some(reached);
                if reached >= server.live.position() {
                    committed.await;
                    // Under load many events share one commit; whoever searches does not wait for it.
                    tokio::select! {
                        () = tokio::time::sleep(GATHER) => {}
                        () = server.search_wanted.notified() => {}
                    }
                } else {
                    step_aside(server).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the search index will be tried again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        }
    }
}

/// While many wait to write, the index lets them: it catches up when there is room, and a little all the time.
async fn step_aside(server: &Server) {
    for _ in 0..10 {
        if server.committer.waiting() < BUSY {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Indexes the next events, in one unit with the cursor; how far it has come.
async fn step(server: &Arc<Server>, at: Option<i64>) -> Result<i64> {
    let upto = server.live.position();
    if at == Some(upto) {
        return Ok(upto);
    }
    let mut conn = server.db.read().await?;
    let at = match at {
        Some(at) => at,
        // At the first start everything there is gets indexed.
        None => store::meta::follower(&mut conn, NAME).await?.unwrap_or(0).min(upto),
    };
    let events = store::events::arrived(&mut conn, at, upto, CHUNK).await?;
    let mut rooms: Vec<&RoomId> = events.iter().map(|event| &*event.room_id).collect();
    rooms.sort_unstable();
    rooms.dedup();
    let rooms = store::search::numbers(&mut conn, &rooms).await?;
    drop(conn);
    let Some(newest) = events.last() else { return Ok(upto) };
    let mut end = if events.len() < CHUNK { upto } else { newest.position };
    let mut rows: Vec<(i64, String, i64)> = Vec::new();
    for event in &events {
        if rows.len() >= ROWS_MAX {
            end = event.position - 1;
            break;
        }
        if let Some(room) = rooms.get(event.room_id.as_str()) {
            rows.extend(terms_of(event).into_iter().map(|term| (*room, term, event.position)));
        }
    }
    server
        .commit(Hint::default(), move |batch| {
            Box::pin(async move {
                // What was redacted or purged since it was read must not come back.
                let there: Vec<(i64,)> = store::all!(
                    batch.reading(),
                    (i64,),
                    "SELECT position FROM events WHERE position > $1 AND position <= $2 AND redacted_by IS NULL",
                    at,
                    end
                )?;
                let there: HashSet<i64> = there.into_iter().map(|(position,)| position).collect();
                rows.retain(|(_, _, position)| there.contains(position));
                let conn = batch.sql().await?;
                store::search::insert(conn, &rows).await?;
                store::meta::move_follower(conn, NAME, end).await
            })
        })
        .await?;
    Ok(end)
}

/// Waits until what has been committed by now is indexed, at most a second: one finds what one has just written.
pub async fn caught_up(server: &Server) -> Result<()> {
    let waiting = async {
        let newest = {
            let mut conn = server.db.read().await?;
            store::one!(&mut conn, (i64,), "SELECT position FROM events ORDER BY position DESC LIMIT 1")?
                .map_or(0, |(newest,)| newest)
        };
        loop {
            let mut committed = pin!(server.live.committed.notified());
            committed.as_mut().enable();
            let indexed = {
                let mut conn = server.db.read().await?;
                store::meta::follower(&mut conn, NAME).await?
            };
            if indexed.unwrap_or(0) >= newest {
                return Ok::<(), Error>(());
            }
            server.search_wanted.notify_one();
            committed.await;
        }
    };
    // Late is not wrong: what is indexed is answered.
    tokio::time::timeout(Duration::from_secs(1), waiting).await.unwrap_or(Ok(()))
}

// ── Finding ─────────────────────────────────────────────────────────────────────────────────

/// What a page of hits is made of.
pub struct Wanted<'a> {
    /// The query.
    pub query: &'a Query,
    /// The rooms to look in: ones that the searcher is joined to.
    pub rooms: &'a [OwnedRoomId],
    /// The fields to look in.
    pub fields: Fields,
    /// Events before this position.
    pub before: i64,
    /// Hits on the page.
    pub limit: usize,
}

/// A page of hits.
pub struct Page {
    /// The hits, newest first.
    pub hits: Vec<Hit>,
    /// Hits from here on: exact where there are few.
    pub count: usize,
    /// The position before which the next page begins.
    pub next: Option<i64>,
}

/// A hit.
pub struct Hit {
    /// The event.
    pub event: Arc<Event>,
    /// Its room.
    pub room: Arc<LiveRoom>,
    /// What the searcher sees of the room.
    pub sight: Sight,
}

/// Looks the query up in the rooms; `passes` is the request's filter.
pub async fn page(
    server: &Server,
    user: &UserId,
    wanted: &Wanted<'_>,
    passes: impl Fn(&Event) -> bool + Send,
) -> Result<Page> {
    let rooms: Vec<&RoomId> = wanted.rooms.iter().map(|room_id| &**room_id).collect();
    let numbers = store::search::numbers(&mut server.db.read().await?, &rooms).await?;
    let mut sights: BTreeMap<usize, Option<(Arc<LiveRoom>, Sight)>> = BTreeMap::new();
    let mut hits: Vec<Hit> = Vec::new();
    let mut before = wanted.before;
    let mut tries = 0;
    // Where looking stopped before the end of the rooms.
    let mut unseen = None;
    'rounds: loop {
        let (candidates, floor) = candidates(server, wanted, &numbers, before).await?;
        for (position, room) in candidates {
            if tries == TRIES_MAX {
                unseen = Some(position + 1);
                break 'rounds;
            }
            tries += 1;
            let room_id = &wanted.rooms[room];
            let seen = match sights.entry(room) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(sight(server, user, room_id).await?),
            };
            let Some((live, sight)) = seen else { continue };
            if !sight.sees(position) {
                continue;
            }
            let Some(event) = event_at(server, live, room_id, position).await? else { continue };
            let found = text_of(&event, wanted.fields).is_some_and(|text| wanted.query.matches(&text));
            if found && passes(&event) {
                hits.push(Hit { event, room: Arc::clone(live), sight: sight.clone() });
            }
        }
        if floor == 0 {
            break;
        }
        before = floor;
        if hits.len() > wanted.limit {
            unseen = Some(before);
            break;
        }
    }
    let count = hits.len();
    let next = if count > wanted.limit {
        hits.truncate(wanted.limit);
        hits.last().map(|hit| hit.event.position)
    } else {
        unseen
    };
    Ok(Page { hits, count, next })
}

/// What the index has before a position, newest first, as (position, room); and the position down to which that is
/// complete (0: all of it).
async fn candidates(
    server: &Server,
    wanted: &Wanted<'_>,
    numbers: &HashMap<String, i64>,
    before: i64,
) -> Result<(Vec<(i64, usize)>, i64)> {
    let mut conn = server.db.read().await?;
    let mut all = Vec::new();
    let mut floor = 0;
    for (room, room_id) in wanted.rooms.iter().enumerate() {
        let Some(number) = numbers.get(room_id.as_str()) else { continue };
        let limit = i64::try_from(ROOM_HITS).unwrap_or(i64::MAX);
        let found = store::search::find(&mut conn, *number, &wanted.query.terms, before, limit).await?;
        if found.len() == ROOM_HITS
            && let Some(oldest) = found.last()
        {
            floor = floor.max(*oldest);
        }
        all.extend(found.into_iter().map(|position| (position, room)));
    }
    all.retain(|(position, _)| *position >= floor);
    all.sort_unstable_by(|a, b| b.cmp(a));
    Ok((all, floor))
}

/// What the searcher sees of a room; none where they have just left it.
async fn sight(server: &Server, user: &UserId, room_id: &RoomId) -> Result<Option<(Arc<LiveRoom>, Sight)>> {
    match history::sight(server, user, room_id).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.code(), Some(Code::Forbidden | Code::NotFound)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The event at a position of a room, from memory or the database.
async fn event_at(
    server: &Server,
    room: &LiveRoom,
    room_id: &RoomId,
    position: i64,
) -> Result<Option<Arc<Event>>> {
    let in_memory = room.timeline.read().events.iter().find(|event| event.position == position).cloned();
    if in_memory.is_some() {
        return Ok(in_memory);
    }
    // A connection is held for no longer than this: `history::sight` takes one too, and the pool is small.
    let mut conn = server.db.read().await?;
    let mut found = store::events::arrived(&mut conn, position - 1, position, 1).await?;
    Ok(found.pop().filter(|event| event.room_id == *room_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(terms(text), expected, "{text}");
    }

    #[test]
    fn japanese_is_indexed_by_pairs_and_the_rest_by_words() {
        check("服薬", &["服薬"]);
        check("服薬確認", &["服薬", "薬確", "確認"]);
        check("薬", &["薬"]);
        check("ケアマネージャー", &["ケア", "アマ", "マネ", "ネー", "ージ", "ジャ", "ャー"]);
        check("ﾊﾞｲﾀﾙ", &["バイ", "イタ", "タル"]);
        check("ＣＴをＣＴ", &["ct", "を"]);
        check("SpO2 98%、体温36.5℃", &["spo2", "98", "体温", "36", "5", "c"]);
        check("佐々木・〇〇市", &["佐々", "々木", "〇〇", "〇市"]);
        check("…!?", &[]);
        check("", &[]);
    }

    #[test]
    fn terms_are_bounded_and_told_once() {
        let long: String = (0..5_000_u32).filter_map(|i| char::from_u32(0x4e00 + i)).collect();
        assert_eq!(terms(&long).len(), TERMS_MAX);
        assert_eq!(terms(&"x".repeat(500)), ["x".repeat(WORD_MAX)]);
        check("血圧 血圧 血圧", &["血圧"]);
    }

    fn found(query: &str, text: &str) -> bool {
        let query = Query::parse(query).unwrap();
        let indexed = terms(text);
        query.terms.iter().all(|term| indexed.contains(term)) && query.matches(text)
    }

    #[test]
    fn every_word_of_the_query_must_stand_in_the_text() {
        assert!(found("服薬", "本日の服薬を確認しました"));
        assert!(found("バイタル", "ﾊﾞｲﾀﾙ測定"));
        assert!(found("体温 spo2", "体温は36.8、ＳｐＯ２は97%"));
        assert!(found("36.8", "体温は36.8"));
        assert!(found("CTを", "明日CTを撮ります"));
        assert!(!found("服薬", "薬を服用"));
        // All pairs are there, the word is not.
        assert!(!found("服薬薬局", "薬局で服薬、薬薬"));
        assert!(!found("体温 血圧", "体温のみ"));
    }

    #[test]
    fn a_query_of_signs_finds_nothing() {
        assert_eq!(Query::parse("  …、 "), None);
        assert_eq!(Query::parse(""), None);
        assert!(found("薬", "朝の 薬 です"));
    }

    #[test]
    fn edits_are_found_by_their_new_text_and_redacted_events_not_at_all() {
        let pdu = serde_json::json!({
            "type": "m.room.message", "sender": "@a:example.jp", "origin_server_ts": 1, "depth": 1,
            "content": {"body": "* 新しい", "m.new_content": {"body": "新しい"}},
            "prev_events": [], "auth_events": [],
        })
        .to_string();
        let id = ruma::owned_event_id!("$event");
        let mut event = Event::from_pdu(&pdu, id.clone(), ruma::owned_room_id!("!r:example.jp"), 1).unwrap();
        assert_eq!(text_of(&event, ALL_FIELDS).as_deref(), Some("新しい"));
        assert_eq!(text_of(&event, Fields { body: false, ..ALL_FIELDS }), None);
        event.redacted_by = Some(id);
        assert_eq!(text_of(&event, ALL_FIELDS), None);
    }
}
