-- The threads of a room, newest reply first.
CREATE INDEX relations_room ON relations (room_id, rel_type, position);

-- What somebody has reported (通報): told to the city by number and ids only; the reason stays here until the room is purged.
CREATE TABLE reports (
    id       BIGINT PRIMARY KEY,
    at       BIGINT NOT NULL,
    reporter TEXT NOT NULL,
    room_id  TEXT NOT NULL,           -- '' = a report of a person
    event_id TEXT NOT NULL,           -- '' = of the room
    user_id  TEXT NOT NULL,           -- '' = of no person
    reason   TEXT NOT NULL,
    known    BOOLEAN NOT NULL         -- false: there is no such thing, or the reporter cannot see it; nobody was told
);
CREATE INDEX reports_reporter ON reports (reporter, at);
CREATE INDEX reports_room ON reports (room_id);

-- The rooms in an appservice's own directory, by its network.
CREATE TABLE network_rooms (
    network   TEXT NOT NULL,
    room_id   TEXT NOT NULL,
    listed_at BIGINT NOT NULL,
    PRIMARY KEY (network, room_id)
);
