# @title Set-up
# Set-up. On Colab it fetches the project and installs what is missing there; elsewhere it only finds lib.
import subprocess
import sys
from pathlib import Path

REPO = ""  # the repository's address: `make colab` writes it here
DRIVE = False  # on Colab: True keeps what you train on your Google Drive


class Stop(Exception):
    def _render_traceback_(self):  # one line in place of a traceback
        return [f"Stopped: {self}"]


here = Path.cwd()
if "google.colab" in sys.modules:
    if not REPO:
        raise Stop("set REPO in this cell to the address of your copy on GitHub (`make colab` sets it everywhere)")
    here = here / "study" / "-".join(REPO.removesuffix(".git").split("/")[-2:])
    if not here.exists() and subprocess.run(["git", "clone", "--quiet", "--depth=1", REPO, here]).returncode:
        raise Stop(f"{REPO} cannot be fetched: correct REPO")
    if DRIVE:
        from google.colab import drive

        drive.mount("/content/drive")
    kept = ["--drive", "/content/drive/MyDrive"] if DRIVE else []
    if subprocess.run([sys.executable, "-m", "report", "on_colab", *kept], cwd=here).returncode:
        raise Stop("the installation failed (the reason is above): run this cell again")
root = next((folder for folder in [here, *here.parents] if (folder / "lib" / "losses.py").exists()), None)
if root is None:
    raise Stop("lib/ not found: start Jupyter inside the project's folder (`make lab` does)")
sys.path.insert(0, str(root))
