"""The rungs, a file each: their settings and who asks. A door is the only file that imports its evaluation library.

ask("generation", engine, suite, context)   ->   records of the tasks that have the rung
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perplexity_lies.catalogue.tasks import Suite, rung_settings
from perplexity_lies.record.records import ItemRecord

if TYPE_CHECKING:
    from perplexity_lies.engines.base import Engine
    from perplexity_lies.protocols.base import Context


def ask(rung: str, engine: Engine, suite: Suite, context: Context) -> list[ItemRecord]:
    """Records of every item of the tasks of `suite` that have `rung`, in the suite's order.

    Raises MissingError, naming the extra, when the library that asks is absent.
    """
    narrowed = suite.on(rung)
    return rung_settings(rung).ask(engine, narrowed, context) if narrowed.tasks else []
