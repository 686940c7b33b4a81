-- Push gateways: which device set a pusher, so that it goes with the device's session. Null: pushers of before, and
-- e-mail pushers, which belong to a person's confirmed address and not to a terminal.
ALTER TABLE pushers ADD COLUMN device_id TEXT;
CREATE INDEX pushers_device ON pushers (user_id, device_id);

-- Accounts that are suspended (read only) or locked (nothing at all); none of both: no row.
CREATE TABLE moderation (
    user_id    TEXT PRIMARY KEY,
    suspended  BOOLEAN NOT NULL,
    locked     BOOLEAN NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT NOT NULL
);

-- Media ids that were given out before their content (POST /_matrix/media/v1/create). The row goes when the content
-- comes or the time is up.
CREATE TABLE media_pending (
    media_id   TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX media_pending_user ON media_pending (user_id);

-- Orders to delete rooms that are not the city's (DESIGN 15 is for those). A job goes on until it is finished, over
-- restarts; its row stays as the record of what was done.
CREATE TABLE room_deletions (
    delete_id   TEXT PRIMARY KEY,
    room_id     TEXT NOT NULL,
    ordered_by  TEXT NOT NULL,
    ordered_at  BIGINT NOT NULL,
    status      TEXT NOT NULL,        -- shutting_down | purging | complete
    removed     TEXT NOT NULL,        -- user ids that were in the room, a JSON array
    finished_at BIGINT
);
CREATE INDEX room_deletions_room ON room_deletions (room_id);

-- Administrators of the open profile; in a city it is the staff of its own facility.
ALTER TABLE accounts ADD COLUMN admin BOOLEAN NOT NULL DEFAULT FALSE;
