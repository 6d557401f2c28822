"""Poses are an algebra: what holds for every pose, every matrix and every shape of image and frame, not for
examples alone."""
import math

import numpy as np
import pytest
import torch
from helpers import random_image
from hypothesis import assume, given, settings, strategies as st

from cxr_stn.geometry import affine_to_matrix, matrix_to_affine, pixel_to_normalised
from cxr_stn.stn import (affine_to_pose, BoundedPose, compose, FAMILIES, invert, mirror_frame, POSE_NAMES,
                         pose_to_affine, rot90_affine, warp)

quick = settings(max_examples=100, deadline=None)
def number(low, high): return st.floats(low, high, allow_nan=False)
def batch(*rows): return st.builds(lambda *row: torch.tensor([row], dtype=torch.float64), *rows)


IDENTITY = torch.eye(2, 3, dtype=torch.float64)[None]
shifts, scales, angles, shears = number(-1.5, 1.5), number(.3, 3), number(-3.1, 3.1), number(-.6, .6)
shapes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))  # (height, width)
dataset = st.tuples(st.integers(500, 4000), st.integers(500, 4000))
poses = batch(shifts, shifts, scales, scales, angles, shears)
affines = st.builds(pose_to_affine, poses, dataset)
points = batch(*[number(-2, 2)] * 2)


def near(a, b, atol=1e-9): torch.testing.assert_close(a, b, rtol=1e-9, atol=atol, check_dtype=False)
def move(affine, point): return (affine[..., :2] @ point[..., None] + affine[..., 2:])[..., 0]


# A group

@quick
@given(affines, affines, points)
def test_composing_is_doing_one_after_the_other(A, B, point):
    near(move(compose(A, B), point), move(A, move(B, point)))


@quick
@given(affines, affines, affines)
def test_composing_is_associative(A, B, C): near(compose(A, compose(B, C)), compose(compose(A, B), C), 1e-7)


@quick
@given(affines, affines)
def test_inverses(A, B):
    near(compose(A, invert(A)), IDENTITY)
    near(compose(invert(A), A), IDENTITY)
    near(invert(invert(A)), A)
    near(invert(compose(A, B)), compose(invert(B), invert(A)), 1e-7)
    near(compose(A, IDENTITY), A)
    near(compose(IDENTITY, A), A)


@quick
@given(affines)
def test_the_inverse_is_that_of_numpy(A):
    image = np.vstack([A[0].numpy(), [0, 0, 1]])
    np.testing.assert_allclose(invert(A)[0], np.linalg.inv(image)[:2], rtol=1e-8, atol=1e-9)


@quick
@given(st.lists(poses, min_size=2, max_size=4), dataset)
def test_images_of_a_batch_do_not_see_each_other(some, image):
    each = [pose_to_affine(pose, image) for pose in some]
    together = pose_to_affine(torch.cat(some), image)
    near(together, torch.cat(each), 0)
    near(invert(together), torch.cat([invert(affine) for affine in each]), 1e-12)
    near(compose(together, together.flip(0)), torch.cat([compose(a, b) for a, b in zip(each, each[::-1])]),
         1e-12)
    near(affine_to_pose(together, image), torch.cat([affine_to_pose(affine, image) for affine in each]),
         1e-12)


# Poses and what their numbers mean

@quick
@given(poses, dataset)
def test_a_pose_survives_the_matrix(pose, image):
    near(affine_to_pose(pose_to_affine(pose, image), image), pose)


