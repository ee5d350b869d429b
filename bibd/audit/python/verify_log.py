#!/usr/bin/env python3
"""Verifies an exported BIB audit log, or the proof of one entry. Standard library only.

    verify_log.py EXPORT.jsonl CHECKPOINTS.txt PUBLIC_KEY_HEX     ("-" for none; prints the verdict as JSON)
    verify_log.py --proof PROOF.json PUBLIC_KEY_HEX
"""
import base64, hashlib, json, re, sys

def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()

# --- Ed25519 (RFC 8032, section 6): points are (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z ---
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P

def add(a, b):
    A, B = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    C, E = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = B - A, E - C, E + C, B + A
    return (e * f % P, g * h % P, f * g % P, e * h % P)

def times(n, point):
    out = (0, 1, 1, 0)
    while n:
        if n & 1: out = add(out, point)
        point, n = add(point, point), n >> 1
    return out

def point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P: x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - square) % P: raise ValueError("not a point")
    if x & 1 != sign: x = P - x
    return (x, y, 1, x * y % P)

def signed(key, message, signature):
    try: a, r = point(key), point(signature[:32])
    except ValueError: return False
    s = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or s >= L: return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    base = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
    p, q = times(s, base), add(r, times(h, a))
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0

# --- Checkpoints: C2SP signed notes. The key is named by the log's origin, bib/<peer id>/<epoch>. ---
def peer_id(key):
    n, text = int.from_bytes(bytes.fromhex("002408011220") + key, "big"), ""
    while n: n, digit = divmod(n, 58); text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + text
    return "1" + text

NOTE = re.compile(r"((bib/([0-9A-Za-z]+)/(0|[1-9][0-9]*))\n(0|[1-9][0-9]*)\n(\S+)\nchain ([0-9a-f]{64})\n(?:.+\n)*)\n((?:\u2014 \S+ \S+\n)+)")

def base64_bytes(text):
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text: raise ValueError("another spelling")
    return data

def open_note(note, key):
    """(position, root, head, whether the key signed it)."""
    claimed = re.match(r"bib/[^/\n]*/(0|[1-9][0-9]{0,14})\n(0|[1-9][0-9]{0,14})\n", note)
    nothing = (int(claimed[1]), int(claimed[2])) if claimed else (0, 0), b"", b"", False
    match = NOTE.fullmatch(note)
    if not match: return nothing
    text, origin, node, epoch, size, root, head, lines = match.groups()
    key_id, good = sha(origin.encode(), b"\n\x01", key)[:4], []
    try:
        root = base64_bytes(root)
        for _, name, code in (line.split(" ") for line in lines.splitlines()):
            data = base64_bytes(code)
            if (name, data[:4]) == (origin, key_id): good.append(signed(key, text.encode(), data[4:]))
    except ValueError: return nothing
    return (int(epoch), int(size)), root, bytes.fromhex(head), node == peer_id(key) and good != [] and all(good)

# --- Successions: a node that goes on under another key. Epochs before a succession's own are the former node's, when the
# former node's recovery key (or its own key) signed it and the next node accepted. ---
def key_of_peer(text):
    n = 0
    for c in text: n = n * 58 + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(c)
    key = n.to_bytes(38, "big")[6:]
    if peer_id(key) != text: raise ValueError("not a peer id")
    return key

def canonical(value): return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

def open_step(line):
    """(former node, (authority, revision, hash), next node, its first epoch, whether it accepted), or None."""
    try:
        texts = [raw(line[name]["body"]) for name in ("succession", "node")]
        said, node = map(json.loads, texts)
        signer = line["succession"]["key"]
        if [canonical(said), canonical(node)] != texts: raise ValueError
        if (said["format"], node["format"]) != ("bib-succession/1", "bib-node/1"): raise ValueError
        if not said["id"] == node["id"] == line["node"]["key"] or signer not in (said["id"], node.get("recovery")): raise ValueError
        words = ((line["succession"], b"bib-succession-v1\0"), (line["node"], b"bib-record-v1\0"))
        for (record, purpose), text in zip(words, texts):
            if not signed(key_of_peer(record["key"]), purpose + text, bytes.fromhex(record["sig"])): raise ValueError
        offer = canonical({name: value for name, value in said.items() if name != "acceptance"})
        accepted = "acceptance" in said
        if accepted and not signed(key_of_peer(said["to"]), b"bib-transfer-v1\0" + offer, bytes.fromhex(said["acceptance"])): raise ValueError
        revision = [said["revision"][name] for name in ("tenure", "epoch", "n")]
        rank = (signer != said["id"], revision, -int.from_bytes(sha(texts[0]), "big"))
        return said["id"], rank, said["to"], said["revision"]["epoch"], accepted
    except (ValueError, KeyError, TypeError, OverflowError): return None

