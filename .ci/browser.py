"""Install what the tests of the report in a browser need: Playwright into this environment, Chromium from Debian's packages.

What cannot be installed is said and left out: those tests then skip with the reason. It never fails.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

PLAYWRIGHT = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "playwright"]
INSTALL = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium", "fonts-dejavu-core"]


def tried(command: list[str], seconds: int | None = 30) -> bool:
    """Whether ``command`` ended well in time."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{' '.join(command[:2])}: {error}")
        return False
    if done.returncode:
        print(f"{' '.join(command[:2])}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.returncode == 0


def chromium() -> bool:
    """Whether Chromium is there, or could be installed. Only what can be stopped without harm has a limit of time."""
    if os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome"):
        return True
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return False
    fetch = [*INSTALL, "--download-only"]
    fetched = tried(fetch) or (tried(["apt-get", "update", "-q"], 15) and tried(fetch))
    return fetched and tried([*INSTALL, "--no-download"], None)


def main() -> None:
    if importlib.util.find_spec("playwright") is None and not tried(PLAYWRIGHT):
        print("no Playwright: tests of the report in a browser are skipped")
        return
    if not chromium():
        print("no Chromium, which apt-get installs for root: tests of the report in a browser are skipped")


if __name__ == "__main__":
    main()
