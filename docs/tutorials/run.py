"""Run the notebooks of this folder on the demo's model and keep what they show, small enough for the repository."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
N_COLOURS = 64  # of a kept picture; a notebook that is run shows it in full


def main() -> None:
    """Run every notebook, one after the other; the first error ends it."""
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": str(HERE)}}).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [_smaller(one) for one in cell.outputs if one.get("name") != "stderr"]  # progress bars, and advice of libraries
        notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}  # whatever Python ran it
        nbformat.write(notebook, path)


def _smaller(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same output with its picture in few colours."""
    if png := output.get("data", {}).get("image/png"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(N_COLOURS).save(buffer, format="png", optimize=True)
        output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    return output


if __name__ == "__main__":
    main()