def former_nodes(lines, key):
    """[(former node, the epochs before this one are its own)], the last one first."""
    steps, found, limit = {}, [], 2**53
    for step in filter(None, (open_step(line) for line in lines if line["kind"] == "succession")):
        if step[0] not in steps or steps[step[0]][1] < step[1]: steps[step[0]] = step
    node = peer_id(key) if key else ""
    while True:
        before = [step for step in steps.values() if step[2] == node and step[4] and step[3] < limit]
        if not before: return found
        node, _, _, limit, _ = max(before, key=lambda step: step[3])
        found.append((node, limit))

# --- Entries: canonical JSON with every member ---
TEXTS = ["action", "actor", "details", "format", "id", "node", "operation", "result", "target", "time", "via"]
NOTES = {"class": str, "hash": str, "rows": int, "table": str, "us": int}

def parse(body):
    """(the members, None) or (None, the class of tamper)."""
    try:
        value = json.loads(body)
        if isinstance(value, dict) and isinstance(value.get("format"), str) and value["format"] != "bib-audit/1":
            return None, "format-unknown"
        if json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() != body: raise ValueError
        if any(type(value[name]) is not str for name in TEXTS): raise ValueError
        if any(type(value.get(name, "")) is not str for name in ("component", "job", "role")): raise ValueError
        if any(type(note[n]) is not kind for note in value["statements"] for n, kind in NOTES.items()): raise ValueError
        return value, None
    except (ValueError, KeyError, TypeError): return None, "entry-malformed"

def raw(text): return text.encode() if isinstance(text, str) else bytes.fromhex(text["hex"])
def digest(body): return sha(b"bib-audit-entry-v1\0", body)
def follow(head, digest): return sha(b"bib-audit-v1\0", head, digest)
def leaf(data): return sha(b"\0", data)
def node(left, right): return sha(b"\1", left, right)

def columns_differ(value, entry):
    columns = ["id", "time", "node", "actor", "via", "action", "target", "result", "operation", "job"]
    return any((value.get(c) or "").replace("\0", "\u2400") != (entry.get(c) or "") for c in columns)

def detached(target, key):
    """The (epoch, first, last) that are gone by the node's signature, and the ends of epochs that it names."""
    text, _, code = target.rpartition(" sig ")
    try: good = key is None or signed(key, b"bib-detach-v1\0" + text.encode(), base64_bytes(code))
    except ValueError: good = False
    words, runs, ends = text.split(" ")[1:], [], []
    while good and words:
        word = words.pop(0)
        if word == "end": ends.append(words.pop(0))
        else: runs.append(tuple(map(int, re.fullmatch(r"(\d+)/(\d+)-(\d+)", word).groups())))
    return runs, ends

class Bad(Exception):
    """A tamper: its place and its class."""

def diagnose(rows, i, at, head, earlier, body):
    """The class of a row whose digest or head is not what follows; the rows after it tell a swap from a change."""
    stored = lambda row: (bytes.fromhex(row["seal"]["digest"]), bytes.fromhex(row["seal"]["head"]))
    good = lambda before, pair: follow(before, pair[0]) == pair[1]
    here, later = stored(rows[i]), [stored(row) for row in rows[i + 1:]]
    if body is not None:
        if parse(body)[1] == "format-unknown": return Bad(at, "format-unknown")
        if here[1] == follow(head, digest(body)): return Bad(at, "digest-changed")
        if here[0] != digest(body) and good(head, here):
            bodies = (raw(row["entry"]["body"]) for row in rows[i + 1:] if "entry" in row)
            return Bad(at, "rows-swapped" if any(digest(b) == here[0] for b in bodies) else "body-changed")
        if at[1] > 1 and good(earlier, here): return Bad((at[0], at[1] - 1), "row-inserted")
    for pair in later:
        if good(head, pair):
            return Bad(at, "rows-swapped" if good(pair[1], later[0]) or good(pair[1], here) else "row-inserted")
    return Bad(at, "chain-broken" if later and good(here[1], later[0]) else "head-changed")

