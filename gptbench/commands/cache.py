"""`gptbench cache`: saves what was compiled, or loads it."""

from gptbench.commands import parsers
from gptbench.engine.compile_cache import LocalCaches, load, save


def cache_command(arguments: list[str]) -> int:
    """`gptbench cache`: saves what was compiled, or loads it. Returns the exit code.

    Raises:
        UserError: see `save` and `load`.
    """
    options = parsers.cache().parse_args(arguments)
    if options.action == "save":
        manifest = save(options.file, options.outputs)
        size = options.file.stat().st_size
        print(f"{options.file}: {manifest.files} files, {manifest.bytes / 1e6:.1f} MB ({size / 1e6:.1f} MB compressed)")
        print(f"for {manifest.device}, torch {manifest.torch}, triton {manifest.triton}, Python {manifest.python}")
        return 0
    place = LocalCaches(options.outputs)
    loaded = load(options.file, place)
    print(f"{options.file}: saved {loaded.manifest.saved} by gptbench {loaded.manifest.gptbench}")
    for name, count in loaded.added.items():
        print(f"added {count} files to {place.folders[name]}")
    print(f"{loaded.kept} files were there already" if loaded.added else "all of it was there already")
    for note in loaded.notes:
        print(note)
    return 0
