"""Runs docs/walkthrough.py as the notebook docs/walkthrough.ipynb, if anything it depends on has changed.

    python docs/site/walkthrough.py

`page` converts the notebook to a page of the site, with the outputs of the cells.
"""

import hashlib
import json
import pathlib

DOCS = pathlib.Path(__file__).parents[1]
SOURCE, NOTEBOOK = DOCS / "walkthrough.py", DOCS / "walkthrough.ipynb"
WITHOUT = "```{note}\nWithout figures and results: `make walkthrough` computes them in a few minutes.\n```\n\n"


def inputs() -> str:
    """A hash of everything that the results depend on: the page and the package."""
    found = hashlib.sha256()
    package = DOCS.parent / "keras_resnet"
    for path in [SOURCE, DOCS / "ship.png", *sorted((*package.rglob("*.py"), *package.rglob("model.keras")))]:
        found.update(path.read_bytes())
    return found.hexdigest()


def finished() -> bool:
    """Whether the notebook was run with the current inputs."""
    return NOTEBOOK.is_file() and json.loads(NOTEBOOK.read_text("utf-8"))["metadata"].get("inputs") == inputs()


def main() -> None:
    import jupytext
    from nbclient import NotebookClient

    if finished():
        print(f"{NOTEBOOK.name} is up to date")
        return
    before, notebook = inputs(), jupytext.read(SOURCE)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    def progress(cell, cell_index):
        if cell in cells:
            print(f"cell {cells.index(cell) + 1} of {len(cells)}: {cell.source.splitlines()[0]}", flush=True)

    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=None, on_cell_execute=progress, resources={"metadata": {"path": DOCS}}).execute()
    notebook.metadata["inputs"] = before
    jupytext.write(notebook, NOTEBOOK)


def page(folder: pathlib.Path) -> str:
    """The page in Markdown, without outputs if it was not run; figures are written to `folder`."""
    import jupytext
    import nbformat
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    done = finished()
    notebook = nbformat.read(NOTEBOOK, 4) if done else jupytext.read(SOURCE)
    exporter = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor(enabled=True)])
    text, resources = exporter.from_notebook_node(notebook)
    for name, content in resources["outputs"].items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    title, _, rest = text.partition("\n\n")
    return f"{title}\n\n{'' if done else WITHOUT}{rest}"


if __name__ == "__main__":
    main()
