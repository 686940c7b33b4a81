-- The outbox of the e-mail bridge. Times are milliseconds since 1970 (UTC).
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- One row is one mail to one recipient. AUTOINCREMENT: the Message-ID is made from the id, so no id is ever used twice.
-- address, account and parameters are emptied when the mail is settled; the row stays for a while so that a repeat is recognised.
CREATE TABLE mails (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    server_id TEXT UNIQUE,
    account TEXT NOT NULL,
    address TEXT NOT NULL,
    lang TEXT NOT NULL,
    parameters TEXT,
    state TEXT NOT NULL,
    urgent BOOLEAN NOT NULL,
    ambiguous BOOLEAN NOT NULL,
    attempts BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    settled_ms BIGINT
);
CREATE INDEX mails_due ON mails (due_ms) WHERE state = 'waiting';
CREATE INDEX mails_account ON mails (account) WHERE state IN ('waiting', 'sending');
CREATE INDEX mails_settled ON mails (settled_ms) WHERE settled_ms IS NOT NULL;

-- What a digest tells of. room_name and sender stay NULL unless a template asks for them.
CREATE TABLE notices (
    id INTEGER PRIMARY KEY,
    mail INTEGER NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
    pusher TEXT NOT NULL,
    event_id TEXT NOT NULL,
    room_id TEXT,
    scope TEXT NOT NULL,
    to_all BOOLEAN NOT NULL,
    importance TEXT NOT NULL,
    room_number BIGINT,
    room_name TEXT,
    sender TEXT,
    live BOOLEAN NOT NULL,
    UNIQUE (pusher, event_id)
);
CREATE INDEX notices_mail ON notices (mail);

-- What the homeserver has still to be told; a row goes when it has answered.
CREATE TABLE reports (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path TEXT NOT NULL,
    subject TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    due_ms BIGINT NOT NULL
);

-- Pushers whose address refused for good: the next notification for one is answered with its pushkey in `rejected`.
CREATE TABLE refusals (
    pusher TEXT PRIMARY KEY,
    code BIGINT NOT NULL,
    refused_ms BIGINT NOT NULL
);
