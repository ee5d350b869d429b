-- What a version's publish was charged to its publisher's storage quota, so that it can be given back.
SET LOCAL search_path = bib;

ALTER TABLE versions ADD COLUMN charged_bytes bigint NOT NULL DEFAULT 0 CHECK (charged_bytes >= 0);

-- NULL is the configured limit. Before, the limit of the first use was kept for good; nothing else ever wrote it.
UPDATE quotas SET limit_bytes = NULL;
