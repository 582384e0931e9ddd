"""Opens the image, mounts it, and answers until it is unmounted."""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from msgspec.structs import asdict

from lazyfs.assembly import open_workshop, opened
from lazyfs.cache.keeping import keep_room
from lazyfs.cache.locks import named_lock
from lazyfs.config import Config
from lazyfs.control import answer_questions
from lazyfs.daemon.answers import answers, tell_metrics
from lazyfs.daemon.order import MountOrder, driver_of, mount_options
from lazyfs.errors import ContainerError
from lazyfs.image.auditing.auditor import Auditor, cases_of
from lazyfs.image.boot.foresight import Process, foresee
from lazyfs.image.boot.recording import recorded
from lazyfs.image.boot.warming import warmed
from lazyfs.image.image import Image
from lazyfs.image.indexes.indexing import Progress
from lazyfs.image.reading.completion import wait_much_read
from lazyfs.image.tasks import open_tasks
from lazyfs.mount.drivers import Served, serve_tree
from lazyfs.mount.erofs import Tree
from lazyfs.mount.fuse_mount import MountOptions, check_mount_point
from lazyfs.mount.tuning import DEFAULT_READ_AHEAD_KB
from lazyfs.mount_states import MountFacts, MountStates
from lazyfs.oci.image_name import ImageName
from lazyfs.oci.platform import host_platform, rank

_log = logging.getLogger(__name__)

_SYNC_EVERY_S: Final = 30.0

Report = Callable[[Mapping[str, Any]], None]


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
        options = await mount_options(order, image, by_pyfuse3=config.fuse_session == "pyfuse3")
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
            await nursery.start(tell_metrics, config.metrics, workshop, image)
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


async def _read_ahead_when_much_is_read(image: Image, options: MountOptions) -> None:
    """Whoever reads so much is no start any more: the rest comes anyway."""
    await wait_much_read(image.by_names.values())
    if options.knob is not None:
        options.knob.turn(DEFAULT_READ_AHEAD_KB)


async def _sync_now_and_then(image: Image) -> None:
    """Power cuts lose at most the last half minute of what was fetched."""
    while True:
        await trio.sleep(_SYNC_EVERY_S)
        for layer in image.layers:
            await trio.to_thread.run_sync(layer.sync)
