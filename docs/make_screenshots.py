"""Makes docs/images/web-*.png from the page over the demo's models, data and runs: `make screenshots`."""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.web.browser import BROWSER, DRIVER, open_browser, serving, set_size, wait_for  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZES = {1280: 800, 390: 844}
COLOURS = 64  # of a picture: letters and plain areas need no more
QUESTIONS = ("What is the capital of France?", "How do I cook West Lake vinegar fish?")


def main() -> int:
    """Take every picture; the demo must have run in this folder."""
    if BROWSER is None or DRIVER is None:
        sys.exit("make_screenshots: needs chromium and chromedriver (Debian: chromium, chromium-driver).")
    if not Path("runs/demo/model.safetensors").exists():
        sys.exit("make_screenshots: there is no runs/demo. Run 'preftune demo' in this folder first.")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree("runs", folder / "runs", ignore=shutil.ignore_patterns("checkpoint-*", "rescue-*", ".web"))
        words = ["runs/demo/sft", "runs/demo", "--data", "runs/demo/data"]
        with serving(words, folder) as address, open_browser(folder / "profile") as driver:
            for language in ("en", "zh"):
                for width, height in SIZES.items():
                    _take_all(driver, address, language, width, height)
    return 0


def _take_all(driver: Any, address: str, language: str, width: int, height: int) -> None:
    set_size(driver, width, height)
    for part, prepare in {"chat": _chat, "runs": _runs, "data": _data, "train": _train}.items():
        driver.get("about:blank")
        driver.get(f"{address}/?lang={language}#{part}")
        shown = f"return document.getElementById('{part}').hidden === false"
        wait_for(lambda shown=shown: _run(driver, shown))
        prepare(driver)
        time.sleep(0.3)
        _save(driver, IMAGES / f"web-{part}-{language}-{width}.png")


def _chat(driver: Any) -> None:
    wait_for(lambda: _run(driver, "return document.querySelectorAll('#presets button').length"))
    _run(driver, "document.getElementById('history').checked = false;")  # the demo's model knows single questions
    _run(driver, "document.getElementById('temperature').value = 0; document.getElementById('seed').value = 0;")
    for question in QUESTIONS:
        script = "document.getElementById('question').value = arguments[0]; document.getElementById('send').click();"
        driver.execute_script(script, question)
        wait_for(lambda: _run(driver, "return document.getElementById('send').disabled === false"), 60)
        if question != QUESTIONS[-1]:  # a vote for the right one, from which both go on
            _run(driver, "document.getElementById('vote-1').click()")
            wait_for(lambda: _run(driver, "return document.querySelector('.best') !== null"))
    _run(driver, "document.activeElement.blur()")


def _runs(driver: Any) -> None:
    wait_for(lambda: _run(driver, "return document.querySelector('#run-list button[data-run=demo]') !== null"))
    _run(driver, "document.querySelector('#run-list button[data-run=demo]').click()")
    wait_for(lambda: _run(driver, "return document.querySelectorAll('#run-charts svg').length"))


def _data(driver: Any) -> None:
    wait_for(lambda: _run(driver, "return document.getElementById('data-look').disabled === false"))
    _run(
        driver,
        """for (const [name, value] of [["file", "runs/demo/data/pairs.heldout.jsonl"], ["model", "runs/demo"],
             ["columns", "question=prompt answer_zh=chosen answer_en=rejected"]])
             document.getElementById("data-" + name).value = value;
           document.getElementById("data-look").click();""",
    )
    wait_for(lambda: _run(driver, "return document.querySelectorAll('#data-page .pair').length"), 60)
    _run(driver, "document.getElementById('data-longer').scrollIntoView()")


def _train(driver: Any) -> None:
    wait_for(lambda: _run(driver, "return document.getElementById('field-max_steps') !== null"))
    filled = {
        "model_name_or_path": "runs/demo/sft",
        "dataset": "runs/demo/data/pairs.train.jsonl",
        "columns": "question=prompt answer_zh=chosen answer_en=rejected",
        "learning_rate": "5e-5",
        "total_batch_size": "32",
    }
    for name, value in filled.items():
        driver.execute_script(
            """const field = document.getElementById("field-" + arguments[0]); field.value = arguments[1];
               field.dispatchEvent(new Event("input", {bubbles: true}));""",
            name,
            value,
        )
    wait_for(lambda: _run(driver, "return document.getElementById('train-start').disabled === false"))


def _run(driver: Any, script: str) -> Any:
    return driver.execute_script(script)


def _save(driver: Any, path: Path) -> None:
    """What the window shows, in few colours, so that the repository stays small."""
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
