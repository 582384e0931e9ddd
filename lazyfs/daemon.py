"""The process behind one mount: opens the image, mounts it, and answers until it is unmounted.

`lazyfs mount` starts it as `python -m lazyfs.daemon`, hands the order over on stdin and reads what happens
from stdout, one JSON object a line: progress, warnings, and in the end `ready` or `error`. After `ready`
nobody listens any more; what is worth telling goes to the log file.
"""

import fcntl
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import trio

from lazyfs.assembly import Workshop, open_workshop, opened
from lazyfs.cache.keeping import keep_room
from lazyfs.cache.locks import named_lock
from lazyfs.config import Config, load_config
from lazyfs.control import answer_questions
from lazyfs.errors import ConfigError, ContainerError
from lazyfs.exit_codes import BUG, exit_code, message_of
from lazyfs.image.auditing.auditor import Auditor, cases_of
from lazyfs.image.boot.foresight import Process, foresee
from lazyfs.image.boot.hastening import starts_by_pack
from lazyfs.image.boot.recording import recorded
from lazyfs.image.boot.trace import Tracer
from lazyfs.image.boot.warming import warmed
from lazyfs.image.explain import explanation, traffic_facts, waits_facts
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import Progress
from lazyfs.image.reading.completion import wait_much_read
from lazyfs.image.reading.reads import reads_of, sum_of
from lazyfs.image.tasks import open_tasks
from lazyfs.log import start_log
from lazyfs.mount.drivers import Served, serve_tree
from lazyfs.mount.erofs import Tree
from lazyfs.mount.fuse_mount import MountOptions, check_mount_point
from lazyfs.mount.tuning import DEFAULT_READ_AHEAD_KB, START_READ_AHEAD_KB, ReadAheadKnob
from lazyfs.mount_states import MountFacts, MountStates, drop_empty_log
from lazyfs.oci.image_name import ImageName, anchored, parse_image
from lazyfs.oci.platform import host_platform, rank

_log = logging.getLogger("lazyfs.daemon")  # also as a program

_SYNC_EVERY_S: Final = 30.0

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class MountOrder:
    """What is to be mounted.

    Attributes:
        image: the image's name.
        mount_point: where.
        driver: "auto", "erofs" or "fuse".
        runtime_dir: where the states of mounts are kept.
        log_file: where the log goes; "" for stderr.
        setuid: whether setuid bits and file capabilities count.
        devices: whether device nodes can be opened.
        programs: whether programs can be run.
        record: whether only what readers want is read, so that their trace is precise.
        starts: command, entrypoint, env and working_dir as of container.process.Wishes, if a process of the
            image is about to start over it.
    """

    image: str
    mount_point: str
    driver: str
    runtime_dir: str
    log_file: str = ""
    setuid: bool = False
    devices: bool = False
    programs: bool = True
    record: bool = False
    starts: Mapping[str, Any] | None = None


async def run_mount(
    order: MountOrder, name: ImageName, config: Config, report: Report, progress: Progress
) -> None:
    """Mount the image `name` and answer until it is unmounted.

    Raises:
        IndexerError: something of the image is damaged.
        LazyfsError: something cannot be had, or not mounted.
    """
    # Before anything is pulled; again when it is mounted.
    await trio.to_thread.run_sync(check_mount_point, Path(order.mount_point))
    states = MountStates(Path(order.runtime_dir))
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(open_tasks())
        workshop = await stack.enter_async_context(open_workshop(name, config, progress))
        image = await stack.enter_async_context(opened(workshop, mounted=True, record=order.record))
        if order.starts is not None:
            _tell_if_foreign(image)
        options = await mount_options(order, image)
        precise = options.read_ahead_kb < DEFAULT_READ_AHEAD_KB
        manifest = image.resolved.descriptor.digest
        program = next(iter(order.starts["command"]), "") if order.starts is not None else ""
        await stack.enter_async_context(warmed(manifest, image.by_names, workshop.cache, image.metadata_file))
        tracer = await stack.enter_async_context(
            recorded(image.resolved, image.by_names, workshop.cache, precise=precise, program=program)
        )
        if order.starts is not None:
            nursery.start_soon(_foresee, order.starts, image)
        tree = Tree(image.metadata, image.metadata_file, image.layers)
        serve = partial(serve_tree, tree, Path(order.mount_point), options, config.read_timeout_s)
        state = states.path(Path(order.mount_point))
        # One at a time at one place, so that a second sees what the first has mounted.
        async with named_lock(state.parent, f"{state.name}.lock"):
            served = await nursery.start(serve_until_gone, nursery, partial(serve, driver_of(order)))
            facts = MountFacts(
                mount_point=os.fsdecode(served.mount.mount_point),
                image=image.resolved.name,
                digest=manifest,
                driver=served.driver,
                pid=os.getpid(),
                log=order.log_file,
            )
            listener = stack.enter_context(states.registered(facts))
        auditor = Auditor(cases_of(image), workshop.cache)
        told = partial(answers, facts=facts, workshop=workshop, image=image, auditor=auditor, tracer=tracer)
        nursery.start_soon(answer_questions, listener, told)
        nursery.start_soon(_sync_now_and_then, image)
        if precise and not order.record:
            nursery.start_soon(_read_ahead_when_much_is_read, image, options)
        nursery.start_soon(auditor.run)
        nursery.start_soon(keep_room, workshop.cache)
        if config.metrics:
            await nursery.start(_tell_metrics, config.metrics, workshop, image)
        report({"ready": asdict(facts), "why": served.why, "process": image.resolved.config.process_facts()})
        await trio.sleep_forever()


