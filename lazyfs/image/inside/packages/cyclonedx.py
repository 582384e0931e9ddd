"""Bills of materials in CycloneDX 1.6 (ECMA-424), as JSON."""

from collections import Counter

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.component_evidence import ComponentEvidence, Occurrence
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6

from lazyfs.image.inside.packages.bill import Bill, shown_place, shown_source
from lazyfs.image.inside.packages.licences import parse_expression
from lazyfs.image.inside.packages.package import Distribution, Package

_IMAGE_REF = "image"


def write_cyclonedx(bill: Bill) -> str:
    """The bill as one JSON document. Packages are libraries; where each was found is its evidence."""
    program, program_version = bill.program
    image = Component(type=ComponentType.CONTAINER, name=bill.image, version=bill.digest, bom_ref=_IMAGE_REF)
    tool = Component(type=ComponentType.APPLICATION, name=program, version=program_version, bom_ref=program)
    bom = Bom(
        serial_number=bill.serial,
        metadata=BomMetaData(
            timestamp=bill.made_at,
            component=image,
            tools=ToolRepository(components=[tool]),
        ),
    )
    distribution = bill.inventory.distribution
    times: Counter[str] = Counter()
    components = [_component(package, distribution, times) for package in bill.inventory.packages]
    if distribution.id:
        components.append(_system(distribution))
    bom.components.update(components)
    bom.register_dependency(image, components)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _system(distribution: Distribution) -> Component:
    return Component(
        type=ComponentType.OPERATING_SYSTEM,
        name=distribution.id,
        version=distribution.version or None,
        description=distribution.name or None,
        bom_ref="distribution",
    )


def _component(package: Package, distribution: Distribution, times: Counter[str]) -> Component:
    purl = package.purl(distribution)
    reference = purl.to_string()
    times[reference] += 1
    again = f"#{times[reference]}" if times[reference] > 1 else ""
    source = shown_source(package)
    return Component(
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=reference + again,
        licenses=_licences(package),
        properties=[Property(name="lazyfs:source", value=source)] if source else (),
        evidence=ComponentEvidence(occurrences=[Occurrence(location=shown_place(package))]),
    )


def _licences(package: Package) -> list[LicenseExpression | DisjunctiveLicense]:
    if not package.licence:
        return []
    expression = parse_expression(package.licence)
    return (
        [DisjunctiveLicense(name=package.licence)]
        if expression is None
        else [LicenseExpression(str(expression))]
    )
