"""Screenshots for docs/screenshots, written only when `make screenshots` asks for them."""

import os
from pathlib import Path

from playwright.sync_api import Locator, Page

VARIABLE = "CRM_REPLAY_SCREENSHOTS"  # the directory they go to


def picture(page: Page, name: str, of: Locator | None = None, *, whole: bool = False) -> None:
    """Write the page as it is to be seen now, or a part of it, if pictures are wanted."""
    if not (directory := os.environ.get(VARIABLE)):
        return
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    target = place / f"{name}.png"
    page.evaluate("scrollTo(0, 0)")
    box = of.bounding_box() if of is not None else None  # cut out of the whole page: the head of the page sticks
    page.screenshot(path=target, full_page=whole or box is not None, clip=box, animations="disabled")
