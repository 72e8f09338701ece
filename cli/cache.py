"""`flambeau cache`: the folder where compiled code is kept."""

from __future__ import annotations

import json
from pathlib import Path

import click


def folder() -> Path | None:
    """Where the cache is; None if it is switched off."""
    from flambeau.compiler import options
    from flambeau.runtime.cache import default_cache_dir

    chosen = options.current().cache_dir
    if chosen == "off":
        return None
    return Path(chosen) if chosen else default_cache_dir()


@click.group("cache", short_help="Show or empty the compilation cache.")
def command() -> None:
    """The compilation cache. FLAMBEAU_CACHE_DIR moves it, or switches it off with the value `off`.

    It holds FLAMBEAU_CACHE_MIB MiB at most (1024); beyond that, entries go that have not been used for longest. Any number
    of processes may use one folder at once.
    """


@command.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(as_json: bool) -> None:
    """Print the folder, the number of entries and their size."""
    from flambeau.cli.progress import bytes_text
    from flambeau.runtime.cache import DiskCache

    path = folder()
    if path is None:
        click.echo(json.dumps({"path": None, "entries": 0, "bytes": 0}) if as_json else "the cache is off")
        return
    stats = DiskCache(path).stats()
    if as_json:
        click.echo(json.dumps({"path": str(path), "entries": stats.entries, "bytes": stats.nbytes}))
        return
    click.echo(f"{path}: {stats.entries} entries, {bytes_text(stats.nbytes)}")


@command.command("clear")
def clear() -> None:
    """Remove every entry; other files in the folder stay."""
    from flambeau.runtime.cache import DiskCache

    path = folder()
    if path is None:
        raise click.ClickException("the cache is off")
    cache = DiskCache(path)
    before = cache.stats().entries
    cache.clear()
    after = cache.stats().entries
    if after:
        raise click.ClickException(f"{path}: {after} of {before} entries cannot be removed")
    click.echo(f"{path}: removed {before} entries", err=True)
