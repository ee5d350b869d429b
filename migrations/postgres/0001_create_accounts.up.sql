-- Who may speak to this node: users, their keys and uids, sessions, certificates, tokens, settings, quotas.
-- Runs as bibd_owner. Text that people sort or search by prefix is COLLATE "C": byte order, the order of our formats.

CREATE SCHEMA bib;
SET LOCAL search_path = bib;

CREATE TABLE nodes (
    peer_id      text PRIMARY KEY CHECK (length(peer_id) BETWEEN 40 AND 64),
    is_self      boolean NOT NULL DEFAULT false,
    version      text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
CREATE UNIQUE INDEX nodes_one_self ON nodes (is_self) WHERE is_self;

CREATE TABLE users (
    id           uuid PRIMARY KEY,
    name         text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,127}$'),
    display_name text NOT NULL DEFAULT '' CHECK (length(display_name) <= 256),
    orcid        text NOT NULL DEFAULT '' CHECK (orcid = '' OR orcid ~ '^[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{3}[0-9X]$'),
    role         text NOT NULL CHECK (role IN ('reader', 'writer', 'admin')),
    state        text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended', 'removed')),
    preferences  jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
-- Removing a user frees the name, not the id.
CREATE UNIQUE INDEX users_name ON users (name) WHERE state <> 'removed';

CREATE TABLE user_keys (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint  text COLLATE "C" NOT NULL CHECK (fingerprint LIKE 'SHA256:%' AND length(fingerprint) = 50),
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    public_key   text NOT NULL CHECK (length(public_key) <= 16384),
    comment      text NOT NULL DEFAULT '' CHECK (length(comment) <= 256),
    added_at     timestamptz NOT NULL,
    removed_at   timestamptz
);
-- A key is one person's at a time.
CREATE UNIQUE INDEX user_keys_active ON user_keys (fingerprint) WHERE removed_at IS NULL;
CREATE INDEX user_keys_user ON user_keys (user_id);

-- Operating-system users on the Unix socket.
CREATE TABLE user_uids (
    uid          bigint PRIMARY KEY CHECK (uid BETWEEN 0 AND 4294967295),
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at   timestamptz NOT NULL
);
CREATE INDEX user_uids_user ON user_uids (user_id);

-- Authors of versions, as person records name them; they outlive the user.
CREATE TABLE persons (
    fingerprint  text COLLATE "C" PRIMARY KEY CHECK (fingerprint LIKE 'SHA256:%' AND length(fingerprint) = 50),
    public_key   text NOT NULL CHECK (length(public_key) <= 16384),
    name         text NOT NULL DEFAULT '' CHECK (length(name) <= 256),
    orcid        text NOT NULL DEFAULT '',
    user_id      uuid REFERENCES users ON DELETE SET NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
CREATE INDEX persons_user ON persons (user_id);

CREATE TABLE certificates (
    serial          text COLLATE "C" PRIMARY KEY CHECK (serial ~ '^[0-9a-f]{2,40}$'),
    user_id         uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    name            text NOT NULL DEFAULT '' CHECK (length(name) <= 256),
    key_fingerprint text NOT NULL DEFAULT '',
    fingerprint     bytea NOT NULL UNIQUE CHECK (length(fingerprint) = 32),
    spki_sha256     bytea NOT NULL CHECK (length(spki_sha256) = 32),
    not_before      timestamptz NOT NULL,
    not_after       timestamptz NOT NULL,
    revoked_at      timestamptz,
    revoked_reason  text NOT NULL DEFAULT '' CHECK (length(revoked_reason) <= 1024),
    created_at      timestamptz NOT NULL,
    CHECK (not_before < not_after)
);
CREATE INDEX certificates_user ON certificates (user_id, created_at, serial);
CREATE INDEX certificates_key ON certificates (key_fingerprint);

CREATE TABLE sessions (
    id                 uuid PRIMARY KEY,
    user_id            uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    token_hash         bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    key_fingerprint    text NOT NULL,
    certificate_serial text NOT NULL REFERENCES certificates ON DELETE CASCADE,
    peer_address       text NOT NULL DEFAULT '',
    created_at         timestamptz NOT NULL,
    last_seen_at       timestamptz NOT NULL,
    expires_at         timestamptz NOT NULL,
    ended_at           timestamptz,
    ended_reason       text NOT NULL DEFAULT ''
);
CREATE INDEX sessions_user ON sessions (user_id, id);
CREATE INDEX sessions_certificate ON sessions (certificate_serial);
CREATE INDEX sessions_expires ON sessions (expires_at);

CREATE TABLE tokens (
    id                 uuid PRIMARY KEY,
    user_id            uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    name               text NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    token_hash         bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    scopes             text[] NOT NULL CHECK (cardinality(scopes) BETWEEN 1 AND 64),
    certificate_serial text NOT NULL REFERENCES certificates ON DELETE CASCADE,
    created_at         timestamptz NOT NULL,
    expires_at         timestamptz NOT NULL,
    last_used_at       timestamptz,
    revoked_at         timestamptz
);
CREATE INDEX tokens_user ON tokens (user_id, id);
CREATE INDEX tokens_certificate ON tokens (certificate_serial);

CREATE TABLE settings (
    key          text COLLATE "C" PRIMARY KEY CHECK (length(key) BETWEEN 1 AND 128),
    value        jsonb NOT NULL,
    updated_by   uuid REFERENCES users ON DELETE SET NULL,
    updated_at   timestamptz NOT NULL
);

-- `used_bytes` moves in the transaction that stores or frees; a limit of NULL is none.
CREATE TABLE quotas (
    subject      text COLLATE "C" NOT NULL CHECK (length(subject) BETWEEN 1 AND 128),
    kind         text NOT NULL CHECK (kind IN ('staging', 'storage')),
    limit_bytes  bigint CHECK (limit_bytes >= 0),
    used_bytes   bigint NOT NULL DEFAULT 0 CHECK (used_bytes >= 0),
    updated_at   timestamptz NOT NULL,
    PRIMARY KEY (subject, kind)
);

-- First answers to requests that carried an idempotency key, kept for 24 hours.
CREATE TABLE idempotency (
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 128),
    method       text NOT NULL,
    response     bytea NOT NULL CHECK (length(response) <= 65536),
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);
