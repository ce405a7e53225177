"""A Chromium for the tests of the pages: one for all of them, with nobody signed in at the start of each."""

import needs
import pytest


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Starting one takes a second or two."""
    needs.programs("chromium", "chromedriver")
    from browser import Browser

    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture
def browser(chromium):
    """As a new window: see `browser.Browser`."""
    chromium.reset()
    return chromium
