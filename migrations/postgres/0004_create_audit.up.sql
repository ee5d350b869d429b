-- The audit log: entries and details (partitioned by month), seals (partitioned by epoch and number), checkpoints.
-- Append-only by privilege, and by triggers that fire whoever asks (ENABLE ALWAYS).
SET LOCAL search_path = bib;

CREATE TABLE audit_entry (
    id           uuid NOT NULL,
    time         timestamptz NOT NULL,
    -- Canonical JSON, verbatim; its digest is what is chained. Every other column is a copy for searching.
    body         bytea NOT NULL CHECK (length(body) <= 65536),
    node         text NOT NULL,
    actor        text COLLATE "C" NOT NULL,
    via          text NOT NULL,
    action       text COLLATE "C" NOT NULL,
    target       text COLLATE "C" NOT NULL,
    result       text NOT NULL,
    operation    uuid NOT NULL,
    job          uuid,
    PRIMARY KEY (id, time)
) PARTITION BY RANGE (time);
CREATE INDEX audit_entry_operation ON audit_entry (operation);

-- Loses a row only through audit_erase().
CREATE TABLE audit_detail (
    id           uuid NOT NULL,
    time         timestamptz NOT NULL,
    salt         bytea NOT NULL CHECK (length(salt) = 32),
    details      bytea NOT NULL CHECK (length(details) <= 65536),
    PRIMARY KEY (id, time)
) PARTITION BY RANGE (time);

CREATE TABLE audit_seal (
    epoch        bigint NOT NULL CHECK (epoch >= 0),
    seq          bigint NOT NULL CHECK (seq >= 1),
    entry_id     uuid NOT NULL,
    entry_time   timestamptz NOT NULL,
    digest       bytea NOT NULL CHECK (length(digest) = 32),
    head         bytea NOT NULL CHECK (length(head) = 32),
    PRIMARY KEY (epoch, seq)
) PARTITION BY RANGE (epoch, seq);
CREATE INDEX audit_seal_entry ON audit_seal (entry_id);

CREATE TABLE audit_checkpoint (
    epoch        bigint NOT NULL,
    size         bigint NOT NULL CHECK (size >= 0),
    note         text NOT NULL CHECK (length(note) <= 16384),
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (epoch, size)
);

-- Not audit tables: where the sequencer stands, and its queue.
CREATE TABLE audit_head (
    epoch        bigint PRIMARY KEY,
    state        bytea NOT NULL CHECK (length(state) <= 65536),
    updated_at   timestamptz NOT NULL
);

CREATE TABLE audit_unsealed (
    n            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           uuid NOT NULL,
    time         timestamptz NOT NULL,
    -- Of the body as it was inserted: a body that is changed before its seal does not fit its seal.
    digest       bytea NOT NULL CHECK (length(digest) = 32)
);

CREATE FUNCTION audit_enqueue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp AS $$
BEGIN
    -- SHA-256("bib-audit-entry-v1\0" || body)
    INSERT INTO audit_unsealed (id, time, digest)
    VALUES (NEW.id, NEW.time, sha256('\x6269622d61756469742d656e7472792d763100'::bytea || NEW.body));
    RETURN NULL;
END $$;

CREATE FUNCTION audit_refuse() RETURNS trigger
    LANGUAGE plpgsql SET search_path = bib, pg_catalog, pg_temp AS $$
BEGIN
    -- audit_erase() says which detail it is erasing, and only it has the right to delete at all.
    -- Two conditions: seals and checkpoints have no `id`, and one expression is planned whole.
    IF TG_OP = 'DELETE' AND TG_ARGV[0] = 'detail' THEN
        IF current_setting('bib.erasing', true) = OLD.id::text THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

