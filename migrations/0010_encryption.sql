-- When a user's devices, their keys or the user's cross-signing keys last changed: what other people's syncs are told.
CREATE TABLE device_lists (
    user_id  TEXT PRIMARY KEY,
    position BIGINT NOT NULL
);
INSERT INTO device_lists (user_id, position) SELECT user_id, MAX(position) FROM device_keys GROUP BY user_id;

-- One key of each usage for a user.
CREATE TABLE cross_signing_keys (
    user_id    TEXT NOT NULL,
    usage      TEXT NOT NULL,         -- master, self_signing, user_signing
    public_key TEXT NOT NULL,         -- unpadded base64: the key's id without "ed25519:"
    content    TEXT NOT NULL,         -- as uploaded, with the signatures that came with it
    PRIMARY KEY (user_id, usage)
);
-- Signatures that were uploaded afterwards. A row is told to its signer and, of a user's own, to everybody.
CREATE TABLE key_signatures (
    signer      TEXT NOT NULL,
    key_id      TEXT NOT NULL,        -- the key that signed: ed25519:…
    target_user TEXT NOT NULL,
    target      TEXT NOT NULL,        -- a device id, or the public key of a master key
    signature   TEXT NOT NULL,
    position    BIGINT NOT NULL,
    PRIMARY KEY (signer, key_id, target_user, target)
);
CREATE INDEX key_signatures_target ON key_signatures (target_user, target);

-- Key backup. A deleted version keeps its row, so that its number is not given out again.
CREATE TABLE key_backups (
    user_id    TEXT NOT NULL,
    version    BIGINT NOT NULL,
    algorithm  TEXT NOT NULL,
    auth_data  TEXT NOT NULL,
    etag       BIGINT NOT NULL,       -- counts the changes of the keys
    sessions   BIGINT NOT NULL,
    bytes      BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    deleted    BOOLEAN NOT NULL,
    PRIMARY KEY (user_id, version)
);
CREATE TABLE key_backup_sessions (
    user_id             TEXT NOT NULL,
    version             BIGINT NOT NULL,
    room_id             TEXT NOT NULL,
    session_id          TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count     BIGINT NOT NULL,
    is_verified         BOOLEAN NOT NULL,
    session_data        TEXT NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);

-- The device that takes messages while nobody is logged in (MSC3814): a row of `devices` as well, without a session.
CREATE TABLE dehydrated_devices (
    user_id     TEXT PRIMARY KEY,
    device_id   TEXT NOT NULL,
    device_data TEXT NOT NULL
);
