"""`rlhf-jax ARGUMENTS`, killed as by kill -9 just before its n-th change of a file in its output folder.

A change is whatever opens for writing, renames, makes or removes something there; Python tells each of them to an audit
hook before it happens. In the environment: CHANGES, a file that gets a line for each; KILL_AT, the n of the change that
is not reached; KILL_TORN, to cut the file that would be renamed there to half, as if it had died while it was written.
"""

import os
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGING = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate")

folder = os.path.realpath(sys.argv[sys.argv.index("--output_dir") + 1])
kill_at = int(os.environ.get("KILL_AT", 0))
log = os.open(os.environ.get("CHANGES", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
count = 0


def full(path, at=-1):
    """The absolute path of what an event names, `at` being the folder it is relative to, as a descriptor."""
    base = os.getcwd() if at in (-1, None) else os.readlink(f"/proc/self/fd/{at}")
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))


def touched(event, args):
    """The path that an event changes, None if it changes none."""
    if event == "open" and args[2] & WRITES and not isinstance(args[0], int):
        return full(args[0])
    if event in CHANGING and not isinstance(args[0], int):
        at = {"os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "os.rename": 2}.get(event)
        return full(args[1 if event in ("os.rename", "os.symlink") else 0], -1 if at is None else args[at])
    return None


def watch(event, args):
    global count
    path = touched(event, args)
    if path is None or not f"{path}/".startswith(f"{folder}/"):
        return
    count += 1
    os.write(log, f"{event} {os.path.relpath(path, folder)}\n".encode())
    if count == kill_at:
        if event == "os.rename" and "KILL_TORN" in os.environ and os.path.isfile(args[0]):
            os.truncate(args[0], os.path.getsize(args[0]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from rlhf_jax.cli.main import main

    sys.addaudithook(watch)
    main()
