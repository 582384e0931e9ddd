"""Protobuf messages from a table of their fields, built when they are first needed: no generated code."""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.message_factory import GetMessageClass

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,  # also for enumerations, which look the same on the wire
    "uint32": _Field.TYPE_UINT32,
    "int64": _Field.TYPE_INT64,
}
_WELL_KNOWN: Final = (empty_pb2, field_mask_pb2, timestamp_pb2)

Fields = Mapping[str, tuple[int, str]]
"""By a field's name, its number and type.

A type is the name of a scalar; of a message of the same table; of one elsewhere, in full; or "map", of
strings to strings. Before all but "map" may stand "repeated ".
"""


def message_classes(package: str, messages: Mapping[str, Fields]) -> dict[str, Any]:
    """The class of each message, by its name.

    Args:
        package: the messages' package.
        messages: the fields of each.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    pool = descriptor_pool.DescriptorPool()  # of our own: what others declare cannot be in the way
    for known in _WELL_KNOWN:
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        file.dependency.append(known.DESCRIPTOR.name)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add(message, package, field, number, kind)
    pool.AddSerializedFile(file.SerializeToString())
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _add(message: descriptor_pb2.DescriptorProto, package: str, field: str, number: int, kind: str) -> None:
    element = kind.removeprefix("repeated ")
    label = _Field.LABEL_OPTIONAL if element == kind else _Field.LABEL_REPEATED
    if kind == "map":
        element, label = _map_entry(message, package, field), _Field.LABEL_REPEATED
    added = message.field.add(name=field, number=number, label=label)
    if element in _SCALARS:
        added.type = _SCALARS[element]
    else:
        added.type = _Field.TYPE_MESSAGE
        added.type_name = f".{element}" if "." in element else f".{package}.{element}"


def _map_entry(message: descriptor_pb2.DescriptorProto, package: str, field: str) -> str:
    """Declare a map's entries as a map on the wire has them (Protocol Buffers, "Maps"); their full name."""
    name = field.title().replace("_", "") + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, part in enumerate(("key", "value"), start=1):
        entry.field.add(name=part, number=number, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    return f"{package}.{message.name}.{name}"
