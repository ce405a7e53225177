"""Gives an installed trainer the settings that tests start from: `set_up.py FOLDER`.

The trainer writes them itself, into FOLDER/config; `trainers.environment` copies that folder for each test.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

UPDATE = """
import sys
import matplotlib.font_manager  # writes its list of fonts
from ultralytics.utils import SETTINGS
places = {name: f"{sys.argv[1]}/{name}" for name in ("datasets_dir", "weights_dir", "runs_dir")}
SETTINGS.update(sync=False, **places)
"""


def main(folder: Path) -> None:
    if not (folder / "ultralytics").is_dir():
        return
    here, shared, config = Path(__file__).parent, folder.parent / "shared", folder / "config"
    # 8.0.217 looks into the folder that YOLO_CONFIG_DIR names, the newer ones into its folder Ultralytics; a font that
    # is missing would be downloaded, and any will do.
    for place in (config, config / "Ultralytics"):
        place.mkdir(parents=True)
        shutil.copy(shared / "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf", place / "Arial.ttf")
    path = os.pathsep.join(map(str, (here, folder, shared)))
    variables = {"PYTHONPATH": path, "YOLO_CONFIG_DIR": str(config), "YOLO_OFFLINE": "1", "MPLCONFIGDIR": str(config)}
    done = subprocess.run(
        [sys.executable, "-c", UPDATE, str(config)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
