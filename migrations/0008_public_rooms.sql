-- The rooms in the directory, where `policy.public_directory` has one.
CREATE TABLE public_rooms (
    room_id   TEXT PRIMARY KEY,
    listed_at BIGINT NOT NULL
);
