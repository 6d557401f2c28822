"""The training step: nothing in it makes the device wait for the host, and nothing is computed that is not
needed."""
import pickle

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cxr_stn.data import augment
from cxr_stn.trainer import bare_trainer, quiet
from cxr_stn.aligner.data import AlignerData, TrainParams
from cxr_stn.aligner.training import AlignerTraining
from cxr_stn.classifier.arms import build_arm_cache
from cxr_stn.classifier.model import end_to_end_network
from cxr_stn.classifier.training import classifier_trainer, ClassifierData, ClassifierTraining, ClassifyParams

ALIGN = dict(n_images=30, n_phantoms=24, input_size=64, frame_height=60, frame_width=48, batch_size=4,
             epochs=1,
             backbone_weights="none", loss_network_weights="none", accelerator="cpu")
CLASSIFY = dict(n_images=60, input_size=64, cache_size=64, batch_size=4, epochs=1, classifier_weights="none",
                arm="standard", accelerator="cpu")
EVERY = dict(pixel_weight=1.0, perceptual_weight=1.0, anchor_weight=1.0)
SQUARED = EVERY | dict(pixel_loss="mse", perceptual_distance="mse", family="affine", target="features")


class NoWaiting(TorchDispatchMode):
    "Refuses every operation that asks the device for a value or a size that only the device knows."
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
             "aten::is_nonzero",
             "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        mask = name == "aten::index" and any(index is not None and index.dtype == torch.bool
                                             for index in args[1])
        assert name not in self.waits and not mask, f"{name} makes the device wait for the host"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(cache): return AlignerData(TrainParams(**ALIGN, cache_dir=cache))


@pytest.fixture(scope="module")
def images(cache):
    params = ClassifyParams(**CLASSIFY, cache_dir=cache)
    built = build_arm_cache(params)
    return ClassifierData(params, built, torch.eye(2, 3).expand(len(built), 2, 3).contiguous())


def on_meta(value):
    "Tensors without values: whoever asks for one gets an error."
    if isinstance(value, dict): return {name: on_meta(part) for name, part in value.items()}
    return value.to("meta")


def train_without_values(module, batch):
    "One step and its gradients on the device `meta`, where no tensor has a value; what the step says."
    module.to("meta").train()
    said = module.training_step(on_meta(batch), 0)
    said["loss"].backward()
    return said


def test_the_checks_notice_what_waits():
    scores = torch.arange(4.0)
    for waiting in (lambda t: t[0].item(), lambda t: float(t.sum()), lambda t: bool(t.any()),
                    lambda t: (t > 1).nonzero(),
                    lambda t: t[t > 1]):
        with pytest.raises(AssertionError, match="wait for the host"), NoWaiting(): waiting(scores)
        with pytest.raises((RuntimeError, NotImplementedError)): waiting(scores.to("meta"))
    for waiting in (lambda t: t.tolist(), lambda t: t.numpy(), lambda t: t.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError, TypeError)): waiting(scores.to("meta"))


@pytest.mark.parametrize("more", [{}, EVERY, SQUARED, dict(pose_supervision_weight=0.0)])
def test_no_step_of_the_aligner_needs_a_value(data, cache, monkeypatch, more):
    params = TrainParams(**ALIGN | more, cache_dir=cache)
    monkeypatch.setattr(data, "params", params)
    monkeypatch.setattr(data, "trainer", None)
    logged = train_without_values(AlignerTraining(params.model_dump()),
                                  next(iter(data.train_dataloader()))[0])
    assert logged["loss"].device.type == "meta"
    assert all(isinstance(value, torch.Tensor) for value in logged.values())


@pytest.mark.parametrize("more", [{}, dict(loss="weighted"), dict(loss="focal"),
                                  dict(arm="end_to_end", stn_weights="none")])
def test_no_step_of_the_classifier_needs_a_value(images, more):
    params = images.params.model_copy(update=more)
    batch = next(iter(torch.utils.data.DataLoader(images.dataset("train"), 4)))
    stn, _ = end_to_end_network(params, None)
    module = ClassifierTraining(params.model_dump(), images.labels("train").mean(0).tolist(), stn)
    assert train_without_values(module, batch)["loss"].device.type == "meta"


