"""Ten injected faults and what the control agent does about them: runs the tests that inject them, prints their table.

    python bench/control_faults.py [--out FOLDER] [--simulated]

The first table's seconds are simulated: a whole agent in virtual time, its loops at their usual periods. The second
one's are wall time of real processes on this machine. The folder gets both as Markdown and their rows as JSON.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIMULATED = ("tests/control/test_ten_faults.py", "tests/control/test_ten_faults_agent.py")
REAL = ("tests/e2e/test_agent_faults.py",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the table is written (default: a temporary folder)")
    parser.add_argument("--simulated", action="store_true", help="without real processes: seconds instead of minutes")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.out or Path(temporary)).resolve()
        for earlier in folder.glob("faults*"):
            earlier.unlink()
        files = SIMULATED if chosen.simulated else SIMULATED + REAL
        argv = (sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "slow or not slow", *files)
        done = subprocess.run(argv, cwd=ROOT, env=os.environ | {"SEKISHO_FAULT_TABLE": str(folder)}, check=False)
        table = folder / "faults.md"
        print(table.read_text(encoding="utf-8") if table.is_file() else "no row was made")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