def verify(lines, notes, key):
    rows = [line for line in lines if line["kind"] == "entry"]
    table = [line["note"] for line in lines if line["kind"] == "checkpoint"]
    beside, places = [], ({}, {})                                # places: {(epoch, size): {(root, head)}} outside, inside
    former = former_nodes(lines, key)
    def key_of(e):                                               # who signs for an epoch
        owner = min((pair for pair in former if e < pair[1]), key=lambda pair: pair[1], default=None)
        return key_of_peer(owner[0]) if key and owner else key
    def claimed_epoch(note):
        claimed = re.match(r"bib/[^/\n]*/(0|[1-9][0-9]{0,14})\n", note)
        return int(claimed[1]) if claimed else 2**53
    opened = {note: open_note(note, key_of(claimed_epoch(note))) for note in notes + table} if key else {}
    for note, result in opened.items():
        if not result[3]: beside.append((result[0], "checkpoint-invalid"))
    for place, source in zip(places, (notes, table)):
        for result in (opened.get(note) for note in source):
            if result and result[3]: place.setdefault(result[0], set()).add(result[1:3])

    reach, missing, erased = {}, {}, set()                       # reach: the last number of each epoch
    absent, allowed, unnamed, named_ends = [], [], {}, set()     # entries that are gone, and by whose word
    epoch = seq = vouched = 0; head = earlier = bytes(32); edge = []
    for i, row in enumerate(rows):                               # chained on what is computed, never on what is stored
        seal, entry = row["seal"], row.get("entry")
        before = None
        if reach and seal["epoch"] < epoch: raise Bad((seal["epoch"], seal["seq"]), "rows-swapped")
        if not reach or seal["epoch"] > epoch:
            before = f"{epoch}/{seq}/{head.hex()}" if reach else ""
            epoch, seq, vouched, head, earlier, edge = seal["epoch"], 0, 0, bytes(32), bytes(32), []
        at = (epoch, seq + 1)
        if seal["seq"] <= seq: raise Bad((epoch, seal["seq"]), "sequence-duplicate")
        if seal["seq"] > seq + 1:
            moved = any((r["seal"]["epoch"], r["seal"]["seq"]) == at for r in rows[i + 1:])
            raise Bad(at, "rows-swapped" if moved else "sequence-gap")
        if entry is None:                                        # the chain goes on by the digest that was sealed
            new = bytes.fromhex(seal["digest"])
            if len(new) != 32 or seal["head"] != follow(head, new).hex(): raise diagnose(rows, i, at, head, earlier, None)
            absent.append(at)
            if at[1] == 1 and before: unnamed[at] = before
            value = {"action": "", "result": ""}
        else:
            body = raw(entry["body"]); new = digest(body)
            if seal["digest"] != new.hex() or seal["head"] != follow(head, new).hex():
                raise diagnose(rows, i, at, head, earlier, body)
            value, wrong = parse(body)
            if wrong: raise Bad(at, wrong)
            if seal["entry"] != entry["id"] or columns_differ(value, entry): raise Bad(at, "column-differs")
            detail = row.get("detail")
            if detail is None: missing[value["id"]] = at
            elif sha(bytes.fromhex(detail["salt"]), raw(detail["details"])).hex() != value["details"]:
                raise Bad(at, "detail-changed")
        if at[1] == 1 and entry is not None:                                           # an epoch's first entry names the end of the one before
            named = value["target"] if value["action"] == "audit.epoch" else ""
            if not re.fullmatch(r"(0|[1-9][0-9]*)/(0|[1-9][0-9]*)/[0-9a-f]{64}", named): named = ""
            (e, n), end = map(int, (named or "0/0").split("/")[:2]), before.split("/")
            if before and str(e) == end[0] and n > int(end[1]):
                cut = (e, int(end[1]) + 1)
                moved = any((r["seal"]["epoch"], r["seal"]["seq"]) == cut for r in rows[i + 1:])
                raise Bad(cut, "rows-swapped" if moved else "tail-truncated")
            if named != before: raise Bad(at, "epoch-link-broken" if before else "epoch-missing")
        if (value["action"], value["result"]) == ("audit.erase", "ok"): erased.add(value["target"])
        if (value["action"], value["result"]) == ("audit.detach", "ok"):
            runs, ends = detached(value["target"], key_of(epoch))
            allowed += runs; named_ends.update(ends)
        earlier, head, seq = head, follow(head, new), seq + 1
        reach[epoch] = seq
        edge.append((1, leaf(new)))                              # perfect subtrees, largest first
        while len(edge) > 1 and edge[-1][0] == edge[-2][0]:
            (size, right), (_, left) = edge.pop(), edge.pop()
            edge.append((2 * size, node(left, right)))
        signed_here = places[0].get(at, set()) | places[1].get(at, set())
        if signed_here:
            root = edge[-1][1]
            for _, left in reversed(edge[:-1]): root = node(left, root)
            if signed_here != {(root, head)}: raise Bad((epoch, vouched + 1), "re-chained")
            vouched = seq

    last = (epoch, seq + 1) if reach else (1, 1)
    waits = []
    for line in (line for line in lines if line["kind"] in ("unsealed", "queued")):
        if line["kind"] == "queued": waits.append((last, "queued-entry-missing")); continue
        value, wrong = parse(raw(line["entry"]["body"]))
        if not line["queued"]: waits.append((last, "entry-unsealed"))
        elif wrong: waits.append((last, "entry-malformed"))
        elif columns_differ(value, line["entry"]): waits.append((last, "column-differs"))
    beside = waits + beside
    outside, inside = places
    newest = max((at for at in outside if 1 <= at[1] <= reach.get(at[0], 0)), default=None)
    for e in sorted({at[0] for at in [*outside, *inside]}):
        n = reach.get(e, 0)
        tops = [max((at[1] for at in place if at[0] == e), default=0) for place in places]
        restored = newest is not None and e in reach and e < newest[0]   # a later, vouched epoch names n as the end
        if max(tops) > n and not restored:
            kind = ("log-truncated" if not reach else "epoch-missing" if n == 0
                    else "rolled-back" if tops[1] <= n else "tail-truncated")
            beside.append(((e, n + 1), kind))
        for has, lacks in ((outside, inside), (inside, outside)) if outside else ():
            have = {(at, c) for at in has if at[0] == e for c in has[at]}
            other = {(at, c) for at in lacks if at[0] == e for c in lacks[at]}
            lone = sorted(x for x in have - other if x[0][1] <= n)
            if lone and not (len(lone) == 1 and (not other or max(other) < lone[0])):   # the newest may be on its way
                beside.append((lone[0][0], "checkpoint-missing"))
    gone = [at for id, at in missing.items() if id not in erased]
    cut = {"tail-truncated", "rolled-back", "log-truncated", "epoch-missing"}   # takes the erasures at the end with it
    if gone and not cut & {kind for _, kind in beside}: beside.append((min(gone), "detail-missing"))
    vouched_for = lambda at: any(e == at[0] and a <= at[1] <= b for e, a, b in allowed) and (newest is None or at <= newest)
    lost = [at for at in absent if not vouched_for(at)]
    if lost: beside.append((lost[0], "partition-missing" if (lost[0][0], lost[0][1] + 1) in lost else "entry-missing"))
    broken = [at for at, end in unnamed.items() if end not in named_ends]
    if broken and key: beside.append((broken[0], "epoch-link-broken"))
    if beside: raise Bad(*min(beside, key=lambda found: found[0]))
    if not (key and newest): return {"verdict": "UNVERIFIED", "entries": sum(reach.values())}
    verdict = {"verdict": "OK", "entries": sum(reach.values()), "head": head.hex(), "checkpoint": list(newest)}
    seen = [{"node": node, "before": before} for node, before in former if min(reach) < before]
    return verdict | {"former": seen} if seen else verdict

