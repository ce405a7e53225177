"""The charts of a page, as tests look at them and work them."""

from urllib.parse import parse_qs, urlsplit

from selenium.webdriver import ActionChains


class Charts:
    """The charts of the page that is open."""

    def __init__(self, browser):
        self.browser = browser

    def of(self, name):
        return f'.chart[data-name="{name}"]'

    def state(self, name):
        return self.browser.attribute(self.of(name), "data-state")

    def drawn(self, name):
        """Waits until it is drawn; returns its columns: x, then those of each line."""
        self.browser.wait(lambda: self.state(name) == "drawn", what=f"a chart of {name}")
        return self.data(name)

    def data(self, name):
        return self.browser.run("return document.querySelector(arguments[0]).chart.data", self.of(name))

    def until(self, name, condition):
        """Waits until `condition` is true of the columns; returns them."""

        def now():
            data = self.data(name)
            return data if data and condition(data) else None

        return self.browser.wait(now, what=f"what is expected of {name}")

    def shown(self, name):
        """From and to of x."""
        script = "const {min, max} = document.querySelector(arguments[0]).chart.plot.uplot.scales.x; return [min, max]"
        return self.browser.run(script, self.of(name))

    def text(self, name, part):
        return self.browser.text(f"{self.of(name)} .chart-{part}")

    def choose(self, name, value):
        """Set a field of the toolbar as a hand does: by its own means, and with the event that it sends."""
        script = """
            const field = document.querySelector(".chart-choices").elements[arguments[0]];
            if (field.type === "checkbox") { if (field.checked !== arguments[1]) field.click(); return; }
            field.value = arguments[1];
            field.dispatchEvent(new Event("input", {bubbles: true}));
        """
        self.browser.run(script, name, value)

    def drag(self, name, start, end, key=None):
        """Drag from one part of the width to another."""
        over = self.browser.one(f"{self.of(name)} .u-over")
        width = over.size["width"]
        actions = ActionChains(self.browser.driver, duration=50)
        if key:
            actions.key_down(key)
        actions.move_to_element_with_offset(over, round((start - 0.5) * width), 0).click_and_hold()
        actions.move_by_offset(round((end - start) * width), 2).release()
        if key:
            actions.key_up(key)
        actions.perform()

    def asked(self, name=None):
        """The queries of the charts that were asked for."""
        found = [urlsplit(url) for url in self.browser.requested()]
        queries = [
            {key: values[0] for key, values in parse_qs(url.query).items()}
            for url in found
            if url.path.endswith("/chart")
        ]
        return [query for query in queries if name in {None, query["name"]}]

    def mark(self, name):
        """Remember the chart's canvas, and this page."""
        self.browser.run("window.marked = document.querySelector(arguments[0] + ' canvas')", self.of(name))

    def is_marked(self, name):
        """Whether it is still the same canvas, on the same page."""
        return self.browser.run(
            "return window.marked === document.querySelector(arguments[0] + ' canvas')", self.of(name)
        )
