"""Runs the notebooks from top to bottom and writes their outputs into them: `make notebooks`, or

    python notebooks/execute.py notebooks/01_lif_neurons.ipynb

for one. What would differ from run to run, such as the times of the cells, is not written, so that a diff of
a notebook shows what changed in it.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image
from traitlets.config import Config

# The outputs are those of a CPU: with an accelerator the memory of a program would be another.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook of a file with the outputs of a run, in a kernel of its own and in its own folder.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell fails.
      nbclient.exceptions.CellTimeoutError: a cell takes longer than ten minutes.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(path.parent)}},
            # Sockets in the file system are no one else's business, unlike the ports of a machine.
            config=Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"}),
        )
        client.execute(env={**os.environ, **ENVIRONMENT})
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def smaller(png: str) -> str:
    """The same picture in 64 colours, which are enough for lines and text, in a quarter of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    here = Path(__file__).parent
    for path in [Path(p) for p in sys.argv[1:]] or sorted(here.glob("*.ipynb")):
        print(path, flush=True)
        nbformat.write(execute(path), path)