def verify_proof(proof, key):
    """RFC 9162, section 2.1.3.2, from the entry to the root that the checkpoint signed."""
    (_, size), root, _, good = open_note(proof["checkpoint"], key)
    at, last, value = proof["seq"] - 1, size - 1, leaf(digest(proof["body"].encode()))
    if not good or not 0 <= at < size: return False
    for other in map(bytes.fromhex, proof["path"]):
        if last == 0: return False
        if at & 1 or at == last:
            value = node(other, value)
            while not at & 1 and at: at, last = at >> 1, last >> 1
        else: value = node(value, other)
        at, last = at >> 1, last >> 1
    detail = proof.get("detail")
    return last == 0 and value == root and (detail is None or sha(
        bytes.fromhex(detail["salt"]), raw(detail["details"])).hex() == json.loads(proof["body"])["details"])

def main(args):
    if args[0] == "--proof":
        good = verify_proof(json.load(open(args[1])), bytes.fromhex(args[2]))
        print("the entry is in the log" if good else "THE PROOF DOES NOT HOLD")
        return 0 if good else 7
    lines = [json.loads(line) for line in open(args[0], encoding="utf-8", newline="\n")]
    text = "" if args[1] == "-" else open(args[1], encoding="utf-8", newline="\n").read()
    parts = text.split("\n\n")[:-1]                              # text, signatures, text, signatures, .. (a torn rest)
    notes = [a + "\n\n" + b + "\n" for a, b in zip(parts[::2], parts[1::2])]
    try: verdict = verify(lines, notes, None if args[2] == "-" else bytes.fromhex(args[2]))
    except Bad as bad: verdict = {"verdict": "TAMPERED", "first_bad": list(bad.args[0]), "class": bad.args[1]}
    print(json.dumps(verdict))
    return {"OK": 0, "TAMPERED": 7}.get(verdict["verdict"], 1)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
