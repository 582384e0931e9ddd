"""verify."""

from typing import Any

import click

from lazyfs.assembly import Workshop
from lazyfs.cli.completing import complete_image
from lazyfs.cli.options import configured
from lazyfs.cli.output import print_json, write_line
from lazyfs.cli.progress import PullBar
from lazyfs.cli.running import with_workshop
from lazyfs.config import Config
from lazyfs.exit_codes import BAD_DATA
from lazyfs.image.auditing.verifying import LayerReport, verify_image


@click.command()
@configured
@click.argument("image", shell_complete=complete_image)
@click.option("--pull", is_flag=True, help="Pull layers also where the cache holds all of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(config: Config, image: str, pull: bool, as_json: bool) -> int:
    """Audit IMAGE: compare the indexes that a mount would use with the layers, to the last byte.

    Layers that are not wholly in the cache are pulled. An index that lies is not used again. Exit code 65 if
    something was wrong. To check what the cache holds against the indexes: lazyfs cache verify.
    """

    async def work(workshop: Workshop) -> list[LayerReport]:
        resolved = await workshop.resolve()
        with PullBar("verifying") as bar:
            return await verify_image(
                resolved,
                workshop.source,
                workshop.indexer,
                workshop.cache,
                workshop.finders,
                bar,
                pull=pull,
            )

    reports = with_workshop(config, image, work)
    if as_json:
        print_json([_facts(report) for report in reports])
    else:
        for report in reports:
            _print(report)
    return 0 if all(report.passed for report in reports) else BAD_DATA


def _facts(report: LayerReport) -> dict[str, Any]:
    return {
        "digest": report.digest,
        "toc_digest": report.toc_digest,
        "origin": report.origin.value,
        "bytes_from": report.verdict.bytes_from.value,
        "passed": report.passed,
        "lies": list(report.verdict.audit.lies),
        "damaged_spans": list(report.verdict.audit.wrong_spans),
    }


def _print(report: LayerReport) -> None:
    audit = report.verdict.audit
    word = "true" if report.passed else "LIES" if audit.lies else "DAMAGED"
    write_line(f"{report.digest}  {report.toc_digest}  {report.origin.value}, {word}")
    for lie in audit.lies:
        write_line(f"  {lie}")
    if audit.wrong_spans:
        write_line(
            f"  {len(audit.wrong_spans)} spans in the cache; mend them with: lazyfs cache verify --repair"
        )