@quick
@given(poses, dataset, number(1, 2000))
def test_a_pose_says_what_its_names_say(pose, image, mm):
    "Measured on the image in millimetres, without a line of the code that is tested"
    tx, ty, sx, sy, angle, shear = pose[0].tolist()
    height, width = image[0] / image[1] * mm, mm
    def folder(x, y):
        return move(pose_to_affine(pose, image),
                    torch.tensor([[x, y]], dtype=torch.float64))[0].numpy() * [width / 2, height / 2]
    middle, right, down = folder(0, 0), folder(1, 0), folder(0, 1)
    np.testing.assert_allclose(middle, [tx * width / 2, ty * height / 2], atol=1e-9 * mm)
    across, along = right - middle, down - middle
    assert np.hypot(*across) == pytest.approx(sx * width / 2, rel=1e-9)
    assert math.remainder(math.atan2(across[1], across[0]) - angle, 2 * math.pi) == pytest.approx(0, abs=1e-9)
    area = across[0] * along[1] - across[1] * along[0]
    assert area == pytest.approx(sx * sy * width * height / 4, rel=1e-8), \
        "the slant changes no area, and nothing is mirrored"
    assert across @ along / np.hypot(*across)**2 * (sx * width) / (sy * height) == \
        pytest.approx(shear, abs=1e-8)


@quick
@given(shifts, shifts, scales, angles, dataset)
def test_similarities_stay_similarities(x, y, scale, angle, image):
    """On images of any shape: the inverse has the inverse scale and the opposite angle, two together multiply
    and add"""
    def similarity(x, y, scale, angle):
        return pose_to_affine(torch.tensor([[x, y, scale, scale, angle, 0]], dtype=torch.float64), image)
    back = affine_to_pose(invert(similarity(x, y, scale, angle)), image)[0]
    near(back[2:], torch.tensor([1 / scale, 1 / scale, -angle, 0], dtype=torch.float64))
    both = affine_to_pose(compose(similarity(x, y, scale, angle), similarity(y, x, 2, .04)), image)[0]
    near(both[2:], torch.tensor([2 * scale, 2 * scale, angle + .04, 0], dtype=torch.float64))


@quick
@given(poses)
def test_a_shape_is_a_ratio(pose):
    near(pose_to_affine(pose, (3000, 2500)), pose_to_affine(pose, (6, 5)))
    near(affine_to_pose(pose_to_affine(pose, (3000, 2500)), (6, 5)), pose)


@quick
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_a_family_stays_within_its_bounds_and_its_freedom(family, data):
    bounded = BoundedPose(family, max_shift=.7, max_scale=2, max_angle=50, max_shear=.2)
    raw = torch.tensor([data.draw(st.lists(number(-50, 50), min_size=bounded.n_free,
                                           max_size=bounded.n_free))], dtype=torch.float64)
    pose = bounded(raw)
    low = torch.tensor([-.7, -.7, .5, .5, -math.radians(50), -.2], dtype=torch.float64)
    high = torch.tensor([.7, .7, 2, 2, math.radians(50), .2], dtype=torch.float64)
    assert ((pose >= low - 1e-6) & (pose <= high + 1e-6)).all()
    values = dict(zip(POSE_NAMES, pose[0].tolist()))
    if family == "similarity": assert values["sx"] == values["sy"]
    for name in {"angle", "shear"} - set(FAMILIES[family]): assert values[name] == 0
    near(bounded(torch.zeros_like(raw)), torch.tensor([[0, 0, 1, 1, 0, 0.]]))


# Pixels