-- Guards a partition (or the checkpoint table): row triggers, and a TRUNCATE trigger of its own, since a parent's
-- does not fire for a partition.
CREATE FUNCTION audit_guard(target regclass, kind text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER audit_row BEFORE UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION bib.audit_refuse(%L)', target, kind);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_row', target);
    EXECUTE format('CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION bib.audit_refuse(%L)', target, kind);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_truncate', target);
    IF kind = 'entry' THEN
        EXECUTE format('CREATE TRIGGER audit_queue AFTER INSERT ON %s FOR EACH ROW EXECUTE FUNCTION bib.audit_enqueue()', target);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_queue', target);
    END IF;
END $$;

-- Makes the partitions for the month of `moment`. True when they were made now.
CREATE FUNCTION audit_make_month(moment timestamptz) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp AS $$
DECLARE
    -- Months in UTC, whatever the session's time zone.
    first timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
    suffix text := to_char(first, 'YYYY_MM');
    low text := first::text || '+00';
    high text := (first + interval '1 month')::text || '+00';
    kind text;
    made boolean := false;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('bib.audit_make'));
    FOREACH kind IN ARRAY ARRAY['entry', 'detail'] LOOP
        IF to_regclass(format('bib.audit_%s_%s', kind, suffix)) IS NULL THEN
            -- Made and guarded by itself, then attached: that lock lets inserts go on, where PARTITION OF would stop
            -- them, and could deadlock with an act that holds one of the two tables and waits for the other.
            EXECUTE format('CREATE TABLE bib.audit_%s_%s (LIKE bib.audit_%s INCLUDING ALL)', kind, suffix, kind);
            PERFORM audit_guard(format('bib.audit_%s_%s', kind, suffix)::regclass, kind);
            EXECUTE format('ALTER TABLE bib.audit_%s ATTACH PARTITION bib.audit_%s_%s FOR VALUES FROM (%L) TO (%L)',
                kind, kind, suffix, low, high);
            made := true;
        END IF;
    END LOOP;
    RETURN made;
END $$;

-- Makes the partition for the block of ten million seals that `seq` of `for_epoch` falls in.
CREATE FUNCTION audit_make_block(for_epoch bigint, seq bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp AS $$
DECLARE
    block bigint := (seq - 1) / 10000000;
    target text := format('bib.audit_seal_%s_%s', for_epoch, block);
BEGIN
    IF for_epoch < 0 OR seq < 1 THEN
        RAISE EXCEPTION 'epoch % and number % name no block', for_epoch, seq;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('bib.audit_make'));
    IF to_regclass(target) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %s (LIKE bib.audit_seal INCLUDING ALL)', target);
    PERFORM audit_guard(target::regclass, 'seal');
    EXECUTE format('ALTER TABLE bib.audit_seal ATTACH PARTITION %s FOR VALUES FROM (%s, %s) TO (%s, %s)',
        target, for_epoch, block * 10000000 + 1, for_epoch, (block + 1) * 10000000 + 1);
    RETURN true;
END $$;

-- The one way a detail goes: an entry `audit.erase` about it was written in this very transaction.
CREATE FUNCTION audit_erase(erased uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp AS $$
DECLARE
    gone boolean;
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM audit_entry
        WHERE action = 'audit.erase' AND target = erased::text AND result = 'ok'
          AND xmin = pg_current_xact_id()::xid
    ) THEN
        RAISE EXCEPTION 'no entry audit.erase about % in this transaction', erased
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM set_config('bib.erasing', erased::text, true);
    DELETE FROM audit_detail WHERE id = erased;
    gone := FOUND;
    PERFORM set_config('bib.erasing', '', true);
    RETURN gone;
END $$;

SELECT audit_guard('bib.audit_checkpoint'::regclass, 'checkpoint');

-- On the parents too: a partition made by hand inherits the row triggers, and TRUNCATE of the parent is refused.
CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit_entry FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse('entry');
CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit_detail FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse('detail');
CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit_seal FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse('seal');
ALTER TABLE audit_entry ENABLE ALWAYS TRIGGER audit_truncate;
ALTER TABLE audit_detail ENABLE ALWAYS TRIGGER audit_truncate;
ALTER TABLE audit_seal ENABLE ALWAYS TRIGGER audit_truncate;
