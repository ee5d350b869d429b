DROP TABLE total;
DROP TABLE page;
DROP TABLE record;
