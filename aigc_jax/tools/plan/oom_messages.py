"""What compilers say when a program needs more memory than a device has, as numbers."""

import re

# libtpu, in its two forms, and XLA's other compilers.
FORMS = (
    r"[Uu]sed (?P<used>[\d.]+)(?P<unit>[KMGT]?) of (?P<have>[\d.]+)(?P<have_unit>[KMGT]?) hbm",
    r"required for HLO temporaries \((?P<temporaries>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available"
    r" HBM \((?P<have>[\d.]+)(?P<have_unit>[KMGT]?)\)",
    r"required[^()]*\((?P<used>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM"
    r" \((?P<have>[\d.]+)(?P<have_unit>[KMGT]?)\)",
    r"allocate (?P<used>\d+)(?P<unit>) bytes",
)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIGNS = ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory", "Out of memory")


def parse_oom_message(message: str, arguments: float, memory: float) -> tuple[float, float] | None:
    """Bytes that a program needs, at least, and has; none if the message is of something else.

    Args:
      message: of the exception that compiling raised.
      arguments: bytes of its arguments on a device, which some messages leave out.
      memory: of a device, if the message does not tell.
    """
    if not any(sign in message for sign in SIGNS):
        return None
    for form in FORMS:
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
