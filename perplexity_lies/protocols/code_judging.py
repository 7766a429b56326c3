"""HumanEval's judging in our sandbox: the programs that replies make, and evalscope's question answered from their outcomes.

Does not import evalscope; `evalscope_door` puts `CodeJudge.check_correctness` in the place of its function of that name,
which would run the program as a plain process of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from perplexity_lies.protocols.base import Context
from perplexity_lies.sandbox import Judgement, Program, SandboxError, run_programs

NEEDS_FLAG = "needs --run-code: the reply is code, and was not run"
FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
"""evalscope's extraction: the first closed block, else the whole reply."""


def completion_of(text: str) -> str:
    """The code in a reply, as evalscope's humaneval takes it (`HumanevalAdapter._postprocess`)."""
    blocks: list[str] = FENCED.findall(text)
    return blocks[0] if blocks else text


def _program(problem: Mapping[str, Any], completion: str, timeout: float = 4.0) -> Program:
    return Program(
        prompt=problem["prompt"], completion=completion, test=problem["test"],
        entry_point=problem["entry_point"], timeout_s=float(timeout),
    )  # fmt: skip


class CodeJudge:
    """Outcomes by program; those that evalscope will ask for are run beforehand, on all cores."""

    def __init__(self, context: Context, task: str) -> None:
        self._context, self._task = context, task
        self._outcomes: dict[Program, Judgement | SandboxError] = {}

    def run(self, problems: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> None:
        """Run every reply's program, with progress; equal programs once."""
        wanted = [_program(problem, completion_of(text)) for problem, text in zip(problems, replies, strict=True)]
        self._run(list(dict.fromkeys(wanted)))

    def _run(self, programs: Sequence[Program]) -> None:
        box = self._context.sandbox
        assert box is not None
        with self._context.reporter.step(f"{self._task}: running code, {box.name}", len(programs)) as advance:
            self._outcomes |= dict(zip(programs, run_programs(box, programs, advance), strict=True))

    def why_unjudged(self, problem: Mapping[str, Any], text: str) -> str:
        """Why a reply has no verdict: without the flag, or by a failure of the sandbox; empty where it has one."""
        if self._context.sandbox is None:
            return NEEDS_FLAG
        outcome = self._outcomes.get(_program(problem, completion_of(text)))
        return f"the sandbox failed: {outcome}" if isinstance(outcome, SandboxError) else ""

    def check_correctness(
        self, problem: Mapping[str, Any], completion: str, timeout: float, completion_id: int | None = None
    ) -> dict[str, Any]:
        """evalscope's function of this name, with its result."""
        program = _program(problem, completion, timeout)
        if self._context.sandbox is None:
            outcome: Judgement | SandboxError = SandboxError(NEEDS_FLAG)
        else:
            if program not in self._outcomes:
                self._run([program])
            outcome = self._outcomes[program]
        result = outcome.result if isinstance(outcome, Judgement) else f"not run: {outcome}"
        return {
            "task_id": problem["task_id"], "passed": result == "passed", "result": result, "completion_id": completion_id,
        }  # fmt: skip
