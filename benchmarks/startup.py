"""CPU seconds until `import mtnlp` is done and until `mtnlp --help` has answered, and what they load.

Run:     python benchmarks/startup.py
Cost:    a few seconds
Each number is the median of five fresh processes, user and system time together, with the interpreter's own
start. Exit code 1 if a limit is broken or a heavy module was loaded.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from statistics import median

RUNS = 5
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "numpy", "pandas", "pyarrow")
HELP = "from mtnlp.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
CASES = {  # what is measured -> the code, and the most CPU seconds it may take
    "empty process": ("", None),
    "import mtnlp": ("import mtnlp", 0.1),
    "mtnlp --help": (HELP, 0.3),
}
TAIL = f"""
import time
spent = time.process_time()
import json, sys
print(json.dumps([spent, len(sys.modules), [x for x in {HEAVY!r} if x in sys.modules]]), file=sys.stderr)
"""


def once(code: str) -> tuple[float, int, list[str]]:
    """CPU seconds of a fresh process, the number of modules it loaded, and the heavy ones among them."""
    run = subprocess.run([sys.executable, "-c", code + TAIL], capture_output=True, text=True, check=True)
    return tuple(json.loads(run.stderr.splitlines()[-1]))


def measure(name: str) -> dict:
    code, limit = CASES[name]
    once(code)  # the first process may still have to compile files
    seconds, modules, heavy = zip(*(once(code) for _ in range(RUNS)))
    spent = median(seconds)
    kept = limit is None or (spent < limit and not heavy[0])
    return {"case": name, "cpu_seconds": round(spent, 4), "limit": limit, "modules": modules[0],
            "heavy": heavy[0], "ok": kept}  # fmt: skip


def main() -> int:
    rows = [measure(name) for name in CASES]
    print(f"{'':13}  {'CPU s':>6}  {'limit':>5}  {'modules':>7}  heavy modules")
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['limit']:.1f}"
        heavy = ", ".join(row["heavy"]) or "none"
        print(f"{row['case']:13}  {row['cpu_seconds']:6.3f}  {limit:>5}  {row['modules']:7}  {heavy}")
    print(json.dumps({"python": platform.python_version(), "runs": RUNS, "cases": rows}))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
