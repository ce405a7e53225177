"""What is set, from where, and what is wrong with it: every wrong setting, not just the first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddphub.config import VARIABLES, Credentials, Settings, service_variable
from ddphub.doctor.finding import Finding
from ddphub.errors import SettingsError


@dataclass
class Sources:
    """The settings of a run that would start here, without what is wrong with them.

    Attributes:
        settings: None when even the rest does not fit together.
        is_offline: whether the settings keep a run from the hub.
        usable_dir: whether the directory was made, and a file in it.
        findings: what is wrong.
        hub: where the hub was found.
        key: where its key was found; None when there is none.
        dir: where the directory was found.
    """

    settings: Settings | None = None
    is_offline: bool = False
    usable_dir: bool = True
    findings: list[Finding] = field(default_factory=list)
    hub: str = ""
    key: str | None = None
    dir: str = "default"


def find_settings(directory: Path | None, environ: Mapping[str, str], *, touch: bool = True) -> Sources:
    """Resolves the settings as `init` does, and goes on without those that are wrong. Any rank.

    Args:
        directory: overrides the variable.
        environ: the environment.
        touch: whether to make the directory.
    """
    found = Sources(usable_dir=touch)
    left = dict(environ)
    for variable in sorted(environ):
        if variable.startswith("DDPHUB_") and variable not in VARIABLES.values():
            known = ", ".join(VARIABLES.values())
            found.findings.append(
                Finding("settings", "warning", f"{variable} is no variable of ddphub", f"use {known}")
            )
            del left[variable]
    if left.get(VARIABLES["mode"]) == "disabled":
        text = f"{VARIABLES['mode']} is disabled: a run reports nothing"
        found.findings.append(Finding("settings", "warning", text, f"unset {VARIABLES['mode']}"))
        del left[VARIABLES["mode"]]
    given: dict[str, object] = {"project": "doctor", "name": "doctor", "dir": directory}
    given["mode"] = None if touch else "disabled"
    # Each turn removes what was wrong, so it ends.
    while found.settings is None:
        try:
            found.settings = Settings.resolve(given, left)
        except SettingsError as error:
            if error.field == "dir" and given["mode"] is None:
                advice = f"name a folder that can be written: ddphub doctor DIR, or {VARIABLES['dir']}"
                found.findings.append(Finding("directory", "problem", str(error), advice))
                given["mode"] = "disabled"  # which needs no directory
                found.usable_dir = False
                continue
            suspects = [error.source, VARIABLES.get(error.field, ""), VARIABLES["mode"]]
            wrong = next((name for name in suspects if name in left), None)
            found.findings.append(Finding("settings", "problem", str(error), f"correct {wrong or error.field}"))
            if wrong is None:
                return found
            del left[wrong]
    found.is_offline = left.get(VARIABLES["mode"]) == "offline"
    _name_sources(found, found.settings, directory, left)
    return found


def _name_sources(found: Sources, settings: Settings, directory: Path | None, environ: Mapping[str, str]) -> None:
    """A resolved setting does not say where it came from, so this looks where `Settings.resolve` did."""
    file = str(Credentials.load(environ).path)
    found.hub = VARIABLES["hub"] if environ.get(VARIABLES["hub"]) else file
    if settings.api_key is not None:
        names = (service_variable(settings.hub), VARIABLES["api_key"])
        found.key = next((name for name in names if name and environ.get(name)), file)
    if directory is not None:
        found.dir = "argument"
    elif environ.get(VARIABLES["dir"]):
        found.dir = VARIABLES["dir"]
