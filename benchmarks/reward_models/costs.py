"""What features and probes cost: the clock's seconds, the processor's, and the peak of memory, at several sizes."""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from settings import SOURCES, graded_answers

from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.workflow.results import versions

ANSWERS = 4
"""Of one row."""


def costs(folder: Path, data: Path, backbone: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Runs `features` on so many graded answers, and `probe` on them, each in a process of its own."""
    lines = []
    for size in sizes:
        here = folder / str(size)
        rows = graded_answers("alpacaeval", data, size, ANSWERS)
        write_jsonl_atomic(here / "rated.jsonl", rows)
        render = ["--text_as_chat", "true", "--chat_template_path", "zephyr"]
        lines.append(_command("features", size, "--kind", "preference", "--dataset_name", here / "rated.jsonl",
                              "--model_name_or_path", backbone, "--max_length", "256", *render,
                              "--output_dir", here / "features"))
        stored = json.loads((here / "features/stage.json").read_text())["report"]
        lines[-1] |= {name: stored[name] for name in ("responses", "pairs", "width")}
        lines.append(_command("probe", size, "--kind", "armorm", "--model_name_or_path", backbone,
                              "--ratings", here / "features", "--pairs", here / "features", "--few_rows", "true",
                              "--objectives", '["data/alpacaeval", "data/verbosity"]', "--debias", "verbosity",
                              "--output_dir", here / "probe", "--chat_template_path", "zephyr"))
    return {"day": f"{datetime.date.today()}", "versions": versions(), "backbone": backbone.name,
            "cores": os.cpu_count(), "set": SOURCES["alpacaeval"][0], "lines": lines}


def _command(verb: str, size: int, *words: Any) -> dict[str, Any]:
    """One command, done anew."""
    output = Path(words[words.index("--output_dir") + 1])
    subprocess.run(["rm", "-rf", str(output)], check=True)
    begun, others = time.perf_counter(), _busy()
    process = subprocess.Popen([sys.executable, "-m", "rlhf_jax", verb, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    passed = time.perf_counter() - begun
    if status:
        raise SystemExit(f"{verb} ended with status {os.waitstatus_to_exitcode(status)}; its messages are above")
    own = used.ru_utime + used.ru_stime
    return {"verb": verb, "answers": size, "seconds": passed, "processor": own,
            "others": max(0.0, _busy() - others - own) / passed, "peak": used.ru_maxrss * 1024}


def _busy() -> float:
    """Processor seconds that all processes of the machine have used so far."""
    times = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")
