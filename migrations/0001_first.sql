-- The first table set. One text for SQLite and PostgreSQL: TEXT, BIGINT, BOOLEAN, BYTEA; times are
-- milliseconds since 1970 and are made in Rust. Applied migrations never change.

-- What belongs to the whole server: its name, epoch, signing key id.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- One sequence for everything persistent that a client can see. Taken inside the committer's
-- transaction, so the order of positions is the order of commits. `batch` settles an unknown COMMIT.
CREATE TABLE positions (
    id    BIGINT PRIMARY KEY,
    n     BIGINT NOT NULL,
    batch TEXT NOT NULL
);
INSERT INTO positions (id, n, batch) VALUES (1, 0, '');

-- Numbers that are never reused (localparts, room numbers, sheets, …).
CREATE TABLE numbers (
    name TEXT PRIMARY KEY,
    n    BIGINT NOT NULL
);

-- ── Facilities, accounts, terminals ─────────────────────────────────────────────────────────
CREATE TABLE facilities (
    id         BIGINT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    active     BOOLEAN NOT NULL,
    pledged_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE accounts (
    user_id       TEXT PRIMARY KEY,
    kind          TEXT NOT NULL,      -- facility | personal | open | appservice
    facility      BIGINT REFERENCES facilities (id),
    name          TEXT NOT NULL,      -- the person's name; empty for a facility ID
    profession    TEXT NOT NULL,
    display_name  TEXT,
    avatar_url    TEXT,
    password_hash TEXT,
    password_own  BOOLEAN NOT NULL,   -- false: still the initial password, which only enrolment takes
    status        TEXT NOT NULL,      -- issued | active | ended
    search_key    TEXT NOT NULL,
    pledged_at    BIGINT,
    created_at    BIGINT NOT NULL,
    ended_at      BIGINT
);
CREATE INDEX accounts_facility ON accounts (facility);

-- Hashes of passwords used before: the last few may not come back.
CREATE TABLE password_history (
    user_id       TEXT NOT NULL,
    changed_at    BIGINT NOT NULL,
    password_hash TEXT NOT NULL,
    PRIMARY KEY (user_id, changed_at)
);

-- An account may belong to several facilities; the primary one is accounts.facility.
CREATE TABLE account_facilities (
    user_id TEXT NOT NULL,
    facility  BIGINT NOT NULL,
    PRIMARY KEY (user_id, facility)
);

CREATE TABLE terminals (
    id         BIGINT PRIMARY KEY,
    facility   BIGINT NOT NULL,
    label      TEXT NOT NULL,
    ownership  TEXT NOT NULL,         -- facility | private
    enrolled_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_seen  BIGINT
);

CREATE TABLE certificates (
    serial     TEXT PRIMARY KEY,      -- hex
    terminal   BIGINT NOT NULL,
    not_before BIGINT NOT NULL,
    not_after  BIGINT NOT NULL,
    issued_at  BIGINT NOT NULL,
    revoked_at BIGINT,
    reason     TEXT
);
CREATE INDEX certificates_terminal ON certificates (terminal);

-- One-time codes from the second handover sheet.
CREATE TABLE enrolment_codes (
    code_hash  TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    further    BOOLEAN NOT NULL,      -- for a further terminal: takes the current password, never sets one
    private_ok BOOLEAN NOT NULL,      -- the city has approved a private terminal
    expires_at BIGINT NOT NULL,
    spent_at   BIGINT
);

CREATE TABLE devices (
    user_id      TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    display_name TEXT,
    last_seen    BIGINT,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

CREATE TABLE sessions (
    token_hash TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    terminal   BIGINT,                -- null: policy asks for no certificate
    binding    TEXT NOT NULL,         -- connection | none
    created_at BIGINT NOT NULL
);
CREATE INDEX sessions_account ON sessions (user_id, device_id);
CREATE INDEX sessions_terminal ON sessions (terminal);

-- Addresses (third-party identifiers) and the checks under way.
CREATE TABLE threepids (
    user_id      TEXT NOT NULL,
    address      TEXT NOT NULL,
    validated_at BIGINT NOT NULL,
    added_at     BIGINT NOT NULL,
    PRIMARY KEY (user_id, address)
);
CREATE TABLE threepid_checks (
    sid           TEXT PRIMARY KEY,
    client_secret TEXT NOT NULL,
    address       TEXT NOT NULL,
    token_hash    TEXT NOT NULL,
    attempt       BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    validated_at  BIGINT
);

-- ── Rooms ───────────────────────────────────────────────────────────────────────────────────
CREATE TABLE rooms (
    room_id       TEXT PRIMARY KEY,
    version       TEXT NOT NULL,
    head          TEXT NOT NULL,      -- forward extremities, a JSON array of event ids
    depth         BIGINT NOT NULL,
    state_version BIGINT NOT NULL,    -- position of the newest state event on the line
    last_position BIGINT NOT NULL,
    status        TEXT NOT NULL,      -- open | closed | archived
    kind          TEXT NOT NULL,      -- subject | association | announcement | control | liaison | direct | other
    room_number   BIGINT,
    facility      BIGINT,             -- liaison rooms
    subject_key   TEXT,               -- hash of the subject's name and birth date, to warn of a second room
    created_at    BIGINT NOT NULL
);
CREATE UNIQUE INDEX rooms_number ON rooms (room_number);
CREATE INDEX rooms_subject ON rooms (subject_key);

-- `position` is the arrival order (sync, appservices); `room_order` the order in the room
-- (/messages, /context). They are equal until another server backfills.
CREATE TABLE events (
    position    BIGINT PRIMARY KEY,
    event_id    TEXT NOT NULL UNIQUE,
    room_id     TEXT NOT NULL,
    room_order  BIGINT NOT NULL,
    depth       BIGINT NOT NULL,
    type        TEXT NOT NULL,
    state_key   TEXT,
    sender      TEXT NOT NULL,
    pdu         TEXT NOT NULL,        -- canonical JSON as hashed and signed
    outlier     BOOLEAN NOT NULL,
    rejected    BOOLEAN NOT NULL,
    soft_failed BOOLEAN NOT NULL,
    state_id    BIGINT,               -- null: the room's interval state at room_order
    redacted_by TEXT,
    device_id   TEXT,                 -- the sending device and its transaction id, for unsigned
    txn_id      TEXT
);
CREATE INDEX events_room ON events (room_id, room_order);

CREATE TABLE event_edges (
    event_id TEXT NOT NULL,
    prev_id  TEXT NOT NULL,
    PRIMARY KEY (event_id, prev_id)
);

-- Only of state events: no other event is ever in an auth chain, and its PDU names its own.
CREATE TABLE event_auth (
    event_id TEXT NOT NULL,
    auth_id  TEXT NOT NULL,
    PRIMARY KEY (event_id, auth_id)
);

-- What redaction removed, for the auditor only.
CREATE TABLE event_originals (
    event_id    TEXT PRIMARY KEY,
    pdu         TEXT NOT NULL,
    redacted_at BIGINT NOT NULL
);

-- Interval state: in force from from_order until before to_order; current where to_order is null.
CREATE TABLE room_state (
    room_id    TEXT NOT NULL,
    type       TEXT NOT NULL,
    state_key  TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    from_order BIGINT NOT NULL,
    to_order   BIGINT,
    PRIMARY KEY (room_id, type, state_key, from_order)
);
CREATE INDEX room_state_from ON room_state (room_id, from_order);

CREATE TABLE memberships (
    user_id    TEXT NOT NULL,
    room_id    TEXT NOT NULL,
    membership TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    changed_at BIGINT NOT NULL,       -- position at which the membership became what it is
    position   BIGINT NOT NULL,       -- position of the newest member event
    forgotten  BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, room_id)
);
CREATE INDEX memberships_room ON memberships (room_id);

-- Client transaction ids: the same request again answers the same event.
CREATE TABLE transactions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    scope     TEXT NOT NULL,          -- endpoint and room
    txn_id    TEXT NOT NULL,
    event_id  TEXT NOT NULL,
    at        BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, scope, txn_id)
);

