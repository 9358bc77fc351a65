"""Take pictures of the built site in headless Chromium, light and dark, to look at.

`make docs-pictures` writes build/pictures/PAGE-light.png and PAGE-dark.png. It needs
Chromium or Chrome, and nothing from the network.
"""

import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build"
PAGES = {
    "overview": "",
    "tutorial": "docs/tutorial/",
    "autoswitch": "docs/autoswitch/",
    "promises": "docs/promises/",
    "choosing": "docs/choosing/",
    "config": "docs/config/",
    "serving": "docs/serving/",
    "evidence": "docs/evidence/",
}
# Chromium's numbers of the colours that a reader prefers.
SCHEMES = {"light": 1, "dark": 0}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def take(
    browser: str,
    address: str,
    scheme: str,
    file: Path,
    profile: str,
    size: tuple[int, int] = (1500, 1800),
) -> None:
    """Write one picture, of this many pixels across and down."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={size[0]},{size[1]}",
        "--virtual-time-budget=4000",  # milliseconds for scripts to settle
        f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--screenshot={file}",
    ]
    subprocess.run([browser, *options, address], check=True, capture_output=True)


def main() -> int:
    """Take all pictures; 6 where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"error: no browser: install one of {', '.join(BROWSERS)}")
        return 6
    pictures = BUILD / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Quiet, directory=str(BUILD / "site"))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, path in PAGES.items():
            for scheme in SCHEMES:
                address = f"http://127.0.0.1:{server.server_address[1]}/{path}"
                file = pictures / f"{name}-{scheme}.png"
                take(browser, address, scheme, file, profile)
                print(file.relative_to(BUILD.parent))
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
