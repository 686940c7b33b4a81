-- A room's media are asked for when it is exported and, in every unit, when it is purged.
CREATE INDEX media_links_room ON media_links (room_id);
