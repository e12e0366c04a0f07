"""Pages of the documentation that lie outside of docs/, where whoever reads the repository looks for them.

Their links are said from where they lie, and are turned into those between pages.
"""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Pages and pictures by what they are within docs/.
OUTSIDE = {
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "results/README.md": ROOT / "experiments" / "README.md",
    "results/SPEED.md": ROOT / "experiments" / "SPEED.md",
    **{f"results/figures/{path.name}": path for path in (ROOT / "experiments" / "figures").glob("*.png")},
}


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files, config):
    """Adds the files."""
    for uri, path in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):  # not generated files: the plugin takes none
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns `](../docs/page.md)` and `](docs/page.md)` into links from within docs/."""
    if page.file.src_uri not in OUTSIDE:
        return markdown
    # What belongs to a numbered item is indented by three spaces for GitHub, and by four here, where the next
    # item needs an empty line before it.
    markdown = re.sub(r"^   (?=\S)", "    ", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"^(?=\d\. )", "\n", markdown, flags=re.MULTILINE)
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
