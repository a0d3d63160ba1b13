"""Takes the pictures of the pages that the documentation shows.

    python -m tests.dashboard.make_screenshots RUN OUT

RUN: the run folder of the quickstart, as pages shall name it; OUT: a folder for runs.png, ...
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from evomerge.report import read_run

_COLOURS = 128  # of a picture; few, so that it stays small


def main() -> None:
    """Serves the folder that the run lies in, and takes the pictures."""
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    report = read_run(run)
    assert report.verdict is not None, "expected a finished run"
    winner, rival = report.verdict.winner, report.verdict.opponent
    trial = f"/run/{run.name}/trial/{winner}"
    compare = f"/run/{run.name}/compare?trials"
    places = {
        "runs": ("/", 1200, 300, "light"),
        "run": (f"/run/{run.name}", 1200, 1400, "light"),
        "leaderboard": (f"/run/{run.name}?state=complete#board", 1200, 620, "light"),
        "trial": (trial, 1200, 1000, "light"),
        "documents": (f"{trial}?against={rival}&task=past#documents", 1200, 800, "light"),
        "compare": (
            f"{compare}={rival},{winner}&side=holdout",
            1200,
            1150,
            "light",
        ),
        "phone": (f"/run/{run.name}", 390, 1000, "dark"),
    }
    words = ["dashboard", str(run.parent), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "evomerge", *words], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        site = server.stdout.readline().removeprefix("dashboard: ").strip().rstrip("/")
        with sync_playwright() as playwright:
            path = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for name, (place, width, height, scheme) in places.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                page.goto(site + place)
                page.wait_for_selector("body[data-ready=yes], #runs td a, #runs th a")
                if "#" in place:
                    page.locator(f"#{place.rpartition('#')[2]}").scroll_into_view_if_needed()
                    page.evaluate("location.hash = location.hash")
                picture = out / f"{name}.png"
                page.screenshot(path=picture)
                Image.open(picture).convert("RGB").quantize(_COLOURS).save(picture, optimize=True)
                page.close()
            browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
