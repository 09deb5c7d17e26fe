"""Protocol buffer messages declared in one line each, without generated code.

The fields and numbers are those of the published interfaces; only what ROMA reads or writes is declared, and
what it does not know passes by unread. The messages live in a descriptor pool of their own, so that they never
meet TensorFlow's or a client's declarations of the same names in one process.

A declaration is ``field=number:type``, space by space. ``*type`` is repeated, ``type?`` has presence (a member
of a oneof), ``map<type>`` has string keys; any other type is a message declared beside it. Where the wire form
of a packed field *is* the array's memory (floats, doubles, truth values), writers declare it as ``bytes``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from airflow_mlscale import errors

Message = Any
"""An instance of a declared message; its fields are only known at run time."""

_FIELD = re.compile(r"(\w+)=(\d+):(\*?)(map<)?(\w+)(>?)(\??)")
_KINDS = descriptor_pb2.FieldDescriptorProto
_SCALARS: Mapping[str, int] = {
    name: getattr(_KINDS, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}


def declare(package: str, messages: Mapping[str, str]) -> dict[str, type[Message]]:
    """Message classes by name."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for field in fields.split():
            _add_field(described, package, field)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def parse(kind: type[Message], body: bytes) -> Message:
    """Read a message.

    Raises:
        InvalidInputError: it is not one.
    """
    try:
        return kind.FromString(body)
    except message.DecodeError as exc:
        name = kind.DESCRIPTOR.name
        raise errors.InvalidInputError("body", f"{len(body)} bytes", f"it is no {name} message") from exc


def _add_field(described: Any, package: str, declaration: str) -> None:
    match = _FIELD.fullmatch(declaration)
    if match is None:
        raise AssertionError(f"not a field: {declaration}")
    name, number, repeated, is_map, kind, _, optional = match.groups()
    field = described.field.add(name=name, number=int(number), label=_KINDS.LABEL_OPTIONAL)
    if is_map:
        entry = described.nested_type.add(name=_entry_name(name))
        entry.options.map_entry = True
        _set_kind(entry.field.add(name="key", number=1, label=_KINDS.LABEL_OPTIONAL), package, "string")
        _set_kind(entry.field.add(name="value", number=2, label=_KINDS.LABEL_OPTIONAL), package, kind)
        field.label, field.type = _KINDS.LABEL_REPEATED, _KINDS.TYPE_MESSAGE
        field.type_name = f".{package}.{described.name}.{entry.name}"
        return
    if repeated:
        field.label = _KINDS.LABEL_REPEATED
    if optional:
        field.proto3_optional = True
        field.oneof_index = len(described.oneof_decl)
        described.oneof_decl.add(name=f"_{name}")
    _set_kind(field, package, kind)


def _set_kind(field: Any, package: str, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _KINDS.TYPE_MESSAGE, f".{package}.{kind}"


def _entry_name(field: str) -> str:
    """As the compiler names the entries of a map field."""
    return "".join(part.capitalize() for part in field.split("_")) + "Entry"
