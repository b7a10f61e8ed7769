"""Notebooks as pages: run while the site is built, in a folder of their own. The repository keeps no outputs."""

import os
import posixpath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jinja2 import DictLoader
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from traitlets.config import Config

TEMPLATE = """
{%- extends 'markdown/index.md.j2' -%}
{% block stream %}
``` { .text .output }
{{ output.text | trim }}
```
{% endblock stream %}
{% block data_png %}
![{{ cell.metadata.alt }}]({{ output.metadata.filenames['image/png'] }})
{% endblock data_png %}
"""
"""nbconvert's own, with outputs marked as such, and what a cell's picture shows in words: its metadata ``alt``."""

SOURCE = '<p><a href="{name}.ipynb" download>This page as a notebook</a>, as it was run for this site.</p>\n\n'
SECONDS = 300


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Called by mkdocs with all files: a notebook becomes a page, its pictures, and the notebook as it was run."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = executed(Path(file.abs_src_path))
        folder, _, name = file.src_uri.removesuffix(".ipynb").rpartition("/")
        page, pictures = as_page(notebook, name)
        files.remove(file)
        made = {f"{name}.ipynb": nbformat.writes(notebook), f"{name}.md": page, **pictures}
        for made_name, content in made.items():
            files.append(File.generated(config, posixpath.join(folder, made_name), content=content))
    return files


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells print and draw; a cell that fails is an error."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        # the kernel is reached through files of that folder, not through ports; its history is not the user's
        own = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
            config=own,
        )
        client.execute(env={**os.environ, "IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder})
    return notebook


def as_page(notebook: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """Markdown, and its pictures by file name."""
    exporter = MarkdownExporter(extra_loaders=[DictLoader({"page.md.j2": TEMPLATE})], template_file="page.md.j2")
    body, resources = exporter.from_notebook_node(notebook, resources={"unique_key": name})
    title, _, rest = body.lstrip().partition("\n\n")
    return f"{title}\n\n{SOURCE.format(name=name)}{rest}", resources["outputs"]
