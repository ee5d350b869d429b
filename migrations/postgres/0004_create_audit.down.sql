-- An audit log is not taken down: it is the one thing a downgrade may not set aside.
DO $$ BEGIN
    RAISE EXCEPTION 'the audit log cannot be migrated down'
        USING HINT = 'restore a backup made before this version instead';
END $$;
