"""The read wing works where torch and the evaluation libraries are absent."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SCRIPT = """
import importlib, sys
from pathlib import Path

BLOCKED = {"torch", "transformers", "lm_eval", "evalscope", "datasets", "tokenizers", "safetensors", "scipy", "vllm"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
sys.path[:0] = sys.argv[1:3]
for name in ("errors", "record.records", "record.store", "read.stats.regimes", "read.comparison", "read.pairing",
             "read.cautions", "read.compare", "read.texts", "read.gate"):
    importlib.import_module(f"perplexity_lies.{name}")
assert "pandas" not in sys.modules, "pandas is imported before a frame is asked for"
for name in ("terminal", "figures", "html", "items", "provenance", "telling", "texts", "screenshot"):
    importlib.import_module(f"reports.{name}")

import handmade
from rich.console import Console
from perplexity_lies.read.compare import compare_runs, load_comparison
from perplexity_lies.read.gate import decide
from reports import html, terminal

folder = Path(sys.argv[3])
comparison = compare_runs(*handmade.demo_pair(folder, items=40))
comparison = load_comparison(comparison.write(folder / "comparison.json"))
Console(width=100).print(terminal.render(comparison))
html.write(comparison, folder / "report.html")
assert len(comparison.gaps) == 12 and len(comparison.items) == 200
print("verdict", decide(comparison, 3.0).outcome)
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
"""


def test_read_wing_needs_no_run_wing(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(ROOT / "tests" / "read"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verdict regress" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
