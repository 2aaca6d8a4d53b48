"""The tutorial's script as a page of the site."""

import jupytext
from mkdocs.structure.files import File


def on_files(files, config):
    """Puts tutorial.md, made of tutorial.py, in the place of the script."""
    script = files.get_file_from_path("tutorial.py")
    files.remove(script)
    notebook = jupytext.reads(script.content_string, fmt="py:percent")
    notebook.metadata.clear()  # else it stands at the top of the page
    page = jupytext.writes(notebook, fmt="md").split("---\n", 2)[-1]
    files.append(File.generated(config, "tutorial.md", content=page))
    return files
