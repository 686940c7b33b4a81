-- Room aliases: an appservice's, for the rooms that it bridges; everybody's in the open profile.
CREATE TABLE room_aliases (
    alias      TEXT PRIMARY KEY,
    room_id    TEXT NOT NULL,
    creator    TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX room_aliases_room ON room_aliases (room_id);

-- Appservices that want receipts read them in the order of the one sequence.
CREATE INDEX receipts_position ON receipts (position);
