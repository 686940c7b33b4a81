-- The certificate itself, by the SHA-256 of its DER in hex. A serial number is unique within one CA only: a
-- certificate of a CA that is not ours is known by both. Null: issued by Heya before this was kept.
ALTER TABLE certificates ADD COLUMN fingerprint TEXT;