@quick
@given(affines, dataset, dataset)
def test_matrices_of_torch_and_of_opencv_are_the_same_map(affine, image, frame):
    "affine_to_matrix and back; torch has 32 bits for a theta"
    matrix = affine_to_matrix(affine, image, frame)
    torch.testing.assert_close(torch.from_numpy(matrix_to_affine(matrix, image, frame)), affine.float(),
                               rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(matrix[..., 2, :], [[0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(affine_to_matrix(affine.numpy(), image, frame), matrix, rtol=0, atol=0)


@quick
@given(affines, shapes, shapes, shapes)
def test_pixel_matrices_compose_and_invert_as_thetas_do(affine, image, middle, frame):
    other = pose_to_affine(torch.tensor([[.1, -.2, 1.3, .8, .5, .1]], dtype=torch.float64), middle)
    def alike(a, b): np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * max(1, np.abs(b).max()))
    alike(affine_to_matrix(compose(affine, other), image, frame),
          affine_to_matrix(affine, image, middle) @ affine_to_matrix(other, middle, frame))
    alike(affine_to_matrix(invert(affine), frame, image) @ affine_to_matrix(affine, image, frame),
          np.eye(3)[None])


@quick
@given(shapes, shapes)
def test_the_identity_lays_edge_on_edge(image, frame):
    matrix = affine_to_matrix(IDENTITY, image, frame)[0]
    for x in (0, 1):
        for y in (0, 1):
            corner = [frame[1] * x - .5, frame[0] * y - .5, 1]
            np.testing.assert_allclose(matrix @ corner, [image[1] * x - .5, image[0] * y - .5, 1], atol=1e-8)
    np.testing.assert_allclose(pixel_to_normalised(image) @ [(image[1] - 1) / 2, (image[0] - 1) / 2, 1],
                               [0, 0, 1], atol=1e-12)


# Rotations by 90 degrees and mirrors

@quick
@given(st.integers(-8, 8), st.integers(-8, 8))
def test_rotations_by_90_degrees_add_up(a, b):
    one, two, both = (rot90_affine(torch.tensor([k])) for k in (a, b, a + b))
    near(compose(one, two), both, 1e-5)
    near(invert(one), rot90_affine(torch.tensor([-a])), 1e-5)
    near(one, rot90_affine(torch.tensor([a % 4])), 1e-5)
    assert (a - b) % 4 == 0 or (one - two).abs().max() > .5, "different turns differ"


@settings(max_examples=30, deadline=None)
@given(st.integers(-4, 4), st.booleans(), st.integers(2, 40), st.integers(0, 99))
def test_rotations_and_mirrors_are_those_of_the_pixels(rot90, flipped, side, seed):
    image = torch.tensor(random_image(seed, (side, side)), dtype=torch.float32)[None, None] / 255
    affine = rot90_affine(torch.tensor([rot90]))
    near(warp(image, affine, (side, side)), torch.rot90(image, rot90, (2, 3)), 1e-4)
    mirrored = mirror_frame(affine, torch.tensor([flipped]))
    rotated = warp(image, affine, (side, side))
    near(warp(image, mirrored, (side, side)), rotated.flip(3) if flipped else rotated, 1e-4)


@quick
@given(affines, st.booleans())
def test_a_mirror_undoes_itself_and_turns_the_determinant(affine, flipped):
    which = torch.tensor([flipped])
    mirrored = mirror_frame(affine, which)
    near(mirror_frame(mirrored, which), affine, 0)
    assert torch.sign(torch.linalg.det(mirrored[..., :2]) / torch.linalg.det(affine[..., :2])) == \
        (-1 if flipped else 1)
    near(mirrored,
         compose(affine,
                 torch.diag(torch.tensor([-1. if flipped else 1., 1, 1], dtype=torch.float64))[None, :2]))


# Images

@settings(max_examples=30, deadline=None)
@given(number(-.2, .2), number(-.2, .2), number(.8, 1.25), number(-.3, .3), st.integers(0, 99))
def test_a_image_that_is_warped_back_is_the_image(x, y, scale, angle, seed):
    "Where nothing was cut off, and as sharp as two bilinear samplings leave it"
    image = torch.tensor(random_image(seed, (96, 80)), dtype=torch.float32)[None, None] / 255
    affine = pose_to_affine(torch.tensor([[x, y, scale, scale, angle, 0]]), (96, 80))
    there = warp(warp(image, affine, (192, 160)), invert(affine), (96, 80))
    seen = warp(warp(torch.ones_like(image), affine, (192, 160)), invert(affine), (96, 80)) > .999
    assume(seen.float().mean() > .2)
    assert (there - image)[seen].abs().mean() < .03
