"""packages: what software an image says it holds."""

import os
from typing import Any

import click

from lazyfs import __version__
from lazyfs.api import AsyncImage
from lazyfs.cli.build_time import build_time
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import configured
from lazyfs.cli.output import complain, print_document, print_json, shown, write_table
from lazyfs.cli.running import with_image
from lazyfs.config import Config
from lazyfs.exit_codes import BAD_DATA
from lazyfs.image.inside.packages.bill import Bill, shown_source
from lazyfs.image.inside.packages.find import Inventory


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "cyclonedx", "spdx"]),
    default="table",
    show_default=True,
    help="CycloneDX 1.6 and SPDX 2.3 are bills of materials, in JSON.",
)
@click.option("--json", "as_json", is_flag=True, help="As --format json.")
def packages(config: Config, image: str, form: str, as_json: bool) -> int:
    """List the packages installed in IMAGE: of dpkg, apk and RPM, of Python and of npm.

    Only the databases that tell of them are fetched. Exit code 65 if one of them could not be used; what the
    others tell is printed all the same. SOURCE_DATE_EPOCH sets the time in bills of materials.
    """
    if as_json and form not in {"table", "json"}:
        raise click.UsageError(f"either --json or --format {form}, which is JSON, too")
    made_at = build_time(os.environ)

    async def work(opened: AsyncImage) -> Inventory:
        inventory = await opened.packages()
        bill = Bill(opened.name, opened.digest, inventory, made_at, ("lazyfs", __version__))
        _tell(bill, "json" if as_json else form)
        return inventory

    problems = with_image(config, image, work).problems
    for problem in problems:
        complain(f"/{shown(problem.path)}: {problem.message}")
    return BAD_DATA if problems else 0


def _tell(bill: Bill, form: str) -> None:
    match form:
        case "cyclonedx":
            from lazyfs.image.inside.packages.cyclonedx import write_cyclonedx  # noqa: PLC0415  # slow to load

            print_document(write_cyclonedx(bill))
        case "spdx":
            from lazyfs.image.inside.packages.spdx import write_spdx  # noqa: PLC0415  # slow to load

            print_document(write_spdx(bill))
        case "json":
            print_json(_facts(bill))
        case _:
            _table(bill)


def _facts(bill: Bill) -> dict[str, Any]:
    distribution = bill.inventory.distribution
    return {
        "image": bill.image,
        "digest": bill.digest,
        "distribution": {
            "id": distribution.id,
            "version": distribution.version,
            "name": distribution.name,
        },
        "packages": [
            {
                "type": package.kind,
                "name": package.name,
                "version": package.version,
                "architecture": package.architecture,
                "source": package.source,
                "source_version": package.source_version,
                "licence": package.licence,
                "module": package.module,
                "purl": package.purl(distribution).to_string(),
                "path": "/" + shown(package.where),
            }
            for package in bill.inventory.packages
        ],
        "problems": [
            {"path": "/" + shown(problem.path), "message": problem.message}
            for problem in bill.inventory.problems
        ],
    }


def _table(bill: Bill) -> None:
    rows = [["NAME", "VERSION", "ARCHITECTURE", "TYPE", "SOURCE"]]
    rows.extend(
        [package.name, package.version, package.architecture, package.kind, shown_source(package)]
        for package in bill.inventory.packages
    )
    write_table(rows, "lllll")
