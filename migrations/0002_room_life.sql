-- The life of a room after its closing (DESIGN 15): open → closed → archived → purging → purged.
ALTER TABLE rooms ADD COLUMN closed_at BIGINT;
ALTER TABLE rooms ADD COLUMN archived_at BIGINT;
-- The case that opened it: whoever keeps records of the case forgets the subject with the room.
ALTER TABLE rooms ADD COLUMN opened_by_case TEXT;

-- Legal holds (法的保全): while one stands, a room is never purged.
CREATE TABLE legal_holds (
    room_id   TEXT NOT NULL,
    placed_at BIGINT NOT NULL,
    placed_by TEXT NOT NULL,
    reason    TEXT NOT NULL,
    lifted_at BIGINT,
    lifted_by TEXT,
    PRIMARY KEY (room_id, placed_at)
);

-- Emergency access (緊急閲覧): limited in time, announced in the room.
CREATE TABLE break_glass (
    room_id  TEXT NOT NULL,
    user_id  TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    ends_at  BIGINT NOT NULL,
    reason   TEXT NOT NULL,
    ended_at BIGINT,
    PRIMARY KEY (room_id, user_id, began_at)
);

-- What was purged: all that stays of a room, without a name. `events`, `media` and `digest` (SHA-256 of the event
-- ids in room order, a line each) are as counted when the purge began.
CREATE TABLE purges (
    room_id     TEXT PRIMARY KEY,
    room_number BIGINT NOT NULL,
    acting      TEXT NOT NULL,
    begun_at    BIGINT NOT NULL,
    finished_at BIGINT,
    events      BIGINT NOT NULL,
    media       BIGINT NOT NULL,
    digest      TEXT NOT NULL
);

-- Rooms whose retention has run out, told to the city once.
CREATE TABLE retention_told (
    room_id TEXT PRIMARY KEY,
    told_at BIGINT NOT NULL
);
