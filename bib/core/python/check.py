#!/usr/bin/env python3
"""Recomputes BIB's formats from the golden inputs, with nothing but Python's standard library.

    check.py GOLDEN_DIRECTORY

Written from docs/formats.md. It shares no code with bib-core, so that an error in one shows in the other.
"""

import hashlib
import json
import pathlib
import sys
import uuid

PAGE_ENTRIES, PAGE_BYTES, PAGE_BITS = 4096, 1024 * 1024, 10
INDEX_PAGES, INDEX_BITS = 4096, 18


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def ends(path, bits):
    """Whether SHA-256(path) has so many leading zero bits."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest(), "big") >> (256 - bits) == 0


def pages_of(entries):
    """Yields (bytes, last path) for each page of entries, which may come in any order."""
    page, count, last = b"", 0, None
    for entry in sorted(entries, key=lambda entry: entry["path"].encode()):
        line = canonical(entry) + b"\n"
        if count and (count == PAGE_ENTRIES or len(page) + len(line) > PAGE_BYTES or ends(last, PAGE_BITS)):
            yield page, last
            page, count = b"", 0
        page, count, last = page + line, count + 1, entry["path"]
    if count:
        yield page, last


def root_of(pages):
    """The content root of pages as (bytes, last path)."""
    if len(pages) <= INDEX_PAGES:
        return canonical({"format": "bib-content/1", "levels": 1, "pages": [sha256(page) for page, _ in pages]})
    indexes, run = [], []
    for page, last in pages:
        run.append(sha256(page))
        if len(run) == INDEX_PAGES or ends(last, INDEX_BITS):
            indexes.append(run)
            run = []
    if run:
        indexes.append(run)
    objects = [canonical({"format": "bib-index/1", "pages": run}) for run in indexes]
    return canonical({"format": "bib-content/1", "levels": 2, "pages": [sha256(each) for each in objects]})


def entry_of(row):
    kind, path, *text = row.split("\t")
    text = text[0] if text else ""
    if kind == "dir":
        return {"kind": kind, "path": path}
    if kind == "link":
        return {"kind": kind, "path": path, "target": text}
    if "*" in text:
        text, _, times = text.rpartition("*")
        text *= int(times)
    body = text.replace("\\n", "\n").encode()
    return {"kind": kind, "path": path, "sha256": sha256(body), "size": len(body)}


def multihash(peer_id):
    """The bytes of a peer id: base58 with Bitcoin's alphabet; each leading 1 is a zero byte."""
    number = 0
    for c in peer_id:
        number = number * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(c)
    zeros = len(peer_id) - len(peer_id.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def derived_id(kind, origin, nonce):
    digest = hashlib.sha256(b"bib-id-v1\0" + kind + b"\0" + multihash(origin) + bytes.fromhex(nonce)).digest()
    raw = bytearray(digest[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(raw)))


def rows(path):
    return [row for row in path.read_text(encoding="utf-8").split("\n") if row and not row.startswith("#")]


def check(name, found, expected):
    if found != expected:
        sys.exit(f"{name}: computed\n{found}\nand found\n{expected}")


def main(golden):
    for row in rows(golden / "ids.txt"):
        origin, nonce, topic, dataset = row.split("\t")
        found = (derived_id(b"topic", origin, nonce), derived_id(b"dataset", origin, nonce))
        check("id", found, (topic, dataset))
    print("ok: ids")

    folder = golden / "content"
    pages = list(pages_of([entry_of(row) for row in rows(folder / "listing.txt")]))
    check("pages", b"".join(page for page, _ in pages), (folder / "pages.jsonl").read_bytes())
    check("root", root_of(pages), (folder / "root.json").read_bytes())
    check("content", sha256(root_of(pages)), (folder / "root.sha256").read_text().strip())
    print("ok: content")

    names = (f"f{number:07}" for number in range(6_000_000))
    entries = [{"kind": "file", "path": n, "sha256": sha256(b""), "size": 0} for n in names if ends(n, PAGE_BITS)]
    check("two levels", root_of(list(pages_of(entries))), (folder / "two-levels-root.json").read_bytes())
    print("ok: two levels")

    count = 0
    for path in sorted(golden.rglob("*.json*")):
        data = path.read_bytes()
        for line in data.split(b"\n")[:-1] if path.suffix == ".jsonl" else [data]:
            check(f"canonical JSON in {path.name}", canonical(json.loads(line)), line)
            count += 1
    print(f"ok: canonical JSON, {count} texts")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
