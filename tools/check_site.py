"""Open the built site's pages in headless Chromium, as readers do: on a desk and a phone, light and dark.

    python tools/check_site.py [--install] [--pictures FOLDER] [--pages PATTERN] [SITE]

SITE is docs/_build/html unless given. A page fails if the console has an error, if it asks another host for
anything, if a picture does not load, if TeX is left in its text, if it is wider than a phone, or if one of
its links inside the site leads nowhere. `--pictures` writes what was seen. Needs selenium, and Debian's
chromium and chromium-driver, which `--install` has apt-get fetch.
"""

import argparse
import base64
import functools
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"wide": (1280, 900), "phone": (390, 844)}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
# What a reader sees once formulas are set: text without the code, and how wide the page is.
SEEN = r"""
const done = arguments[arguments.length - 1];
const look = () => {
  const copy = document.querySelector("main").cloneNode(true);
  copy.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
  done({
    text: copy.textContent,
    width: document.documentElement.scrollWidth,
    broken: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
    formulas: document.querySelectorAll("mjx-container").length,
    wanted: document.querySelectorAll(".math").length,
    failed: [...document.querySelectorAll("mjx-merror")].map(e => e.textContent),
  });
};
const ready = window.MathJax && MathJax.startup && MathJax.startup.promise;
(ready || Promise.resolve()).then(() => setTimeout(look, 50));
"""


class Links(HTMLParser):
    """Targets of a page's links, and the names that links may end in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        target = found.get("href" if tag in ("a", "link") else "src")
        if target and "headerlink" not in (found.get("class") or ""):
            self.targets.append(target)


def pages_of(site: Path) -> list[str]:
    """Addresses inside the site, without the themes' own templates."""
    found = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "_static")


def broken_links(site: Path) -> list[str]:
    """Links from page to page that lead nowhere."""
    pages = {page: Links((site / page).read_text()) for page in pages_of(site)}
    problems = []
    for page, links in pages.items():
        for target in links.targets:
            if urlsplit(target).scheme or target.startswith("//"):
                continue
            address, name = urldefrag(urljoin(page, target))
            address = unquote(urlsplit(address).path) or page
            if address in pages:
                if name and unquote(name) not in pages[address].names:
                    problems.append(f"{page}: {target} names nothing on {address}")
            elif not (site / address).exists():
                problems.append(f"{page}: {target} leads nowhere")
    return problems


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args: object) -> None:
        pass


class Browser:
    """Chromium, and what it reported of the pages it opened."""

    def __init__(self, folder: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.binary_location = shutil.which("chromium")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options, service)

    def open(self, address: str, size: tuple[int, int], theme: str) -> list[str]:
        """What is wrong with a page."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        for log in ("performance", "browser"):
            self.driver.get_log(log)  # forgets what came before
        self.driver.get(address)
        seen = self.driver.execute_async_script(SEEN)
        logged = self.driver.get_log("browser")
        problems = [f"console: {entry['message']}" for entry in logged if entry["level"] == "SEVERE"]
        here = urlsplit(address).netloc
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked = urlsplit(message["params"]["request"]["url"])
                if asked.scheme in ("http", "https", "ws", "wss") and asked.netloc != here:
                    problems.append(f"asks another host: {asked.geturl()}")
        problems += [f"picture does not load: {source}" for source in seen["broken"]]
        problems += [f"formula does not parse: {text}" for text in seen["failed"]]
        problems += [f"raw TeX: {mark}" for mark in (r"\(", r"\[", r"\frac", "$$") if mark in seen["text"]]
        if seen["formulas"] < seen["wanted"]:
            problems.append(f"{seen['wanted']} formulas, {seen['formulas']} of them set")
        if seen["width"] > width:
            problems.append(f"{seen['width']} pixels wide on a screen of {width}")
        return problems

    def picture(self, path: Path) -> None:
        """The whole page."""
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(taken["data"]))


def install_missing() -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        packages = ["chromium", "chromium-driver", "fonts-dejavu-core"]
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--install", action="store_true", help="apt-get Chromium where it is missing")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page")
    parser.add_argument("--pages", default="", help="only those whose address has this regular expression")
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "docs/_build/html")
    arguments = parser.parse_args()
    if arguments.install:
        install_missing()
    site = arguments.site
    pages = pages_of(site)
    pages = [page for page in pages if re.search(arguments.pages, page)]
    if not pages:
        parser.error(f"{site} has no such pages: build them with sphinx-build -W -b html docs {site}")

    passed = failed = 0
    for problem in broken_links(site):
        print(problem)
        failed += 1
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with TemporaryDirectory() as folder:
        browser = Browser(folder)
        try:
            for page in pages:
                for name, size in SIZES.items():
                    for theme in ("light", "dark"):
                        problems = browser.open(f"http://127.0.0.1:{server.server_port}/{page}", size, theme)
                        for problem in problems:
                            print(f"{page}, {name}, {theme}: {problem}", flush=True)
                        failed += bool(problems)
                        passed += not problems
                        if arguments.pictures:
                            arguments.pictures.mkdir(parents=True, exist_ok=True)
                            stem = page.removesuffix(".html").replace("/", "-")
                            browser.picture(arguments.pictures / f"{stem}-{name}-{theme}.png")
        finally:
            browser.driver.quit()
            server.shutdown()
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0 or not passed)


if __name__ == "__main__":
    sys.exit(main())