def watched(kind):
    """A training whose batches are watched from their transfer to the device to the end of the step,
    optimiser and logging included."""
    class Watched(kind):
        steps = 0
        def on_train_batch_start(self, *args):
            self.watch = NoWaiting()
            self.watch.__enter__()
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            self.watch.__exit__(None, None, None)
            self.steps += 1
    return Watched


@pytest.fixture
def as_on_a_gpu(monkeypatch): monkeypatch.setattr(augment, "answers_at_once", lambda device: False)


def test_the_whole_loop_of_the_aligner_waits_for_nothing(data, tmp_path, as_on_a_gpu):
    module = watched(AlignerTraining)(data.params.model_dump())
    with quiet(): bare_trainer(data.params, tmp_path, []).fit(module, datamodule=data)
    assert module.steps == len(data.train_rows) // 4 >= 4


def test_the_whole_loop_of_the_classifier_waits_for_nothing(images, tmp_path, as_on_a_gpu):
    module = watched(ClassifierTraining)(images.params.model_dump(), images.labels("train").mean(0).tolist())
    with quiet(): classifier_trainer(images.params, tmp_path).fit(module, datamodule=images)
    assert module.steps == len(images.rows["train"]) // 4 >= 4


def test_the_copies_are_the_same_where_all_images_are_computed(as_on_a_gpu, monkeypatch):
    settings, generator = augment.augment_config(TrainParams()), torch.Generator().manual_seed(0)
    images, uniforms = (torch.rand(*shape, generator=generator) for shape in ((12, 1, 64, 64), (12, 64)))
    make = augment.BatchAugment(settings, 64)
    everyone = make(images, uniforms)
    monkeypatch.undo()
    for all_computed, chosen_computed in zip(everyone, make(images, uniforms)):
        torch.testing.assert_close(all_computed, chosen_computed, rtol=0, atol=0)


def leaves(node, seen):
    "All tensors for which a graph would gather gradients."
    if node is None or node in seen: return set()
    seen.add(node)
    own = {id(node.variable)} if hasattr(node, "variable") else set()
    return own.union(*(leaves(before, seen) for before, _ in node.next_functions))


def test_the_frozen_network_costs_one_pass_and_no_gradients(data, cache):
    params = TrainParams(**ALIGN | EVERY, cache_dir=cache)
    module, calls = AlignerTraining(params.model_dump()), []
    module.log_dict = lambda values, **_: None
    module.set_canonical(data.images(data.train_rows), torch.eye(2, 3)[None])
    targets = [target.clone() for target in module.targets]
    module.features.register_forward_hook(lambda network, given, maps: calls.append(len(given[0])))
    data.trainer = None
    for batch, *_ in list(data.train_dataloader())[:3]:
        loss = module.training_step(batch, 0)["loss"]
        found = leaves(loss.grad_fn, set())
        loss.backward()
    assert calls == [4, 4, 4], \
        "the images of a batch go through the frozen network once, the canonical chest never"
    assert all((a == b).all() for a, b in zip(targets, module.targets))
    frozen = list(module.features.parameters())
    assert {id(weight) for weight in module.network.parameters()} >= found, \
        "only the trained network's weights have gradients"
    assert frozen and all(weight.grad is None and not weight.requires_grad for weight in frozen)


def test_a_loader_does_not_copy_the_images(data):
    data.trainer = None
    for batches in (data.train_dataloader().flattened[0], data.val_dataloader()):
        assert np.shares_memory(batches.dataset.images[0], data.cache.images)
        assert len(pickle.dumps(batches.dataset.images)) < data.cache.images.nbytes / 4, \
            "nor does it send them to its workers"


@pytest.mark.slow
def test_compiled_and_plain_networks_say_the_same(data, cache, monkeypatch):
    "Traced by torch.compile, but run as it is: making machine code takes a minute."
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: whole(self, backend="eager"))
    losses, names = [], []
    data.trainer = None
    for more in ({}, dict(compile=True), dict(channels_last=False)):
        pl.seed_everything(0, verbose=False)
        module = AlignerTraining(TrainParams(**ALIGN | more, cache_dir=cache).model_dump())
        module.log_dict = lambda values, **_: None
        losses.append(module.training_step(next(iter(data.train_dataloader()))[0], 0)["loss"].item())
        names.append(list(module.state_dict()))
        order = torch.contiguous_format if "channels_last" in more else torch.channels_last
        assert all(weight.is_contiguous(memory_format=order) for weight in module.network.parameters()
                   if weight.ndim == 4)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4) and names[0] == names[1] == names[2]