CREATE TABLE relations (
    target_id TEXT NOT NULL,
    event_id  TEXT NOT NULL,
    room_id   TEXT NOT NULL,
    rel_type  TEXT NOT NULL,
    type      TEXT NOT NULL,
    sender    TEXT NOT NULL,
    key       TEXT,
    position  BIGINT NOT NULL,
    PRIMARY KEY (target_id, position)
);
CREATE INDEX relations_event ON relations (event_id);

CREATE TABLE receipts (
    room_id   TEXT NOT NULL,
    user_id TEXT NOT NULL,
    kind      TEXT NOT NULL,          -- m.read | m.read.private
    thread    TEXT NOT NULL,          -- '' = unthreaded
    event_id  TEXT NOT NULL,
    event_order BIGINT NOT NULL,
    ts        BIGINT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id, kind, thread)
);

CREATE TABLE account_data (
    user_id TEXT NOT NULL,
    room_id   TEXT NOT NULL,          -- '' = global
    type      TEXT NOT NULL,
    content   TEXT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
);

CREATE TABLE filters (
    user_id TEXT NOT NULL,
    id        TEXT NOT NULL,
    filter    TEXT NOT NULL,
    PRIMARY KEY (user_id, id)
);

-- ── Devices' keys and messages ──────────────────────────────────────────────────────────────
CREATE TABLE device_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    keys      TEXT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
CREATE TABLE one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key       TEXT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id, key_id)
);
CREATE TABLE fallback_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    key       TEXT NOT NULL,
    used      BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm)
);
CREATE TABLE to_device (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    position  BIGINT NOT NULL,
    event     TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

-- ── Media ───────────────────────────────────────────────────────────────────────────────────
CREATE TABLE blobs (
    sha256     TEXT PRIMARY KEY,
    bytes      BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE TABLE media (
    media_id     TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL,
    sha256       TEXT NOT NULL,
    content_type TEXT NOT NULL,
    file_name    TEXT,
    bytes        BIGINT NOT NULL,
    created_at   BIGINT NOT NULL
);
CREATE INDEX media_blob ON media (sha256);
CREATE INDEX media_user ON media (user_id);
CREATE TABLE media_links (
    media_id TEXT NOT NULL,
    room_id  TEXT NOT NULL,           -- '' = an avatar, for whoever shares a room with the account
    event_id TEXT NOT NULL,
    PRIMARY KEY (media_id, room_id, event_id)
);
CREATE INDEX media_links_event ON media_links (event_id);

-- ── Push, mail, appservices ─────────────────────────────────────────────────────────────────
CREATE TABLE pushers (
    user_id      TEXT NOT NULL,
    app_id       TEXT NOT NULL,
    pushkey      TEXT NOT NULL,
    id           TEXT NOT NULL,
    pusher       TEXT NOT NULL,       -- the pusher as the client set it
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (user_id, app_id, pushkey)
);
-- Followers read the one stream behind the committer; a follower's cursor moves only when its work is safe.
CREATE TABLE followers (
    name     TEXT PRIMARY KEY,
    position BIGINT NOT NULL
);
-- An appservice transaction is frozen before it is sent and resent byte for byte.
CREATE TABLE appservice_transactions (
    appservice TEXT PRIMARY KEY,
    txn_id     TEXT NOT NULL,
    body       TEXT NOT NULL,
    upto       BIGINT NOT NULL
);
-- Mails the server owes, leased by the bridge.
CREATE TABLE mails (
    id           BIGINT PRIMARY KEY,
    template     TEXT NOT NULL,
    lang         TEXT NOT NULL,
    address      TEXT NOT NULL,
    parameters   TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    outcome      TEXT
);
CREATE TABLE idempotency (
    key    TEXT PRIMARY KEY,
    answer TEXT NOT NULL,
    at     BIGINT NOT NULL
);

-- ── Search: character bigrams for Japanese, words for the rest ──────────────────────────────
CREATE TABLE search_terms (
    term     TEXT NOT NULL,
    room_id  TEXT NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (term, room_id, position)
);
CREATE INDEX search_position ON search_terms (position);

-- ── Audit: appended only by the committer, each row's hash covers the one before ────────────
CREATE TABLE audit (
    seq     BIGINT PRIMARY KEY,
    day     TEXT NOT NULL,            -- the segment
    entry   TEXT NOT NULL,            -- canonical JSON as hashed
    hash    TEXT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    room_id TEXT NOT NULL
);
CREATE INDEX audit_room ON audit (room_id, seq);
