"""A plan for a terminal: stages and totals, where FLOPs and memory go, the cache, what was assumed, warnings."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.plan.cost import MEMORY_WORDS, PART_WORDS, CachePlan, Plan


def _short(count: float) -> str:
    """A count in thousands, millions, billions, three digits."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _stage_table(made: Plan) -> Table:
    flops = [sum(each.flops.values()) for each in made.stages]
    memory = [sum(each.memory_bytes.values()) for each in made.stages]
    power, prefix = (1e15, "P") if max(flops) >= 1e15 else (1e12, "T")
    size, unit = _bytes_unit(made)
    title = f"{made.recipe} on one {made.device}"
    table = _table(title, "stage", "steps", "rows x length", "tokens", "trained", f"{prefix}FLOP", unit, "time")
    for each, operations, held in zip(made.stages, flops, memory, strict=True):
        stage = each.stage
        table.add_row(
            f"{stage.name} ({stage.kind})", f"{stage.steps:,}", f"{stage.rows} x {stage.length:,}", _short(each.tokens),
            _short(each.trained), _figure(operations / power), _figure(held / size), _duration(each.hours),
        )  # fmt: skip
    steps, tokens = sum(each.stage.steps for each in made.stages), sum(each.tokens for each in made.stages)
    total = _figure(sum(flops) / power)
    table.add_row("total", f"{steps:,}", "", _short(tokens), "", total, "", _duration(made.hours), style="bold")
    return table


def _bytes_unit(made: Plan) -> tuple[float, str]:
    return (1e9, "GB") if max(sum(each.memory_bytes.values()) for each in made.stages) >= 1e9 else (1e6, "MB")


def _parts_tables(made: Plan) -> tuple[Table, Table]:
    size, unit = _bytes_unit(made)
    flops_table = _table("where the FLOPs go, %", "stage", *PART_WORDS)
    memory_table = _table(f"where the memory goes, {unit}", "stage", *MEMORY_WORDS)
    for each in made.stages:
        whole = sum(each.flops.values())
        flops_table.add_row(each.stage.name, *(f"{100 * each.flops[word] / whole:.0f}" for word in PART_WORDS))
        memory_table.add_row(each.stage.name, *(_figure(each.memory_bytes[word] / size) for word in MEMORY_WORDS))
    return flops_table, memory_table


def _cache_line(cache: CachePlan) -> str:
    line = (
        f"cache of one row: teacher {cache.teacher_bytes_per_token:,} bytes a token; student "
        f"{cache.student_bytes_per_token:,} and {cache.state_bytes:,} at any length"
    )
    smaller, half = cache.tokens_at(0.0), cache.tokens_at(0.5)
    if smaller == float("inf"):
        return f"{line}: never smaller"
    return f"{line}: smaller beyond {smaller:,.0f} tokens" + (f", by half beyond {half:,.0f}" if half < 1e12 else "")


def render_plan(made: Plan) -> RenderableType:
    """The whole plan, in eighty columns."""
    each = {s.stage.name: f"{100 * s.share:.0f} %" for s in made.stages}
    shares = next(iter(each.values())) if len(set(each.values())) == 1 else ", ".join(map(" ".join, each.items()))
    lines = (
        f"teacher {made.teacher.name}: {made.teacher_parameters:,} parameters (shape from: {made.teacher.source}); "
        f"student: {made.student_parameters:,}, {made.kept} of {made.layers} layers keep attention",
        _cache_line(made.cache),
        f"assumed: of the device's peak {shares}; mixers in plain PyTorch (kernels keep less); one process",
    )
    warnings = (Text(f"warning: {warning}", style="yellow") for warning in made.warnings)
    flops_table, memory_table = _parts_tables(made)
    return Group(_stage_table(made), "", flops_table, "", memory_table, "", *map(Text, lines), *warnings)
