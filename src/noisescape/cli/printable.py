"""Names and messages from files, so that they are but read."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""Text whose control characters are spelt out: a name in a file is not to move the cursor, or to break a line.

    >>> printable("a\x1b[2Jb\nc")
    'a\\x1b[2Jb\\nc'
    """
    return "".join(repr(each)[1:-1] if unicodedata.category(each) == "Cc" else each for each in text)
