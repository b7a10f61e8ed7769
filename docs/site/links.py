"""Links of pages as they stand in the repository, for the site: a notebook's leads to its page, what is not on the
site becomes plain text."""

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    here = posixpath.dirname(page.file.src_uri)
    root = Path(config["docs_dir"])

    def rewrite(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        where = posixpath.normpath(posixpath.join(here, target))
        if not where.startswith("..") and (root / where / "README.md").exists():
            return f"[{text}]({posixpath.relpath(posixpath.join(where, 'README.md'), here or '.')})"
        if target.endswith(".ipynb") and (root / where).is_file():
            return f"[{text}]({target.removesuffix('.ipynb')}.md{anchor or ''})"
        on_site = not where.startswith("..") and (root / where).is_file() and where.endswith((".md", ".png"))
        return f"[{text}]({target}{anchor or ''})" if on_site else text

    return LINK.sub(rewrite, markdown)
