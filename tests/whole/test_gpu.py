"""What `make gpu-check` does, on the CPU in place of a GPU: it finds planted differences, loses no row to an
error of another, and says what is missing. How fast anything was decides nothing here."""
import argparse
import re
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import gpu, timing, training

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BRIEFLY = argparse.Namespace(steps=6, rounds=1, input_size=64, batch_size=4, workers=0)
LOSS, GRADIENT = torch.tensor(2.0), torch.tensor([3.0, 4.0])


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    return training.prepare(dict(n_images=2 * 6 * 4), BRIEFLY, tmp_path_factory.mktemp("gpu"),
                            accelerator="cpu")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    return tmp_path / "gpu.md"


@pytest.fixture
def modes(monkeypatch):
    "What torch's sync debug mode was set to, in turn"
    said = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", said.append)
    return said


def test_without_cuda_one_sentence_and_no_table(results, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0 and not results.exists()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert all(words in said for words in ("CUDA device", "found none", "onnxruntime-gpu", torch.__version__))


def test_all_steps_agree_with_themselves(trainings):
    every = trainings | dict(end_to_end=gpu.with_transformer(trainings["classifier"]))
    for name, training in every.items():
        value, exactly = gpu.step_agrees(training, CPU, gpu.EVERY_LOSS.get(name, {}))
        assert value == "0 of the gradient's norm" and "at most 1e-06" in exactly


@pytest.mark.parametrize("loss, gradient", [
    (LOSS * 1.000001, GRADIENT), (LOSS, GRADIENT * 1.00001), (LOSS, -GRADIENT), (LOSS, GRADIENT.flip(0)),
    (LOSS * torch.nan, GRADIENT), (LOSS, GRADIENT * torch.nan)])
def test_a_planted_difference_of_a_step_is_found(monkeypatch, loss, gradient):
    steps = iter([(dict(loss=LOSS), GRADIENT), (dict(loss=loss), gradient)])
    monkeypatch.setattr(gpu, "first_step", lambda *given: next(steps))
    row = gpu.checked("step", gpu.step_agrees, None, CPU, {})
    assert row.result.startswith("differs: AssertionError: ")


def test_a_step_is_computed_in_64_bits_and_nothing_after_it(trainings):
    losses, gradient = gpu.first_step(trainings["classifier"], CPU, {})
    assert losses["loss"].dtype == gradient.dtype == torch.float64
    assert torch.zeros(1).dtype == torch.zeros(1, dtype=torch.int).float().dtype == torch.float32


def test_an_image_of_another_cache_is_found(trainings, monkeypatch):
    data = trainings["classifier"][1]
    assert gpu.checked("cache", gpu.cache_agrees, data, CPU).result == "agrees: three batches are equal"
    monkeypatch.setattr(data.cache, "images", 255 - np.array(data.cache.images))
    batches = [next(gpu.batches(data, CPU))]
    monkeypatch.setattr(data.cache, "images", 255 - data.cache.images)
    monkeypatch.setattr(gpu, "batches", lambda *given: iter(batches))
    assert gpu.checked("cache", gpu.cache_agrees, data, CPU).result.startswith("differs: ")


def test_the_released_aligner_beside_itself_and_beside_one_that_is_off(trainings, monkeypatch):
    images = list(np.array(trainings["classifier"][1].cache.images[:3]))
    row = gpu.checked("aligner", gpu.onnx_agrees, images, CPU)
    assert (row.value, row.result) == ("0 px", "agrees: the corners of 3 frames within 0.5 px")
    assert gpu.checked("aligner", gpu.onnx_agrees, images, CUDA).result == \
        "not run: onnxruntime-gpu is not installed"
    load = gpu.Aligner.load
    aligners = iter([load(), load(), load(passes=2)])
    monkeypatch.setattr(gpu, "load_aligner", lambda device: next(aligners))
    monkeypatch.setattr(gpu, "CORNERS", 1e-6)
    assert gpu.checked("aligner", gpu.onnx_agrees, images, CPU).result.startswith("differs: ")


def test_whole_steps_are_watched_after_the_first_third(trainings, modes, tmp_path):
    value, _ = gpu.no_waiting(trainings["classifier"], 6, tmp_path)
    assert modes == ["error", "default"] and value == "4 steps"


def test_the_line_that_waits_is_named(trainings, modes, tmp_path, monkeypatch, capsys):
    params, data, make = trainings["classifier"]

    def waiting():
        module = make()()
        def inputs(batch):
            if modes == ["error"]: raise RuntimeError("called a synchronizing CUDA operation")
            return type(module).inputs(module, batch)
        module.inputs = inputs
        return module
    row = gpu.checked("step", gpu.no_waiting, (params, data, lambda: waiting), 6, tmp_path)
    assert row.result.startswith("fails: RuntimeError: called a synchronizing CUDA operation (tests/whole/")
    assert ", from cxr_stn/classifier/training.py:" in row.result
    assert modes == ["error", "default"], "Lightning, which moves the weights back, may wait again"
    data.trainer = None # it holds the module above, which no other process could be given


def test_an_error_of_one_work_loses_no_other_and_is_told_once(capsys):
    def broken(): raise ValueError("no | compiler")
    works = {"bare loop": lambda: np.array([9.0, 0.5, 0.5]), "compiled": broken,
             "Lightning": lambda: np.array([9.0, 1.0, 1.0])}
    bare, compiled, lightning = gpu.measure("aligner", works, 8, 2, CPU)
    assert bare == ("aligner: bare loop", "16.0 images / s", "", "")
    assert lightning == ("aligner: Lightning", "8.0 images / s", "", "0.500 times bare loop")
    assert compiled.result.startswith("fails: ValueError: no \\| compiler (tests/whole/test_gpu.py:")
    assert capsys.readouterr().err.count("Traceback") == 1
    [_, late] = gpu.measure("aligner", {"bare loop": broken, "Lightning": works["Lightning"]}, 8, 1, CPU)
    assert late.value == "8.0 images / s" and late.result == "", "there is nothing to hold it against"


def test_an_interruption_loses_no_row(results, monkeypatch, capsys):
    def rows(*given):
        yield gpu.Row("a step", "1", result="agrees: exactly")
        raise KeyboardInterrupt
    monkeypatch.setattr(gpu, "all_rows", rows)
    with pytest.raises(KeyboardInterrupt): gpu.run(BRIEFLY, CPU, "a card", 1)
    assert "agrees: exactly" in results.read_text()
    assert capsys.readouterr().out.startswith("a step; 1; agrees: exactly\n")


@pytest.mark.parametrize("result, code", [
    ("agrees: at most 1e-06", 0), ("not run: one device", 0), ("", 0), ("differs: by 1", 1), ("fails: E", 1)])
def test_the_table_and_the_exit_status(results, monkeypatch, result, code):
    rows = [gpu.Row("a step", "1", "", "agrees: exactly"), gpu.Row("two GPUs", result=result)]
    monkeypatch.setattr(gpu, "all_rows", lambda *given: rows)
    assert gpu.run(BRIEFLY, CPU, "a card", 1) == code
    text = results.read_text()
    assert "`python benchmarks/gpu.py`: a card; phantoms of 64 px" in text
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
             if line.startswith("|")]
    assert lines[0] == ["check", "value", "peak memory", "result"]
    assert lines[2:] == [["a step", "1", "", "agrees: exactly"], ["two GPUs", "", "", result]]


