"""The pages that people look at: plain HTML, nothing from a CDN."""
