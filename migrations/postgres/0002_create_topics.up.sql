-- Topics, datasets, grants, tags and the signed records about them.
SET LOCAL search_path = bib;

CREATE TABLE topics (
    id              uuid PRIMARY KEY,
    name            text COLLATE "C" NOT NULL CHECK (length(name) BETWEEN 1 AND 1031),
    parent_id       uuid REFERENCES topics ON DELETE RESTRICT,
    owner           text NOT NULL REFERENCES nodes,
    nonce           bytea NOT NULL CHECK (length(nonce) = 16),
    title           text NOT NULL DEFAULT '' CHECK (length(title) <= 512),
    description     text NOT NULL DEFAULT '' CHECK (length(description) <= 16384),
    visibility      text NOT NULL DEFAULT 'private' CHECK (visibility IN ('private', 'network', 'public')),
    default_license text NOT NULL DEFAULT '' CHECK (length(default_license) <= 256),
    created_by      uuid REFERENCES users ON DELETE SET NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    deleted_at      timestamptz
);
CREATE INDEX topics_name ON topics (name, id) WHERE deleted_at IS NULL;
CREATE INDEX topics_parent ON topics (parent_id) WHERE deleted_at IS NULL;
CREATE INDEX topics_created_by ON topics (created_by);

CREATE TABLE topic_grants (
    topic_id     uuid NOT NULL REFERENCES topics ON DELETE CASCADE,
    -- A key fingerprint or a peer id.
    subject      text COLLATE "C" NOT NULL CHECK (length(subject) BETWEEN 40 AND 64),
    level        text NOT NULL CHECK (level IN ('read', 'write', 'admin')),
    granted_by   text NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    CHECK (expires_at <= created_at + interval '91 days'),
    PRIMARY KEY (topic_id, subject)
);
CREATE INDEX topic_grants_subject ON topic_grants (subject);
CREATE INDEX topic_grants_expires ON topic_grants (expires_at);

CREATE TABLE datasets (
    id               uuid PRIMARY KEY,
    topic_id         uuid NOT NULL REFERENCES topics ON DELETE RESTRICT,
    -- The full name, topic and all: names never change, so it can be kept here.
    name             text COLLATE "C" NOT NULL CHECK (length(name) BETWEEN 3 AND 1031),
    owner            text NOT NULL REFERENCES nodes,
    nonce            bytea NOT NULL CHECK (length(nonce) = 16),
    -- The DataCite core of the latest version (or, before the first, the defaults of the next publish).
    title            text NOT NULL DEFAULT '' CHECK (length(title) <= 512),
    description      text NOT NULL DEFAULT '' CHECK (length(description) <= 16384),
    license          text NOT NULL DEFAULT '' CHECK (length(license) <= 256),
    creators         jsonb NOT NULL DEFAULT '[]',
    keywords         text[] NOT NULL DEFAULT '{}',
    funders          jsonb NOT NULL DEFAULT '[]',
    related          jsonb NOT NULL DEFAULT '[]',
    publisher        text NOT NULL DEFAULT '',
    publication_year integer CHECK (publication_year BETWEEN 1000 AND 9999),
    language         text NOT NULL DEFAULT '',
    identifier       text NOT NULL DEFAULT '',
    metadata         jsonb NOT NULL DEFAULT '{}',
    latest           bytea CHECK (length(latest) = 32),
    versions         bigint NOT NULL DEFAULT 0 CHECK (versions >= 0),
    -- The number of the newest version ever; never goes down.
    last_n           bigint NOT NULL DEFAULT 0 CHECK (last_n >= 0),
    files            bigint NOT NULL DEFAULT 0,
    size_bytes       bigint NOT NULL DEFAULT 0,
    created_by       uuid REFERENCES users ON DELETE SET NULL,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    deleted_at       timestamptz,
    words            tsvector NOT NULL DEFAULT ''
);
CREATE INDEX datasets_name ON datasets (name, id) WHERE deleted_at IS NULL;
CREATE INDEX datasets_topic ON datasets (topic_id) WHERE deleted_at IS NULL;
CREATE INDEX datasets_words ON datasets USING gin (words) WHERE deleted_at IS NULL;
CREATE INDEX datasets_created_by ON datasets (created_by);

-- The words that `dataset list --text` finds.
CREATE FUNCTION datasets_set_words() RETURNS trigger
    LANGUAGE plpgsql SET search_path = bib, pg_catalog AS $$
BEGIN
    NEW.words := to_tsvector('simple',
        regexp_replace(NEW.name, '[/._-]+', ' ', 'g') || ' ' || NEW.title || ' ' || left(NEW.description, 4096) || ' '
        || array_to_string(NEW.keywords, ' '));
    RETURN NEW;
END $$;
CREATE TRIGGER datasets_words BEFORE INSERT OR UPDATE OF name, title, description, keywords ON datasets
    FOR EACH ROW EXECUTE FUNCTION datasets_set_words();

-- One name space per owner: a topic and a dataset never share a full name. Deleting frees the row.
CREATE TABLE names (
    owner        text NOT NULL REFERENCES nodes,
    name         text COLLATE "C" NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('topic', 'dataset')),
    id           uuid NOT NULL,
    PRIMARY KEY (owner, name)
);

-- Signed records, verbatim; the highest revision of each (kind, id).
CREATE TABLE records (
    kind         text NOT NULL CHECK (length(kind) BETWEEN 1 AND 32),
    id           text COLLATE "C" NOT NULL CHECK (length(id) BETWEEN 1 AND 256),
    tenure       bigint NOT NULL CHECK (tenure >= 0),
    epoch        bigint NOT NULL CHECK (epoch >= 0),
    n            bigint NOT NULL CHECK (n >= 0),
    body         bytea NOT NULL CHECK (length(body) <= 65536),
    key          bytea NOT NULL CHECK (length(key) = 38),
    sig          bytea NOT NULL CHECK (length(sig) = 64),
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (kind, id)
);
