-- Rooms of two people that are open: looked through every minute for those that nobody is left in.
CREATE INDEX rooms_direct_open ON rooms (room_id) WHERE kind = 'direct' AND status = 'open';
