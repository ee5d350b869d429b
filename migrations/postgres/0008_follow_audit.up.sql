-- Who follows the audit log and how far, and months that leave it.
SET LOCAL search_path = bib;

-- How far each reader has come: export sinks, and the alert rules. The log itself is what they read, so there is no
-- other spool that could fill up or differ from it.
CREATE TABLE audit_reader (
    name         text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z0-9:._-]{1,64}$'),
    epoch        bigint NOT NULL CHECK (epoch >= 0),
    seq          bigint NOT NULL CHECK (seq >= 0),
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);

-- Few entries that are looked for alone: by those who deliver alerts, and by what takes months out of the log.
CREATE INDEX audit_entry_special ON audit_entry (action, id) WHERE action IN ('audit.alert', 'audit.detach');

-- Takes the entries and details of a month out of the log; their seals stay, so that the chain goes on through them.
-- Refused unless this very transaction wrote the entry `audit.detach` that names the month. False when the month is not
-- part of the log (any more). Waits for a quarter of a second at most: acts queue behind the lock that it asks for.
CREATE FUNCTION audit_detach_month(moment timestamptz) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
DECLARE
    first timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
    suffix text := to_char(first, 'YYYY_MM');
    low timestamptz := (first::text || '+00')::timestamptz;
    high timestamptz := ((first + interval '1 month')::text || '+00')::timestamptz;
    kind text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('bib.audit_make'));
    IF NOT EXISTS (
        SELECT 1 FROM pg_inherits
        WHERE inhrelid = to_regclass('bib.audit_entry_' || suffix) AND inhparent = 'bib.audit_entry'::regclass
    ) THEN
        RETURN false;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM audit_entry
        WHERE action = 'audit.detach' AND result = 'ok' AND starts_with(target, to_char(first, 'YYYY-MM') || ' ')
          AND xmin = pg_current_xact_id()::xid
    ) THEN
        RAISE EXCEPTION 'no entry audit.detach about % in this transaction', suffix
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF EXISTS (SELECT 1 FROM audit_unsealed WHERE time >= low AND time < high) THEN
        RAISE EXCEPTION 'entries of % wait for their seal', suffix USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    LOCK TABLE audit_entry, audit_detail IN ACCESS EXCLUSIVE MODE;
    FOREACH kind IN ARRAY ARRAY['entry', 'detail'] LOOP
        EXECUTE format('ALTER TABLE bib.audit_%s DETACH PARTITION bib.audit_%s_%s', kind, kind, suffix);
    END LOOP;
    RETURN true;
END $$;

-- Drops what audit_detach_month() took out, once the entry that says so is sealed. False when nothing was there.
CREATE FUNCTION audit_drop_month(moment timestamptz, detached_by uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    first timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
    suffix text := to_char(first, 'YYYY_MM');
    target regclass;
    kind text;
    gone boolean := false;
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM audit_entry e JOIN audit_seal s ON s.entry_id = e.id
        WHERE e.id = detached_by AND e.action = 'audit.detach' AND e.result = 'ok'
          AND starts_with(e.target, to_char(first, 'YYYY-MM') || ' ')
    ) THEN
        RAISE EXCEPTION '% is not a sealed entry audit.detach about %', detached_by, suffix
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOREACH kind IN ARRAY ARRAY['entry', 'detail'] LOOP
        target := to_regclass(format('bib.audit_%s_%s', kind, suffix));
        CONTINUE WHEN target IS NULL;
        IF EXISTS (SELECT 1 FROM pg_inherits WHERE inhrelid = target) THEN
            RAISE EXCEPTION '% is part of the log', target USING ERRCODE = 'insufficient_privilege';
        END IF;
        EXECUTE format('DROP TABLE %s', target);
        gone := true;
    END LOOP;
    RETURN gone;
END $$;

-- The months that the log holds, and those that were taken out and not dropped yet.
CREATE FUNCTION audit_months() RETURNS TABLE (month text, attached boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = bib, pg_catalog, pg_temp AS $$
    SELECT replace(substr(c.relname, length('audit_entry_') + 1), '_', '-'),
           EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid)
    FROM pg_class c
    WHERE c.relnamespace = 'bib'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^audit_entry_[0-9]{4}_[0-9]{2}$'
    ORDER BY 1
$$;

REVOKE EXECUTE ON FUNCTION audit_detach_month(timestamptz), audit_drop_month(timestamptz, uuid), audit_months() FROM PUBLIC;

GRANT SELECT, INSERT, UPDATE ON audit_reader TO bibd_service;
GRANT SELECT ON audit_reader TO bibd_audit, bibd_backup, bibd_glass_read, bibd_glass_write;
-- Not for the use cases' role: what reaches its log-in through a use case cannot make the log forget.
GRANT EXECUTE ON FUNCTION audit_detach_month(timestamptz), audit_drop_month(timestamptz, uuid) TO bibd_seal;
GRANT EXECUTE ON FUNCTION audit_months() TO bibd_seal, bibd_audit;
