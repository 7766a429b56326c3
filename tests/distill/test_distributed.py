"""Two processes started by torchrun end on the weights of one: whole models, sharded ones, and a sharded run resumed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.data import Batch, Stream
from distill.miniature.teacher import new_teacher
from distill.miniature.tokenizer import build_tokenizer
from distill.recipe.settings import StageConfig, StudentConfig
from distill.students.convert import assembled, new_student
from distill.training.distributed import own_rows, processes, shard, world
from distill.training.stages import loss_in, trainable_in
from distill.training.states import gathered
from distill.training.train import train
from perplexity_lies.errors import UsageError
from suites.miniature.world import vocabulary

DISTIL = StageConfig(name="s", kind="3b", data="x", steps=4, rows=4, length=24, lr=0.01, micro_rows=1)
ALIGN = dataclasses.replace(DISTIL, kind="2", steps=3, muon_lr=0.01)
STAGES = {"align": ALIGN, "whole": DISTIL, "sharded": DISTIL, "resumed": DISTIL}
PATIENCE_S = 300


@dataclasses.dataclass
class Interrupted:
    """A stream that ends with an interrupt after so many batches."""

    stream: Stream
    left: int

    def batch(self, position: int) -> Batch:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.stream.batch(position)


def run(way: str, directory: Path, stage: StageConfig | None = None) -> dict[str, Tensor]:
    """Weights at the end of a stage, and its loss on a batch that it did not see."""
    from conftest import TINY_TEACHER
    from test_train import tiny_stream

    stage, stream = stage or STAGES[way], tiny_stream(prompt_weight=0.25)
    teacher = new_teacher(TINY_TEACHER, build_tokenizer(vocabulary()), seed=0).eval()

    def begin() -> Any:
        kda, mamba2 = (new_student(teacher, 1, StudentConfig(mixer=name, chunk_size=4)) for name in ("kda", "mamba2"))
        model = nn.ModuleDict({"kda": kda, "mamba2": mamba2}) if way == "align" else assembled(teacher, kda, (1,))
        if way in ("sharded", "resumed"):
            shard(model)
        return model, loss_in(stage, teacher, model)

    if way == "resumed":
        model, loss = begin()
        cut = dataclasses.replace(stage, save_every=1)
        with pytest.raises(KeyboardInterrupt):
            train(cut, model, trainable_in(stage), loss, Interrupted(stream, 2), directory)
    model, loss = begin()
    train(stage, model, trainable_in(stage), loss, stream, directory)
    weights: dict[str, Tensor] = gathered(model, [])["model"]
    return weights | {"loss": torch.tensor(loss.value(stream.batch(900)))}


def main() -> None:
    """One of torchrun's processes."""
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with processes("cpu"):
        number, count = world()
        assert count == 2
        with pytest.raises(UsageError, match="3 rows cannot be shared by 2 processes"):
            own_rows(Batch(*[torch.zeros((3, 2))] * 3, 0, 0, 0))
        for refused in (ALIGN, dataclasses.replace(DISTIL, muon_lr=0.01)):
            with pytest.raises(UsageError, match="sharded model"):
                run("sharded", out / "refused", refused)
        for way in STAGES:
            found = run(way, out / way)
            if number == 0:
                torch.save(found, out / f"{way}.pt")


def torchrun(*arguments: str) -> None:
    """Runs this file in two processes, which end when they take too long."""
    root, here = Path(__file__).parents[2], Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{root}:{here}", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        *arguments,
    ]
    agent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = agent.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        agent.terminate()  # it ends its processes
        agent.wait()
        raise
    assert agent.returncode == 0, said[-3000:]


@pytest.mark.slow
def test_two_processes_end_on_what_one_ends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    alone = {way: run(way, tmp_path / "alone" / way) for way in ("align", "whole")}
    for way, stage in STAGES.items():
        found, wanted = torch.load(tmp_path / f"{way}.pt"), alone["align" if way == "align" else "whole"]
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=f"{way}: {name}")
        assert [path.name for path in (tmp_path / way).glob("*.pt")] == [f"state-{stage.steps}.pt"]
        assert len((tmp_path / way / "metrics.jsonl").read_text().splitlines()) == 1


if __name__ == "__main__":
    main()
