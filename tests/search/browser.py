"""A real Chromium, headless, and a picture of the page taken with it.

python -m tests.search.browser ADDRESS QUERY OUT.png    of a server that runs, such as docs/figures/search_page.png
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Set to 1, Debian's Chromium is installed where there is none.
_MAY_INSTALL = "MASKVLM_INSTALL_CHROMIUM"


def chromium() -> str | None:
    """The path of a Chromium; None where there is none, and none may be or can be installed."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None and os.environ.get(_MAY_INSTALL) == "1" and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        subprocess.run(["apt-get", "install", "-qqy", "--no-install-recommends", "chromium"], check=False)
        found = shutil.which("chromium")
    return found


@contextlib.contextmanager
def browser() -> Iterator["Browser"]:
    """The browser, started; `chromium()` must be there."""
    from playwright.sync_api import sync_playwright  # not above: an own reason to skip where it is missing

    with sync_playwright() as library:
        # Its sandbox refuses to be started by root.
        started = library.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


def picture_of(page: "Page", address: str, query: str, path: str | os.PathLike) -> None:
    """Writes what the page shows for a query, with the words of its first hit."""
    page.goto(f"{address}/")
    page.get_by_role("searchbox", name="Search for").fill(query)
    page.locator("#above img").first.wait_for(timeout=60_000)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("w")
    page.locator("#above .words small").first.wait_for(timeout=60_000)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=path)


if __name__ == "__main__":
    with browser() as started:
        sheet = started.new_page(viewport={"width": 1120, "height": 760}, color_scheme="light")
        picture_of(sheet, sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3])
    Image.open(sys.argv[3]).convert("RGB").quantize(256, dither=0).save(sys.argv[3], optimize=True)
