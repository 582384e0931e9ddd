"""optimize: a boot pack from what starts of an image read."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio
from click.core import ParameterSource

from indexer.errors import IndexerError
from lazyfs.assembly import Workshop, opened, place_to_publish
from lazyfs.cli.completing import complete_image
from lazyfs.cli.followed import run_followed
from lazyfs.cli.options import PATH, Seconds, configured
from lazyfs.cli.output import complain, human, print_json, write_line
from lazyfs.cli.process_options import process_options
from lazyfs.cli.run import BEGUN, run
from lazyfs.cli.running import with_workshop
from lazyfs.config import Config
from lazyfs.errors import LazyfsError, NotFound
from lazyfs.exit_codes import exit_code, message_of
from lazyfs.image.boot.recording import kept_traces
from lazyfs.image.boot.trace import MAX_TRACE, Trace, decode_trace
from lazyfs.image.image import Image
from lazyfs.image.optimize import make_pack, publish_pack
from lazyfs.oci.image_name import parse_image


class _ImageThenCommand(click.Command):
    """Takes options before and after its first word; from the second on all words are a command's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line."""
        ctx.allow_interspersed_args = False
        before, words = self._options(ctx, args)
        after, command = self._options(ctx, words[1:])
        return super().parse_args(ctx, [*before, *after, "--", *words[:1], *command])

    def _options(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """The options at the front, and what follows them or a "--"."""
        options_alone = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        splitter = click.Command(None, params=[*options_alone, click.Argument(["words"], nargs=-1)])
        found = splitter.make_parser(ctx).parse_args(list(args))[0]["words"]
        words = list(found) if isinstance(found, tuple) else []  # click marks what is not there
        options = args[: len(args) - len(words)]
        return options[:-1] if options[-1:] == ["--"] else options, words


@click.command(cls=_ImageThenCommand)
@configured
@click.argument("image", shell_complete=complete_image)
@click.argument("command", nargs=-1, metavar="[COMMAND]...", type=click.UNPROCESSED)
@click.option("--trace", "traces", type=PATH, multiple=True, metavar="FILE", help="A trace; may be repeated.")
@click.option(
    "--for", "for_s", type=Seconds(min=0, min_open=True), metavar="SECONDS",
    help="End COMMAND after so many seconds.",
)  # fmt: skip
@click.option(
    "--run", "by_itself", is_flag=True, help="Run what IMAGE starts by itself, as no COMMAND is given."
)
@process_options
@click.option("--push", is_flag=True, help="Publish the pack beside the image, or in --index-repo.")
@click.option("--replace", is_flag=True, help="Begin anew; add to no pack that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def optimize(
    config: Config,
    image: str,
    command: tuple[str, ...],
    traces: tuple[Path, ...],
    for_s: float | None,
    by_itself: bool,
    push: bool,
    replace: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Make the boot pack of IMAGE: all that its start reads, in the order in which it is read.

    The next cold mount anywhere streams it while the container is already starting. COMMAND is run once, as
    lazyfs run does it and with its options, to see what is read; with --trace that is known already. With
    neither, what mounts and containers made with --record have read is taken. It adds to a pack
    that is there.

    \b
      lazyfs optimize --push registry.example/app:1 app --version
      lazyfs optimize --for 5 nginx:1.27 nginx -g 'daemon off;'
      lazyfs optimize --for 10 --run -e POSTGRES_PASSWORD=x postgres:17
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    runs = bool(command) or by_itself
    if not runs and (for_s is not None or _given(wanted)):
        raise click.UsageError("nothing is run: give a COMMAND, or --run for the image's own")
    if push:
        place_to_publish(config, parse_image(image))
    given = [_read(path) for path in traces]
    began = time.time()
    if runs:
        code = run_followed(partial(_run, config, image, command, wanted), for_s or math.inf)
        if code:
            complain(f"the command ended with {code}: no boot pack is made of that")
            return code

    async def work(workshop: Workshop) -> None:
        async with opened(workshop, record=True) as opened_image:
            found = list(given)
            if runs or not given:
                found += await _recorded(workshop, opened_image, began if runs else 0.0)
            facts = await _optimize(workshop, opened_image, found, push=push, replace=replace)
        if as_json:
            print_json(facts)
            return
        write_line(f"{facts['pack']}  {human(facts['size'])}, {facts['leaves']} leaves, {facts['added']} new")
        if push:
            published = facts["published"]
            write_line(f"{published['digest']}  {'published' if published['new'] else 'already published'}")

    with_workshop(config, image, work)
    return 0


def _given(wanted: Mapping[str, Any]) -> bool:
    """Whether any of the options on the process was."""
    context = click.get_current_context()
    return any(context.get_parameter_source(name) is not ParameterSource.DEFAULT for name in wanted)


def _run(
    config: Config, image: str, command: Sequence[str], wanted: Mapping[str, Any], begun: Callable[[], None]
) -> int:
    """Run a command in a container over the image, and have it recorded; its exit code."""
    try:
        with run.make_context("run", ["--record", image, *command], obj=config.as_flags()) as context:
            context.params.update(wanted)
            context.meta[BEGUN] = begun
            result = run.invoke(context)
        return result if isinstance(result, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (LazyfsError, IndexerError, OSError, click.ClickException) as error:
        complain(message_of(error))
        return exit_code(error)


def _read(path: Path) -> Trace:
    with path.open("rb") as file:
        return decode_trace(file.read(MAX_TRACE + 1))


async def _recorded(workshop: Workshop, image: Image, since: float) -> list[Trace]:
    """What was recorded of the image since then."""
    manifest = image.resolved.descriptor.digest
    kept = await trio.to_thread.run_sync(kept_traces, workshop.cache, manifest)
    found = [trace for trace in kept if trace.precise and trace.began >= since]
    if not found:
        raise NotFound(f"no start of {image.resolved.name} was recorded: give a command, or mount --record")
    return found


async def _optimize(
    workshop: Workshop, image: Image, traces: Sequence[Trace], *, push: bool, replace: bool
) -> dict[str, Any]:
    pack = await make_pack(image, workshop.boot_packs, traces, publish=push, replace=replace)
    facts: dict[str, Any] = {
        "image": image.resolved.name,
        "traces": len(traces),
        "pack": pack.digest,
        "size": pack.size,
        "leaves": pack.leaves,
        "added": pack.added,
    }
    if push:
        async with workshop.open_publisher() as publisher:
            digest, new = await publish_pack(image, pack, publisher)
        facts["published"] = {"digest": digest, "new": new}
    return facts
