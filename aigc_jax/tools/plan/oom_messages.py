"""Parser of compilers' out-of-memory messages."""

import re

# Of libtpu (the first three) and of XLA's other compilers.
PATTERNS = (
    r"[Uu]sed (?P<used>[\d.]+)(?P<unit>[KMGT]?) of (?P<have>[\d.]+)(?P<have_unit>[KMGT]?) hbm",
    r"required for HLO temporaries \((?P<temporaries>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available"
    r" HBM \((?P<have>[\d.]+)(?P<have_unit>[KMGT]?)\)",
    r"required[^()]*\((?P<used>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM"
    r" \((?P<have>[\d.]+)(?P<have_unit>[KMGT]?)\)",
    r"allocate (?P<used>\d+)(?P<unit>) bytes",
)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MARKERS = ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory", "Out of memory")


def parse_oom_message(message: str, arguments: float, memory: float) -> tuple[float, float] | None:
    """Parses an out-of-memory message into (required, available) bytes.

    Args:
      message: of the exception that the compiler raised.
      arguments: bytes of the program's arguments on a device, which some messages do not count.
      memory: bytes of a device, for messages without this number.

    Returns:
      The bytes, `required` being a lower bound; None if the message is of another error.
    """
    if not any(sign in message for sign in MARKERS):
        return None
    for form in PATTERNS:
        found = re.search(form, message)
        if not found:
            continue
        parts = found.groupdict()
        have = memory
        if "have" in parts:
            have = float(parts["have"]) * UNITS[parts["have_unit"]]
        unit = UNITS[parts["unit"]]
        if "temporaries" in parts:
            return float(parts["temporaries"]) * unit + arguments, have
        used = float(parts["used"]) * unit
        return used if used > have else used + arguments, have
    return max(arguments, memory), memory
