"""Damage to values, texts and bytes, drawn from a seeded generator."""

import copy
import json

RAW = {"@deep": "[" * 200_000 + "]" * 200_000, "@digits": "9" * 5_000, "@nan": "NaN", "@infinite": "-Infinity",
       "@surrogate": '"\\ud800"'}
"""JSON that no Python value is written as; each stands for itself in a tree as its name."""
ODD = [None, True, False, 0, -1, 1.5, 1e308, -0.0, 10**30, "", " ", "text", "\x00", "\x1b[31m", "é" * 40, [], {}, [[]],
       [None], {"a": None}, [1, "a"], {"role": "user"}, [{"role": "user", "content": "Hi."}], "x" * 100_000, *RAW]


def places(tree, found=()):
    """Paths of all values under a tree."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*found, key)
        yield from places(tree[key], (*found, key))


def mutated(rng, tree, changes=2):
    """A copy of a tree with some values replaced, left out, given twice, or under another key."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, changes)):
        paths = list(places(tree))
        if not paths:
            return tree
        *above, last = rng.choice(paths)
        inside = tree
        for key in above:
            inside = inside[key]
        match rng.choice(("odd", "odd", "odd", "gone", "twice", "renamed")):
            case "odd":
                inside[last] = rng.choice(ODD)
            case "gone":
                del inside[last]
            case "twice" if isinstance(inside, list):
                inside.insert(last, copy.deepcopy(inside[last]))
            case _ if isinstance(inside, dict):
                inside[rng.choice(("", "x", f"{last}s", f"{last} "))] = inside.pop(last)
    return tree


def to_json(tree):
    """JSON text of a tree, RAW pieces put in."""
    text = json.dumps(tree)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def damaged(rng, data):
    """Bytes cut off, flipped, put in, repeated, or in another encoding."""
    data = bytearray(data)
    at = rng.randrange(len(data) + 1)
    match rng.choice(("cut", "flip", "insert", "repeat", "bom", "utf16", "crlf", "empty", "swap")):
        case "cut":
            del data[at:]
        case "flip":
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "insert":
            data[at:at] = rng.choice((b"\x00", b"\xff\xfe", b"{", b'"', b"\n", b"[[[[", rng.randbytes(20)))
        case "repeat":
            data[at:at] = data[at : at + rng.randint(1, 200)]
        case "bom":
            data[:0] = b"\xef\xbb\xbf"
        case "utf16":
            data = bytearray(bytes(data).decode("utf-8", "ignore").encode("utf-16"))
        case "crlf":
            data = bytearray(bytes(data).replace(b"\n", b"\r\n"))
        case "empty":
            data = bytearray()
        case "swap":
            half = data[at:]
            del data[at:]
            data[:0] = half
    return bytes(data)
