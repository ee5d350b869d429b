-- What other nodes said, kept for a while by a node that is never authoritative. Nothing here is the only copy of anything.

CREATE TABLE record (
    kind    TEXT    NOT NULL,
    id      TEXT    NOT NULL,
    -- The revision, most significant first (docs/formats.md).
    tenure  INTEGER NOT NULL,
    epoch   INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    signer  BLOB    NOT NULL CHECK (length(signer) = 32),
    sig     BLOB    NOT NULL CHECK (length(sig) = 64),
    body    BLOB    NOT NULL,
    -- When it was fetched, in microseconds since 1970, by this node's clock.
    kept_us INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX record_kept ON record (kept_us);

CREATE TABLE page (
    hash    BLOB    NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    body    BLOB    NOT NULL,
    kept_us INTEGER NOT NULL
) STRICT;

CREATE INDEX page_kept ON page (kept_us);

-- Counted as it changes: to know the size must not cost a look at everything.
CREATE TABLE total (
    one     INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    records INTEGER NOT NULL,
    pages   INTEGER NOT NULL,
    bytes   INTEGER NOT NULL
) STRICT;

INSERT INTO total VALUES (1, 0, 0, 0);

CREATE TRIGGER record_in AFTER INSERT ON record BEGIN
    UPDATE total SET records = records + 1, bytes = bytes + length(new.body);
END;

CREATE TRIGGER record_change AFTER UPDATE OF body ON record BEGIN
    UPDATE total SET bytes = bytes + length(new.body) - length(old.body);
END;

CREATE TRIGGER record_out AFTER DELETE ON record BEGIN
    UPDATE total SET records = records - 1, bytes = bytes - length(old.body);
END;

CREATE TRIGGER page_in AFTER INSERT ON page BEGIN
    UPDATE total SET pages = pages + 1, bytes = bytes + length(new.body);
END;

CREATE TRIGGER page_out AFTER DELETE ON page BEGIN
    UPDATE total SET pages = pages - 1, bytes = bytes - length(old.body);
END;

-- "BIBC": whose file it is.
PRAGMA application_id = 0x42494243;
PRAGMA user_version = 1;
