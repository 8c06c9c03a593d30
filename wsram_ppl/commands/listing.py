"""``wsram list``."""

from __future__ import annotations

import click


@click.command("list")
def list_components() -> None:
    """List every model, guide, objective and data source, one line each."""
    from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES

    for registry in (MODELS, GUIDES, OBJECTIVES, DATA_SOURCES):
        for name, summary in registry.describe().items():
            click.echo(f"{registry.kind:<12} {name:<20} {summary}")
