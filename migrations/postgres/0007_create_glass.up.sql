-- Break-glass: every grant and every session of one. The roles that a grant opens read all of it and change none of it.
SET LOCAL search_path = bib;

CREATE TABLE glass_grants (
    id              uuid PRIMARY KEY,
    user_id         uuid NOT NULL REFERENCES users (id),
    user_name       text NOT NULL,
    reason          text NOT NULL CHECK (length(reason) BETWEEN 1 AND 1024),
    access          text NOT NULL CHECK (access IN ('readonly', 'readwrite')),
    key_name        text NOT NULL,
    key_fingerprint text NOT NULL,
    -- What was signed, verbatim, and the signature: who doubts the grant checks them with ssh-keygen.
    statement       bytea NOT NULL CHECK (length(statement) <= 8192),
    signature       text NOT NULL CHECK (length(signature) <= 16384),
    state           text NOT NULL CHECK (state IN ('intended', 'open', 'ended')),
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL CHECK (expires_at > created_at),
    ended_at        timestamptz,
    end_reason      text NOT NULL DEFAULT '',
    report          bytea CHECK (length(report) <= 16777216),
    reviewed_at     timestamptz,
    reviewed_by     text NOT NULL DEFAULT '',
    review          text NOT NULL DEFAULT '' CHECK (length(review) <= 16384),
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
);
-- One at a time, whatever the daemon believes.
CREATE UNIQUE INDEX glass_grants_one_open ON glass_grants ((true)) WHERE state <> 'ended';

CREATE TABLE glass_sessions (
    id              uuid PRIMARY KEY,
    grant_id        uuid NOT NULL REFERENCES glass_grants (id),
    application     text NOT NULL,
    started_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    end_reason      text NOT NULL DEFAULT '',
    statements      bigint NOT NULL DEFAULT 0 CHECK (statements >= 0),
    bytes_in        bigint NOT NULL DEFAULT 0 CHECK (bytes_in >= 0),
    bytes_out       bigint NOT NULL DEFAULT 0 CHECK (bytes_out >= 0),
    recording       bytea CHECK (length(recording) = 32)
);
CREATE INDEX glass_sessions_grant ON glass_sessions (grant_id, id);

GRANT SELECT, INSERT, UPDATE ON glass_grants, glass_sessions TO bibd_service;
GRANT SELECT ON glass_grants, glass_sessions TO bibd_backup;

-- What a person may: table by table, so that a partition of the log gets no right of its own. A table that a later
-- migration makes is granted there.
GRANT USAGE ON SCHEMA bib TO bibd_glass_read, bibd_glass_write;
DO $$
DECLARE
    target regclass;
BEGIN
    FOR target IN
        SELECT c.oid FROM pg_class c
        WHERE c.relnamespace = 'bib'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO bibd_glass_read, bibd_glass_write', target);
        IF target::text !~ '^(bib\.)?(audit_|glass_)' THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON %s TO bibd_glass_write', target);
        END IF;
    END LOOP;
END $$;