def test_one_device_is_said():
    assert gpu.checked("two", gpu.two_devices, None, 3, None, CPU, 1).result == "not run: one device"


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(trainings, tmp_path, monkeypatch):
    "Two processes of the CPU; what differs is planted in what one of them has left"
    for name, training in trainings.items():
        row = gpu.checked("two", gpu.two_devices, training, 3, tmp_path / name, CPU, 2)
        assert row.result == "agrees: both end with the same weights" and "times the images / s" in row.value
    left = [torch.load(tmp_path / f"classifier/2_devices/{rank}.pt") for rank in range(2)]
    monkeypatch.setattr(gpu, "trained", lambda training, devices, *given:
                        left if devices == 2 else [left[0]])
    left[1][1][-1] += 1
    assert gpu.checked("two", gpu.two_devices, None, 3, None, CPU, 2).result.startswith("differs: ")


@pytest.mark.slow
def test_all_rows(results, modes, monkeypatch):
    "Traced by torch.compile, but run as it is: making machine code takes a minute"
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="eager"))
    assert gpu.run(BRIEFLY, CPU, "a CPU", 1) == 0
    text = results.read_text()
    assert text.count("agrees") == 9 and text.count("not run") == 3
    assert len(re.findall(r"\d images / s +\|", text)) == 13