async def _foresee(starts: Mapping[str, Any], image: Image) -> None:
    """Bring what the process that is about to start needs, unless a boot pack does."""
    if image.boot is not None and await image.boot.find() is None:
        await foresee(_process_of(starts, image), image.metadata, image.layers)


def _process_of(starts: Mapping[str, Any], image: Image) -> Process:
    from lazyfs.container.process import (  # noqa: PLC0415  # mounts alone need none of it
        ImageProcess,
        Wishes,
        arguments_of,
        working_dir_of,
    )

    wishes = Wishes(
        command=tuple(starts["command"]),
        entrypoint=None if starts["entrypoint"] is None else tuple(starts["entrypoint"]),
        working_dir=starts["working_dir"],
    )
    told = ImageProcess.from_json(image.resolved.config.process_facts())
    try:
        words, directory = arguments_of(told, wishes), working_dir_of(told, wishes)
    except ContainerError:  # as `lazyfs run` will say
        words, directory = (), "/"
    return Process(words, (*told.env, *starts["env"]), directory)


async def serve_until_gone(
    nursery: trio.Nursery,
    serve: Callable[..., Awaitable[None]],
    *,
    task_status: trio.TaskStatus[Served],
) -> None:
    """Serve the mount; when it is gone, end everything in `nursery`."""
    await serve(task_status=task_status)
    nursery.cancel_scope.cancel()


def _tell_if_foreign(image: Image) -> None:
    """Say so where programs of the image are unlikely to run; the kernel may know an emulator for them."""
    here, there = host_platform(), image.resolved.config.platform
    if there.architecture and rank(here, there) is None:
        _log.warning("the image is for %s: its programs may not run here, on %s", there, here)


def driver_of(order: MountOrder) -> Literal["auto", "erofs", "fuse"]:
    """The driver that was ordered."""
    for driver in ("auto", "erofs", "fuse"):
        if order.driver == driver:
            return driver
    raise ConfigError(f"no driver {order.driver!r}; there are auto, erofs and fuse")


async def mount_options(order: MountOrder, image: Image) -> MountOptions:
    """How to mount what was ordered."""
    packed = await starts_by_pack(image.boot, image.by_names.values())
    read_ahead_kb = START_READ_AHEAD_KB if order.record or packed else DEFAULT_READ_AHEAD_KB
    return MountOptions(
        order.image,
        setuid=order.setuid,
        devices=order.devices,
        programs=order.programs,
        read_ahead_kb=read_ahead_kb,
        knob=ReadAheadKnob(),
    )


async def _read_ahead_when_much_is_read(image: Image, options: MountOptions) -> None:
    """Whoever reads so much is no start any more: the rest comes anyway."""
    await wait_much_read(image.by_names.values())
    if options.knob is not None:
        options.knob.turn(DEFAULT_READ_AHEAD_KB)


async def answers(
    ask: str, facts: MountFacts, workshop: Workshop, image: Image, auditor: Auditor, tracer: Tracer
) -> dict[str, Any]:
    """The answer to a question about a live mount."""
    if ask == "trace":
        return await trio.to_thread.run_sync(lambda: tracer.trace().as_json())
    if ask == "explain":
        return {**asdict(facts), **explanation(image), "cache_dir": str(workshop.cache.root)}
    if ask != "stats":
        raise ValueError(ask)
    return {**asdict(facts), **statistics(workshop, image), "audit": asdict(auditor.statistics())}


