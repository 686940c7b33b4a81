-- The threads of a room, newest reply first.
CREATE INDEX relations_room ON relations (room_id, rel_type, position);
