"""Config file of another library ↔ fields of our config, by a table's settings.

No key of the file is passed over unless the table knows that it leaves the output alone.
"""

import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.fields import check_range, check_value
from aigc_jax.interop.mapping import IGNORED, REQUIRED, Fields, ModelTable, Setting


def read_setting(
    row: Setting, config: Mapping[str, Any], field: str, of: type[Any], where: str
) -> Any:
    """Returns the value of one of a row's fields.

    Args:
      row: of the table.
      config: content of the library's file.
      field: one of `row.aigc`.
      of: our config dataclass.
      where: the file, for messages.

    Raises:
      UserError: if the key is missing, or its value is not supported.
    """
    value = config.get(row.hf, row.default)
    if value is REQUIRED:
        raise UserError(f"{where} lacks {row.hf}")
    if value is None and row.null is not REQUIRED:
        return row.null
    if row.values:
        for hf, aigc in row.values:
            if type(hf) is type(value) and hf == value:
                return aigc
        known = ", ".join(dict.fromkeys(str(hf) for hf, _ in row.values))
        raise UserError(
            f"{where} sets {row.hf}={shorten(value, 60)}, but only {known} is supported"
        )
    if row.read is not None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise UserError(f"{where}: {row.hf} must be positive, but it is {shorten(value, 60)}")
        return row.read(value)
    return checked_value(field, value, of, where, row.hf)


def checked_value(field: str, value: Any, of: type[Any], where: str, key: str = "") -> Any:
    """Returns `value` in the type of the field.

    Args:
      field: of `of`.
      value: as the file has it.
      of: our config dataclass.
      where: the file, for messages.
      key: of the file, if it is not `field`.

    Raises:
      UserError: if it is of another type, out of range, or not finite.
    """
    name = f"{where}: {key or field}"
    value = check_value(typing.get_type_hints(of)[field], value, name)
    check_range(of.__dataclass_fields__[field], value, name)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be finite, but it is {value}")
    return value


def read_settings(table: ModelTable, config: Mapping[str, Any], where: str) -> Fields:
    """Returns the fields that are fixed and those that the settings read.

    Raises:
      UserError: if a key is missing, or its value is not supported.
    """
    fields = dict(table.aigc_fixed)
    for row in table.settings:
        for field in row.aigc:
            fields[field] = read_setting(row, config, field, table.config, where)
    return fields


def check_keys(
    table: ModelTable, config: Mapping[str, Any], where: str, read: Iterable[str] = ()
) -> None:
    """Refuses a config file with a key or value that may change the output.

    Args:
      table: of the model.
      config: content of the file.
      where: the file, for messages.
      read: keys that are read beside those of the table.

    Raises:
      UserError: for a key that is unknown and not null, or a fixed one with another value.
    """
    known = {row.hf for row in table.settings} | table.ignored | IGNORED | set(read)
    for key, value in config.items():
        if key in known:
            continue
        allowed = table.hf_fixed.get(key, table.no_op.get(key))
        if allowed is not None:
            if not any(_same(value, other) for other in allowed):
                raise UserError(
                    f"{where} sets {key}={shorten(value, 60)}, which is not supported for"
                    f" {table.hf}"
                )
        elif value is not None:
            raise UserError(
                f"{where} sets {shorten(key, 60)}={shorten(value, 60)}, which is unknown for"
                f" {table.hf} and may change its output: remove it if it does not"
            )


def _same(value: Any, other: Any) -> bool:
    """Equality that tells True from 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def check_limits(table: ModelTable, fields: Fields, where: str) -> None:
    """Refuses sizes that no model has.

    Raises:
      UserError: if one is above its limit; it names the field.
    """
    for name, most in table.limits.items():
        if name in fields and not 0 <= fields[name] <= most:
            raise UserError(f"{where} sets {name} to {fields[name]}: at most {most} is supported")


def make_config(table: ModelTable, fields: Fields, where: str) -> Any:
    """Returns our config with these fields.

    Raises:
      UserError: if they contradict one another.
    """
    try:
        return table.config(**fields)
    except UserError as e:
        raise UserError(f"{where} is inconsistent: {e}") from e


def write_setting(row: Setting, fields: Mapping[str, Any]) -> Any:
    """Returns the library's value of a row; `REQUIRED` if it has none."""
    value = fields[row.aigc[0]]
    if row.values:
        return next((hf for hf, aigc in row.values if aigc == value), REQUIRED)
    if row.write is not None:
        return row.write(value, fields)
    if row.null is not REQUIRED and value == row.null:
        return None
    return value


def write_settings(table: ModelTable, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the settings, and fixed keys whose value is not None."""
    config = {row.hf: write_setting(row, fields) for row in table.settings}
    for key, values in table.hf_fixed.items():
        if values[0] is not None:
            config[key] = values[0]
    return config


def incompatibilities(
    table: ModelTable,
    fields: Mapping[str, Any],
    *,
    wanted: Mapping[str, Any] | None = None,
    free: Iterable[str] = (),
) -> list[str]:
    """Lists what the library's class needs of a model and does not get, for "it needs …".

    Args:
      table: of the class.
      fields: of our config, and what `table.needs` looks at besides.
      wanted: fields with the values that they must have, beside `table.aigc_fixed`.
      free: fields among them that the class can have at other values.
    """
    found: list[str] = []
    free = {*free, *(field for row in table.settings for field in row.aigc)}
    for row in table.settings:
        values = [fields[name] for name in row.aigc]
        if len(set(values)) > 1:
            found.append(" and ".join(f"model.{name}" for name in row.aigc) + " to be the same")
        elif write_setting(row, fields) is REQUIRED:
            found.append(f"another model.{row.aigc[0]} than {values[0]}")
    fixed = {**(wanted or {}), **table.aigc_fixed}
    fixed = {name: value for name, value in fixed.items() if name not in free}
    fixed |= {name: of(fields) for name, of in table.derived.items()}
    for name, value in fixed.items():
        same = fields[name] == value
        if isinstance(value, float):
            same = math.isclose(fields[name], value, rel_tol=1e-6)
        if not same:
            found.append(f"model.{name}={value}, but it is {fields[name]}")
    return found + [need for need, holds in table.needs if not holds(fields)]
