-- Version 1 of the bot's database. Applied migrations never change; a later version is a further file in store.rs.

-- Transactions of the server that were taken; a repeated one does nothing.
CREATE TABLE transactions (
    id TEXT PRIMARY KEY,
    received_at BIGINT NOT NULL
);
CREATE INDEX transactions_by_age ON transactions (received_at);

-- Single values: 'control' is the last answer of GET /control.
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE cases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    action TEXT NOT NULL,            -- JSON of cases::Action
    fingerprint TEXT NOT NULL,       -- the same for the same request: duplicates are answered with the number
    state TEXT NOT NULL,
    ready BOOLEAN NOT NULL,          -- everybody and everything in the action is looked up: may be approved
    revision BIGINT NOT NULL,        -- grows whenever the action is looked up anew
    attempts BIGINT NOT NULL,        -- how often it was approved (again after a failure)
    room_id TEXT NOT NULL,           -- where it was asked for
    event_id TEXT NOT NULL,          -- by which event
    requester TEXT NOT NULL,
    by_staff BOOLEAN NOT NULL,       -- a command of city staff: giving it is approving it
    filed_at BIGINT NOT NULL,
    decided_by TEXT,
    decided_at BIGINT,
    reason TEXT,                     -- of a refusal, or what failed
    finished_at BIGINT
);
CREATE UNIQUE INDEX cases_once_per_event ON cases (event_id, fingerprint);
CREATE UNIQUE INDEX cases_open_once ON cases (room_id, fingerprint)
    WHERE state IN ('filed', 'approved', 'executing');
CREATE INDEX cases_by_state ON cases (state, number);

-- Every change of a case: who, when, to what.
CREATE TABLE case_history (
    number BIGINT NOT NULL,
    state TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at BIGINT NOT NULL
);
CREATE INDEX case_history_by_case ON case_history (number);

-- Messages of the bot in the control room that a reaction or a reply decides.
CREATE TABLE case_messages (
    event_id TEXT PRIMARY KEY,
    number BIGINT NOT NULL
);

CREATE TABLE consents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    subject_key TEXT NOT NULL,       -- name after NFKC without spaces, and birth date
    name TEXT NOT NULL,
    birth_date TEXT NOT NULL,
    address TEXT NOT NULL,
    explained_by TEXT NOT NULL,
    explainer_role TEXT NOT NULL,
    explained_on TEXT NOT NULL,
    shares_information BOOLEAN NOT NULL,
    city_obtains BOOLEAN NOT NULL,
    reported_by TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    event_id TEXT NOT NULL UNIQUE,
    withdrawn_by TEXT,
    withdrawn_at BIGINT
);
CREATE INDEX consents_by_subject ON consents (subject_key);

-- What the bot asked ("is this a request to the city?"), one per person and room.
CREATE TABLE questions (
    room_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    event_id TEXT NOT NULL,
    actions TEXT NOT NULL,
    asked_at BIGINT NOT NULL,
    PRIMARY KEY (room_id, sender)
);

-- What is owed to the server. Within a lane the order is kept.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    lane TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,              -- JSON of outbox::Task
    attempts BIGINT NOT NULL DEFAULT 0,
    not_before BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX outbox_by_lane ON outbox (lane, id);

PRAGMA user_version = 1;
