-- Refused while chunks lie in object storage alone: nothing would know any more where.
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM bib.chunks WHERE location = 1) THEN
        RAISE EXCEPTION 'chunks lie in object storage: bring them back first (bib admin storage recall)'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END $$;
DROP TABLE bib.chunk_objects;
DROP INDEX bib.chunks_cold;
ALTER TABLE bib.chunks DROP COLUMN read_day;
