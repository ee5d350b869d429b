-- Chunks in object storage: when each was last read, and which have an object.
SET LOCAL search_path = bib;

-- The day of the last read that was taken note of, counted from 1970. Not every read is: bibd notes a chunk again only
-- when the day that stands here is old enough to matter. Chunks that are here already count as read today.
ALTER TABLE chunks ADD COLUMN read_day integer NOT NULL DEFAULT (CURRENT_DATE - DATE '1970-01-01');

-- Those on disk, the coldest first.
CREATE INDEX chunks_cold ON chunks (read_day, hash) WHERE location = 0 AND state = 0;

-- Chunks that have an object, which was read back whole when the row was written. With location 1 the object is all
-- there is; with location 0 there is a file too. The row goes when the object has gone, and the chunk's row not before.
CREATE TABLE chunk_objects (
    chunk        bytea PRIMARY KEY REFERENCES chunks ON DELETE CASCADE,
    -- The last part of the object's key: the chunk's hash, or a keyed name where it is sealed.
    name         bytea NOT NULL CHECK (length(name) = 32),
    sealed       boolean NOT NULL,
    object_bytes bigint NOT NULL CHECK (object_bytes > 0),
    checked_at   timestamptz NOT NULL,
    UNIQUE (sealed, name)
);
CREATE INDEX chunk_objects_checked ON chunk_objects (checked_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON chunk_objects TO bibd_service, bibd_admin_jobs, bibd_glass_write;
GRANT SELECT ON chunk_objects TO bibd_backup, bibd_glass_read;
