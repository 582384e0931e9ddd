"""Bills of materials in SPDX 2.3 (ISO/IEC 5962), as JSON."""

import io
import re
from datetime import UTC
from typing import Final

from spdx_tools.spdx.model.actor import Actor, ActorType
from spdx_tools.spdx.model.document import CreationInfo, Document
from spdx_tools.spdx.model.package import ExternalPackageRef, ExternalPackageRefCategory, PackagePurpose
from spdx_tools.spdx.model.package import Package as SpdxPackage
from spdx_tools.spdx.model.relationship import Relationship, RelationshipType
from spdx_tools.spdx.model.spdx_no_assertion import SpdxNoAssertion
from spdx_tools.spdx.writer.json.json_writer import write_document_to_stream

from lazyfs.image.inside.packages.bill import Bill, shown_place, shown_source
from lazyfs.image.inside.packages.licences import parse_expression
from lazyfs.image.inside.packages.package import Distribution, Package

_DOCUMENT: Final = "SPDXRef-DOCUMENT"
_IMAGE: Final = "SPDXRef-Image"
_SYSTEM: Final = "SPDXRef-OperatingSystem"
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9.-]+")  # SPDX 2.3, 7.2


def write_spdx(bill: Bill) -> str:
    """The bill as one JSON document: the image, and the system and packages it contains."""
    program = "-".join(bill.program)
    document = Document(
        CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id=_DOCUMENT,
            name=bill.image,
            document_namespace=f"https://spdx.org/spdxdocs/lazyfs-{bill.serial}",
            creators=[Actor(ActorType.TOOL, program)],
            created=bill.made_at.astimezone(UTC).replace(tzinfo=None, microsecond=0),
        )
    )
    image = SpdxPackage(
        _IMAGE,
        bill.image,
        SpdxNoAssertion(),
        version=bill.digest,
        files_analyzed=False,
        primary_package_purpose=PackagePurpose.CONTAINER,
    )
    document.packages = [image]
    document.relationships = [Relationship(_DOCUMENT, RelationshipType.DESCRIBES, _IMAGE)]
    distribution = bill.inventory.distribution
    contained = [_system(distribution)] if distribution.id else []
    for number, package in enumerate(bill.inventory.packages, 1):
        contained.append(_package(package, number, distribution))
    document.packages += contained
    document.relationships += [
        Relationship(_IMAGE, RelationshipType.CONTAINS, it.spdx_id) for it in contained
    ]
    out = io.StringIO()
    write_document_to_stream(document, out, validate=False)
    return out.getvalue()


def _system(distribution: Distribution) -> SpdxPackage:
    return SpdxPackage(
        _SYSTEM,
        distribution.id,
        SpdxNoAssertion(),
        version=distribution.version or None,
        files_analyzed=False,
        summary=distribution.name or None,
        primary_package_purpose=PackagePurpose.OPERATING_SYSTEM,
    )


def _package(package: Package, number: int, distribution: Distribution) -> SpdxPackage:
    purl = package.purl(distribution).to_string()
    licence = parse_expression(package.licence)
    source = shown_source(package)
    return SpdxPackage(
        f"SPDXRef-{package.kind}-{number}-{_NOT_IN_IDS.sub('-', package.name)}",
        package.name,
        SpdxNoAssertion(),
        version=package.version,
        files_analyzed=False,
        source_info=f"found in {shown_place(package)}" + (f", built from {source}" if source else ""),
        license_declared=SpdxNoAssertion() if licence is None else licence,
        license_comment=f"as written: {package.licence}" if package.licence and licence is None else None,
        external_references=[
            ExternalPackageRef(ExternalPackageRefCategory.PACKAGE_MANAGER, "purl", purl),
        ],
    )
