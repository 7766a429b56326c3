"""The two jinja environments: one for our own pages, one for the templates that a stranger's suite brings.

    pages("reports").get_template("report.html.j2").render(...)
    strangers().from_string("{{ id }}").render(id="a1")

In both a name that is not there is an error, never an empty text.
"""

from __future__ import annotations

import functools

import jinja2
import jinja2.sandbox


def pages(package: str, folder: str = "templates") -> jinja2.Environment:
    """Templates in `folder` of an installed package; what is put into HTML is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, folder),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def strangers() -> jinja2.sandbox.SandboxedEnvironment:
    """Templates from a suite: sandboxed, one environment, so that a template is compiled once."""
    return jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
