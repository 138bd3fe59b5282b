"""`gptbench cache`: saves compiled and autotuned kernels to a file, or loads them."""

from dataclasses import asdict

from gptbench.base.errors import counted
from gptbench.commands import parsers
from gptbench.engine.compile_cache import LocalCaches, load, save
from gptbench.present.console import console, write_line


def cache_command(arguments: list[str]) -> int:
    """`gptbench cache`: saves compiled and autotuned kernels to a file, or loads them. Returns the exit code.

    Raises:
        UserError: see `save` and `load`.
    """
    options = parsers.cache().parse_args(arguments)
    line: dict[str, object] = {"file": str(options.file)}
    if options.action == "save":
        manifest = save(options.file, options.outputs)
        size = options.file.stat().st_size
        megabytes = f"{manifest.bytes / 1e6:.1f} MB ({size / 1e6:.1f} MB compressed)"
        lines = [
            f"{options.file}: {counted(manifest.files, 'file')}, {megabytes}",
            f"for {manifest.device}, torch {manifest.torch}, triton {manifest.triton}, Python {manifest.python}",
        ]
        line |= asdict(manifest) | {"compressed_bytes": size}
    else:
        local = LocalCaches(options.outputs)
        loaded = load(options.file, local)
        lines = [f"{options.file}: saved {loaded.manifest.saved} by gptbench {loaded.manifest.gptbench}"]
        lines += [f"added {counted(count, 'file')} to {local.folders[name]}" for name, count in loaded.added.items()]
        lines += [f"{counted(loaded.kept, 'file')} already present"] if loaded.kept else []
        lines += [f"{counted(loaded.skipped, 'file')} skipped: of no use on this machine"] if loaded.skipped else []
        lines += loaded.notes
        counts = {"added": loaded.added, "kept": loaded.kept, "skipped": loaded.skipped}
        line |= counts | {"notes": loaded.notes}
    for text in lines:
        console.print(text, markup=False)
    write_line(line)
    return 0
