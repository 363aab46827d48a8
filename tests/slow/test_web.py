"""The page of `preftune web`, used in a browser as a person uses it: by keyboard and pointer, wide and narrow."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import main
from preftune.data import load_preferences
from preftune.export.write import export_model
from preftune.train.checkpoint import checkpoints
from tests.web.browser import BROWSER, DRIVER, open_browser, serving, set_size, wait_for
from tests.web.conftest import save_model, save_pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs Debian's chromium and chromium-driver"),
]
REAL = Path(os.environ.get("PREFTUNE_TEST_DATA", "absent")) / "models/stories260K-llama"
GROWTH = """
window.grown = [[], []];
for (const side of [0, 1]) new MutationObserver(() => {
  const box = document.querySelector(`#talk-${side} .assistant:last-child`);
  window.grown[side].push([performance.now(), box ? box.textContent.length : 0]);
}).observe(document.getElementById("talk-" + side), { childList: true, characterData: true, subtree: true });
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models (random, an adapter over it, the two merged, the real one where there is one) and data."""
    folder = tmp_path_factory.mktemp("web")
    save_model(folder / "before", 0)
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "before"),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    adapter.save_pretrained(folder / "lora")
    AutoTokenizer.from_pretrained(folder / "before").save_pretrained(folder / "lora")
    export_model(str(folder / "lora"), folder / "merged")
    save_pairs(folder / "data/pairs.jsonl")
    return folder


@pytest.fixture(scope="module")
def driver(folder):
    models = ["before", "lora", "merged", *([str(REAL)] if REAL.is_dir() else [])]
    with serving([*models, "--data", "data"], folder) as address, open_browser(folder / "profile") as driver:
        driver.get(f"{address}/?lang=en")
        wait_for(lambda: driver.find_elements(By.CSS_SELECTOR, "#presets button"))
        yield driver
        wrong = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert wrong == []


class Page:
    def __init__(self, driver):
        self.driver = driver

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def open(self, part):
        self["tab-" + part].click()
        wait_for(lambda: self[part].is_displayed())

    def set(self, name, value):
        self.driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self[name],
            str(value),
        )

    def ask(self, question):
        """By keyboard; returns both answers when they are written."""
        self["question"].send_keys(question, Keys.ENTER)
        wait_for(lambda: not self["send"].is_enabled())
        wait_for(lambda: self["send"].is_enabled(), 60)
        return [self.driver.find_elements(By.CSS_SELECTOR, f"#talk-{k} .assistant")[-1].text for k in (0, 1)]


@pytest.fixture
def page(driver):
    set_size(driver, 1280, 900)
    return Page(driver)


def test_both_models_answer_at_the_same_time_and_the_vote_becomes_a_row(page, driver, folder, capsys):
    assert [Select(page[f"model-{side}"]).first_selected_option.text for side in (0, 1)] == ["before", "lora"]
    page.set("max_tokens", 60)
    page.set("temperature", 1.2)
    page.ask("Are you there?")
    driver.execute_script(GROWTH)
    page["reset"].click()
    page.set("seed", 7)
    answers = page.ask("Who are you?")
    left, right = driver.execute_script("return window.grown")
    for grown in (left, right):
        assert len({length for _, length in grown}) > 5
    assert left[0][0] < right[-1][0] and right[0][0] < left[-1][0]
    for side in (0, 1):
        assert "tokens read" in page[f"note-{side}"].text
    page["question"].send_keys(Keys.ALT, "2")
    wait_for(lambda: "Kept in votes.jsonl (1 rows)" in page["vote-note"].text)
    row = json.loads((folder / "votes.jsonl").read_text())
    assert row["prompt"] == [{"role": "user", "content": "Who are you?"}]
    assert (row["chosen_model"], row["rejected_model"]) == ("lora", "before")
    assert row["chosen"][0]["content"].split() == answers[1].split()
    assert len(load_preferences(folder / "votes.jsonl")) == 1
    assert main(["check", str(folder / "votes.jsonl"), "--model", str(folder / "before")]) == 0
    assert "1 to train on" in capsys.readouterr().out
    page.ask("And then?")  # both read the better answer
    assert page["vote-0"].is_enabled()


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the models of PREFTUNE_TEST_DATA")
def test_the_real_model_tells_a_story_and_can_be_stopped(page):
    Select(page["model-1"]).select_by_visible_text(str(REAL))
    page.set("temperature", 0)
    page.set("max_tokens", 20)
    assert page.ask("Once upon a time")[1].startswith(", there was a")
    page.set("max_tokens", 400)
    page["question"].send_keys("Once upon a time", Keys.ENTER)
    wait_for(lambda: "stop" in page["stop"].get_attribute("id") and page["stop"].is_enabled())
    page["stop"].click()
    wait_for(lambda: page["send"].is_enabled(), 10)
    assert not page["vote-0"].is_enabled()
    Select(page["model-1"]).select_by_visible_text("lora")


def test_an_adapter_and_the_merged_model_answer_alike(page):
    for side, name in enumerate(("lora", "merged")):
        Select(page[f"model-{side}"]).select_by_visible_text(name)
    page.set("temperature", 0)
    page.set("max_tokens", 20)
    adapter, merged = page.ask("Who are you?")
    assert adapter == merged != ""
    for side, name in enumerate(("before", "lora")):
        Select(page[f"model-{side}"]).select_by_visible_text(name)


def test_data_is_shown_as_it_is_trained_on(page, driver):
    page.open("data")
    wait_for(lambda: page["data-look"].is_enabled())
    Select(page["data-file"]).select_by_visible_text("data/pairs.jsonl")
    Select(page["data-model"]).select_by_visible_text("before")
    page["data-look"].click()
    wait_for(lambda: page["data-found"].is_displayed())
    assert "chosen = 'chosen' (text)" in page["data-mapping"].text
    row = driver.find_element(By.CSS_SELECTOR, "#data-page .pair")
    assert "<|user|>Say 0.<|end|><|assistant|>" in row.text
    assert row.find_element(By.TAG_NAME, "mark").text == "The"
    scored = row.find_elements(By.CSS_SELECTOR, ".response .scored")
    assert "".join(piece.get_property("textContent") for piece in scored).startswith("The number 0.<|end|>")
    page["data-next"].click()
    wait_for(lambda: page["data-number"].text == "page 2 of 3")


def test_a_training_is_started_followed_and_stopped(page, driver, folder):
    page.open("train")
    wait_for(lambda: driver.find_elements(By.ID, "field-max_steps"))
    page.set("train-name", "tried")
    page.set("field-model_name_or_path", "before")
    page.set("field-dataset", "data/pairs.jsonl")
    page.set("field-learning_rate", "fast")
    wait_for(lambda: "'learning_rate' must be" in page["train-wrong"].text)
    assert not page["train-start"].is_enabled()
    page.set("field-learning_rate", "1e-4")
    page.set("field-max_steps", 20000)
    page.set("field-total_batch_size", 4)
    page.set("field-logging_steps", 2)
    wait_for(lambda: page["train-start"].is_enabled())
    wait_for(lambda: "max_steps: 20000" in page["train-yaml"].text)
    assert page["train-command"].text == "preftune train runs/.web/tried.yaml"
    page["train-start"].click()
    wait_for(lambda: page["train-state"].get_attribute("data-state") == "running")
    wait_for(lambda: "loss" in page["train-output"].text, 60)
    page["train-open"].click()
    wait_for(lambda: driver.find_elements(By.CSS_SELECTOR, "#run-charts svg polyline"))
    assert page["run-name"].text == "tried"
    first = page["run-log"].text
    wait_for(lambda: page["run-log"].text != first)  # it follows the run
    page.open("train")
    page["train-stop"].click()
    wait_for(lambda: "exit code 143" in page["train-state"].text, 60)
    assert checkpoints(folder / "runs/tried")
    assert "resume_from_checkpoint=true" in page["train-output"].text


def test_the_parts_are_reached_by_the_arrow_keys(page, driver):
    page.open("chat")
    for part in ("runs", "data", "train", "chat"):
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        wait_for(lambda part=part: page[part].is_displayed())
        assert driver.switch_to.active_element.get_attribute("id") == "tab-" + part


def test_both_languages_and_a_phone(page, driver):
    assert page["send"].text == "Send"
    page["language"].click()
    assert page["send"].text == "发送"
    assert driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "zh-CN"
    driver.refresh()
    driver.execute_script("window.history.replaceState(null, '', '/')")
    for width in (390, 1280):
        set_size(driver, width, 844)
        for part in ("chat", "runs", "data", "train"):
            page.open(part)
            time.sleep(0.1)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width, (part, width)
    set_size(driver, 390, 844)
    page.open("chat")
    assert page["send"].is_displayed()