def statistics(workshop: Workshop, image: Image) -> dict[str, Any]:
    """What an open image has cost and given so far."""
    source = workshop.statistics()
    return {
        "requests": source.control_requests + source.data_requests,
        "bytes": source.control_bytes + source.data_bytes,
        "source": asdict(source),
        "reads": sum_of(map(reads_of, image.by_names.values()))._asdict(),
        "boot": asdict(image.boot.statistics()) if image.boot else None,
        "traffic": traffic_facts(image.traffic),
        "waits": waits_facts(image.traffic),
        "indexes": Counter(index.kind.value for index in image.indexed),
        "image_bytes": sum(layer.descriptor.size for layer in image.resolved.layers),
    }


async def _tell_metrics(
    address: str, workshop: Workshop, image: Image, *, task_status: trio.TaskStatus[int]
) -> None:
    from lazyfs.metrics import serve_mount_metrics  # noqa: PLC0415  # seldom wanted

    def facts() -> dict[str, Any]:
        return {**statistics(workshop, image), "mounts": 1}

    await serve_mount_metrics(address, facts, workshop.cache, task_status=task_status)


async def run_until_signal(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`; the first SIGTERM, SIGINT or SIGHUP cancels it.

    More of them, then and later, do nothing: the mount's end must not be disturbed. (A receiver of trio would
    deliver them again when it is closed.)
    """
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()

        def end(*_: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel, idempotent=True)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        await work()


async def _sync_now_and_then(image: Image) -> None:
    """Power cuts lose at most the last half minute of what was fetched."""
    while True:
        await trio.sleep(_SYNC_EVERY_S)
        for layer in image.layers:
            await trio.to_thread.run_sync(layer.sync)


class _LineHandler(logging.Handler):
    """Hands warnings to whoever waits for `ready`."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report({"warning": record.getMessage()})


class _Pipe:
    """Stdout as a pipe of JSON lines, as long as somebody reads it."""

    def __init__(self) -> None:
        self._descriptor: int | None = os.dup(1)

    def report(self, event: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(event).encode() + b"\n")
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGTERM)  # nobody waits for the mount any more

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def main() -> int:
    """Carry out the order on stdin; the exit code is that of the error, if any."""
    told = json.load(sys.stdin)
    order = MountOrder(**told["order"])
    config = load_config({"HOME": "/"}, told["config"], Path(os.devnull))
    pipe = _Pipe()
    _redirect(order.log_file)
    handler = _LineHandler(pipe.report)
    start_log(config.log_level, also=handler if order.log_file else None)

    def report(event: Mapping[str, Any]) -> None:
        if "ready" in event:
            _part_from_caller()
        pipe.report(event)
        if "ready" in event:
            logging.getLogger().removeHandler(handler)
            pipe.close()

    def progress(digest: str, done: int, total: int) -> None:
        pipe.report({"progress": [digest, done, total]})

    try:
        name = anchored(parse_image(order.image))
        os.chdir("/")  # nobody's file system stays in use because a mount was begun there
        trio.run(run_until_signal, partial(run_mount, order, name, config, report, progress))
    except Exception as error:  # noqa: BLE001  # whoever waits for the mount is told
        code = exit_code(error)
        if code == BUG:
            _log.exception("a bug")
        pipe.report({"error": message_of(error), "code": code})
        return code
    finally:
        drop_empty_log(1, order.log_file)
    return 0


def _part_from_caller() -> None:
    """The terminal's signals come to the caller alone from now on, who tells us.

    Not before it is mounted: of an automount the kernel has everybody wait for that but the process group of
    who mounts (fs/autofs, `autofs_oz_mode`).
    """
    with suppress(PermissionError):  # it has been done
        os.setsid()


def _redirect(log_file: str) -> None:
    """Standard output goes to the log file or nowhere, standard error to the log file or stays.

    The log's lock says that somebody writes to it: those that fail to mount here, too, have it open.
    """
    target = os.open(log_file or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    os.dup2(target, 1)
    if log_file:
        fcntl.flock(target, fcntl.LOCK_SH)
        os.dup2(target, 2)
    os.close(target)


if __name__ == "__main__":
    sys.exit(main())
