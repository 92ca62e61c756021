"""Runs cases of one generator in this process and prints what was wrong: one JSON line for each bad case, then a count.

    python tests/fuzz/worker.py GENERATOR FOLDER --count 60       # FOLDER keeps the sound files
    python tests/fuzz/worker.py GENERATOR FOLDER --case 17        # one case again, its files kept in FOLDER/17

A case that takes more than SECONDS of the processors or MAX_BYTES ends the process, after it has said which it was;
one that waits for ever does so after ten times as long, however busy the machine is.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import re
import resource
import shutil
import sys
import threading
import time
from pathlib import Path

from cases import GENERATORS, sound_commands, write_world

from rlhf_jax.cli import main as cli

SECONDS, MAX_BYTES = 60, 2 << 30
BARE = re.compile(r"rlhf-jax \w+: ('?\w+'? object |maximum recursion|Exceeds the limit|Expecting |Extra data|"
                  r"unhashable|list index|string ind|'?\w+'? codec|invalid literal|could not convert|argument of|"
                  r"must be |\w+ indices|cannot unpack|too many values|not enough values|'\w*'$|\w+\(\) )", re.M)
"""Messages of Python itself, with no word of what was read."""


def run(words):
    """(exit status, stdout, stderr) of a command line."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["rlhf-jax", *map(str, words)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def counted(text):
    """The funnels in what a command printed, as (read, invalid and dropped, kept)."""
    for found in re.finditer(r"rows read +([\d,]+)\n(.*?)kept +([\d,]+)", text, re.DOTALL):
        lost = re.findall(r"^  (?:invalid|dropped) +-([\d,]+)", found[2], re.MULTILINE)
        read, kept, *lost = (int(number.replace(",", "")) for number in (found[1], found[3], *lost))
        yield read, sum(lost), kept
    if text.startswith("{") and '"funnel"' in text:
        report, _ = json.JSONDecoder().raw_decode(text)
        funnel = report["funnel"]
        yield funnel["read"], sum(funnel["invalid"].values()) + sum(funnel["dropped"].values()), funnel["kept"]


def wrong(words, counts):
    """What is wrong with how a command line ends, or None. counts: whether what it counts is looked at."""
    try:
        status, out, err = run(words)
    except Exception as error:  # what main lets through
        return f"{type(error).__name__}: {error}"
    if "Traceback" in err:
        return err[-1500:]
    if status not in (0, 1, 2):
        return f"status {status!r}: {err[-500:]}"
    if status and (not err.strip() or BARE.search(err)):
        return f"status {status} and no clear word: {err[:500]!r}"
    for read, lost, kept in counted(out) if counts else ():
        if read != lost + kept:
            return f"of {read} rows {lost} are said to be lost and {kept} kept"
    return None


def watch(now):
    """Ends the process when it holds too much memory, or has worked for too long since `now["began"]`."""
    def look():
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            slow = time.process_time() - now.get("began", 1e9) > SECONDS
            if slow or pages * resource.getpagesize() > MAX_BYTES:
                why = f"more than {SECONDS} s" if slow else f"more than {MAX_BYTES:,} bytes"
                print(json.dumps({**now, "why": why}), file=sys.__stdout__, flush=True)
                faulthandler.dump_traceback()
                os._exit(1)
            time.sleep(0.05)

    threading.Thread(target=look, daemon=True).start()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("generator", choices=GENERATORS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    given = parser.parse_args()
    world = given.folder / "world"
    if not world.is_dir():
        write_world(world)
        for words in sound_commands(world):
            status, out, err = run(words)
            assert status == 0, out + err
    resource.setrlimit(resource.RLIMIT_DATA, (4 * MAX_BYTES, 4 * MAX_BYTES))  # for what is faster than `watch` looks
    now = {}  # nothing is timed until the libraries are imported
    run(["sft", "--dry-run", "--model_name_or_path", world / "base", "--dataset_name", world / "sft.jsonl",
         "--output_dir", world / "none"])
    watch(now)
    cases = range(given.count) if given.case is None else [given.case]
    for number in cases:
        folder = given.folder / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rng = random.Random(f"{given.generator} {given.seed} {number}")
        for words in GENERATORS[given.generator](rng, folder, world):
            now.update({"case": number, "words": [str(word) for word in words][:40], "began": time.process_time()})
            (given.folder / "now.json").write_text(json.dumps(now))
            faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
            why = wrong(words, given.generator != "records")  # in which what was counted is damaged
            faulthandler.cancel_dump_traceback_later()
            if why is not None:
                print(json.dumps({**now, "why": why}), flush=True)
        if given.case is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"ran": len(cases)}), flush=True)


if __name__ == "__main__":
    main()
