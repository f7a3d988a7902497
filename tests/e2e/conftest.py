from tests.browser.driver import browser, one_browser, start_browser

__all__ = ["browser", "one_browser", "start_browser"]
