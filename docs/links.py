"""Links of Markdown files that lie outside of docs/ and are pages all the same.

Such a page is a symbolic link. What it links to in docs/ is said from where the file itself lies, for whoever
reads it there.
"""

import re


def on_page_markdown(markdown, **_):
    """Turns `](../docs/page.md)` and `](docs/page.md)` into what they are from within docs/."""
    return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
