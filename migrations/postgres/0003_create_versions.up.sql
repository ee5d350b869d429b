-- Versions, the pages they are made of, the chunks the pages name, and what keeps a chunk alive.
SET LOCAL search_path = bib;

-- Pages of content and layout, index objects and roots: each stored once, named by its hash.
-- kind: 1 content root, 2 content index, 3 content page, 4 layout root, 5 layout index, 6 layout page.
CREATE TABLE pages (
    hash         bytea PRIMARY KEY CHECK (length(hash) = 32),
    kind         smallint NOT NULL CHECK (kind BETWEEN 1 AND 6),
    body         bytea NOT NULL CHECK (length(body) <= 4194304),
    -- Of a content page only: what the tree's rules need of it without reading it again.
    entries      integer NOT NULL DEFAULT 0,
    files        bigint NOT NULL DEFAULT 0,
    size_bytes   bigint NOT NULL DEFAULT 0,
    first_path   text COLLATE "C",
    last_path    text COLLATE "C",
    created_at   timestamptz NOT NULL
);

-- state: 0 live, 1 doomed (chosen by a collection), 2 in the trash, 3 damaged (quarantined).
-- location: 0 the store, 1 object storage, 2 in place (see chunk_places).
-- encoding: 0 raw, 1 zstd.
CREATE TABLE chunks (
    hash         bytea PRIMARY KEY CHECK (length(hash) = 32),
    raw_length   integer NOT NULL CHECK (raw_length BETWEEN 1 AND 4194304),
    stored_bytes integer NOT NULL CHECK (stored_bytes >= 0),
    encoding     smallint NOT NULL CHECK (encoding IN (0, 1)),
    location     smallint NOT NULL DEFAULT 0 CHECK (location BETWEEN 0 AND 2),
    state        smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 3),
    created_at   timestamptz NOT NULL,
    changed_at   timestamptz NOT NULL
);
CREATE INDEX chunks_not_live ON chunks (state, changed_at) WHERE state <> 0;

-- Where an in-place chunk lies, and the guard that its file must still match.
CREATE TABLE chunk_places (
    chunk        bytea PRIMARY KEY REFERENCES chunks ON DELETE CASCADE,
    path         text NOT NULL CHECK (length(path) <= 4096),
    byte_offset  bigint NOT NULL CHECK (byte_offset >= 0),
    device       bigint NOT NULL,
    inode        bigint NOT NULL,
    file_size    bigint NOT NULL,
    mtime_ns     bigint NOT NULL,
    ctime_ns     bigint NOT NULL
);

-- Which chunks a layout page names. No foreign key to chunks: a damaged chunk keeps its references.
CREATE TABLE page_chunks (
    page         bytea NOT NULL REFERENCES pages ON DELETE CASCADE,
    chunk        bytea NOT NULL CHECK (length(chunk) = 32),
    PRIMARY KEY (page, chunk)
);
CREATE INDEX page_chunks_chunk ON page_chunks (chunk);

-- state: 'pending' until every file was hashed in the background.
CREATE TABLE versions (
    hash              bytea PRIMARY KEY CHECK (length(hash) = 32),
    dataset_id        uuid NOT NULL REFERENCES datasets ON DELETE RESTRICT,
    -- 1, 2, 3 ... within the dataset, in the order they were committed here.
    n                 bigint NOT NULL CHECK (n >= 1),
    content           bytea NOT NULL CHECK (length(content) = 32),
    parents           bytea[] NOT NULL DEFAULT '{}',
    label             text NOT NULL DEFAULT '' CHECK (length(label) <= 256),
    message           text NOT NULL CHECK (length(message) <= 16384),
    license           text NOT NULL CHECK (length(license) BETWEEN 1 AND 256),
    author_kind       text NOT NULL CHECK (author_kind IN ('person', 'service')),
    author_key        text NOT NULL,
    author_name       text NOT NULL DEFAULT '',
    time              timestamptz NOT NULL,
    statement         bytea NOT NULL CHECK (length(statement) <= 32768),
    signature         text NOT NULL DEFAULT '' CHECK (length(signature) <= 8192),
    files             bigint NOT NULL CHECK (files >= 0),
    size_bytes        bigint NOT NULL CHECK (size_bytes >= 0),
    state             text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'verified', 'damaged', 'withdrawn')),
    withdrawal_reason text NOT NULL DEFAULT '' CHECK (length(withdrawal_reason) <= 4096),
    published_by      uuid REFERENCES users ON DELETE SET NULL,
    created_at        timestamptz NOT NULL,
    deleted_at        timestamptz,
    UNIQUE (dataset_id, n)
);
CREATE INDEX versions_pending ON versions (created_at) WHERE state = 'pending' AND deleted_at IS NULL;
CREATE INDEX versions_published_by ON versions (published_by);

CREATE TABLE version_roots (
    version      bytea PRIMARY KEY REFERENCES versions ON DELETE CASCADE,
    content_root bytea NOT NULL REFERENCES pages,
    layout_root  bytea NOT NULL REFERENCES pages
);
CREATE INDEX version_roots_content ON version_roots (content_root);
CREATE INDEX version_roots_layout ON version_roots (layout_root);

-- In which versions of a dataset a page occurs: from version number `from_n` to `to_n` (NULL: it still does).
-- A publish writes a row per page that came or went, never one per page there is.
CREATE TABLE page_spans (
    dataset_id   uuid NOT NULL REFERENCES datasets ON DELETE CASCADE,
    page         bytea NOT NULL REFERENCES pages,
    from_n       bigint NOT NULL,
    to_n         bigint CHECK (to_n >= from_n),
    PRIMARY KEY (dataset_id, page, from_n)
);
CREATE INDEX page_spans_page ON page_spans (page);
CREATE INDEX page_spans_open ON page_spans (dataset_id) WHERE to_n IS NULL;

CREATE TABLE tags (
    dataset_id   uuid NOT NULL REFERENCES datasets ON DELETE CASCADE,
    tag          text COLLATE "C" NOT NULL CHECK (tag ~ '^[a-z][a-z0-9._-]{0,63}$' AND tag <> 'latest'),
    version      bytea NOT NULL REFERENCES versions,
    set_by       uuid REFERENCES users ON DELETE SET NULL,
    set_at       timestamptz NOT NULL,
    PRIMARY KEY (dataset_id, tag)
);
CREATE INDEX tags_version ON tags (version);

-- A live row with a heartbeat keeps its chunks and pages: an upload session, a transfer, a reader.
CREATE TABLE leases (
    id           uuid PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('upload', 'transfer', 'reader')),
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    dataset_id   uuid REFERENCES datasets ON DELETE CASCADE,
    parent       bytea,
    -- Bytes charged to the user's staging quota.
    staged_bytes bigint NOT NULL DEFAULT 0 CHECK (staged_bytes >= 0),
    created_at   timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
);
CREATE INDEX leases_expires ON leases (expires_at);
CREATE INDEX leases_user ON leases (user_id, created_at);

CREATE TABLE lease_chunks (
    lease_id     uuid NOT NULL REFERENCES leases ON DELETE CASCADE,
    chunk        bytea NOT NULL CHECK (length(chunk) = 32),
    PRIMARY KEY (lease_id, chunk)
);
CREATE INDEX lease_chunks_chunk ON lease_chunks (chunk);

CREATE TABLE lease_pages (
    lease_id     uuid NOT NULL REFERENCES leases ON DELETE CASCADE,
    page         bytea NOT NULL REFERENCES pages ON DELETE CASCADE,
    PRIMARY KEY (lease_id, page)
);
CREATE INDEX lease_pages_page ON lease_pages (page);
