-- How far and how often somebody looked at a room after the first look of an hour, which the audit log has (DESIGN 19).
-- One row for each account, terminal, room and action; it only advances.
CREATE TABLE reading_marks (
    user_id  TEXT NOT NULL,
    terminal BIGINT NOT NULL,         -- 0 = none
    room_id  TEXT NOT NULL,
    action   TEXT NOT NULL,           -- room.delivered | room.opened
    looks    BIGINT NOT NULL,
    last_at  BIGINT NOT NULL,
    upto     BIGINT NOT NULL,         -- position of the newest event delivered, or newest there was when opened
    PRIMARY KEY (room_id, user_id, terminal, action)
);
