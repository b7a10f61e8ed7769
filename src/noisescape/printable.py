"""Names, paths and messages from elsewhere, so that they are but read."""

from __future__ import annotations

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what moves the cursor, turns writing round, breaks a line, or has no encoding."""


def printable(text: object) -> str:
    r"""Text whose control characters are spelt out: a name in a file is not to steer a terminal or break a line.

    >>> printable("a\x1b[2Jb\nc")
    'a\\x1b[2Jb\\nc'
    """
    return "".join(ascii(each)[1:-1] if unicodedata.category(each) in STEERING else each for each in str(text))


def shortened(text: object, most: int = 60) -> str:
    """At most so many characters of it, printable, the middle left out.

    >>> shortened("runs/of/an/afternoon", 12)
    'runs/o…rnoon'
    """
    whole = printable(text)
    return whole if len(whole) <= most else f"{whole[: most // 2]}…{whole[len(whole) - most // 2 + 1 :]}"
