-- The node that made a topic or dataset: its id is bound to that node for good. Empty as long as that is the owner; a
-- succession writes it when it moves `owner` on.
SET LOCAL search_path = bib;

ALTER TABLE topics ADD COLUMN origin text REFERENCES nodes;
ALTER TABLE datasets ADD COLUMN origin text REFERENCES nodes;
