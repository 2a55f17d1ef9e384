"""A headless Chromium on a page of ours; tests that need it skip where there is none."""

import json
import shutil
import time
from contextlib import contextmanager

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 300
"""Seconds to wait for a page, on a machine that is busy."""


@contextmanager
def chromium(profile):
    """Start a browser with a new profile, which keeps what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.page_load_strategy = "none"  # a busy machine takes long: `show` waits itself
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.set_script_timeout(100)  # below the client's own limit
    try:
        yield opened
    finally:
        opened.quit()


def show(browser, path, *, scheme="light", width=1_200):
    """Open a page in light or dark mode, and wait until all of its figures are drawn."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_script("window.is_left = true")
    browser.get(path.as_uri())
    until(browser, "return !window.is_left && all_drawn()", prelude=ALL_DRAWN)


ALL_DRAWN = """
function all_drawn() {
  const plots = [...document.querySelectorAll(".plot")].filter((plot) => !plot.closest("[hidden]"));
  return plots.length > 0 && plots.every((plot) => plot.dataset.drawn);
}
"""


def select(element):
    """Return a list of choices, to choose from by words."""
    from selenium.webdriver.support.select import Select

    return Select(element)


def until(browser, script, prelude=""):
    """Wait until a script's value is true, and return it."""
    end = time.monotonic() + PATIENCE
    while not (value := browser.execute_script(prelude + script)):
        assert time.monotonic() < end, f"waited for {script}"
        time.sleep(0.1)
    return value


def requests_of(browser):
    """Return the addresses that the browser asked the network for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [message["params"]["request"]["url"] for message in sent]
