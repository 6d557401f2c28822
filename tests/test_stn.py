"""Poses are an algebra: what holds for every pose, every matrix and every shape of film and frame, not for examples alone."""
import math

import numpy as np
import pytest
import torch
from helpers import draw
from hypothesis import assume, given, settings, strategies as st

from cxr_stn.stn import (FAMILIES, POSE_NAMES, BoundedPose, compose, flip_frame, invert, matrix_to_theta, pixel_to_normalised,
                         pose_to_theta, theta_to_matrix, theta_to_pose, turn_theta, warp)

quick = settings(max_examples=100, deadline=None)
def number(low, high): return st.floats(low, high, allow_nan=False)
def batch(*rows): return st.builds(lambda *row: torch.tensor([row], dtype=torch.float64), *rows)


IDENTITY = torch.eye(2, 3, dtype=torch.float64)[None]
shifts, scales, angles, shears = number(-1.5, 1.5), number(.3, 3), number(-3.1, 3.1), number(-.6, .6)
shapes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))  # (height, width)
films = st.tuples(st.integers(500, 4000), st.integers(500, 4000))
poses = batch(shifts, shifts, scales, scales, angles, shears)
thetas = st.builds(pose_to_theta, poses, films)
points = batch(*[number(-2, 2)] * 2)


def near(a, b, atol=1e-9): torch.testing.assert_close(a, b, rtol=1e-9, atol=atol, check_dtype=False)
def move(theta, point): return (theta[..., :2] @ point[..., None] + theta[..., 2:])[..., 0]


# A group

@quick
@given(thetas, thetas, points)
def test_composing_is_doing_one_after_the_other(A, B, point): near(move(compose(A, B), point), move(A, move(B, point)))


@quick
@given(thetas, thetas, thetas)
def test_composing_is_associative(A, B, C): near(compose(A, compose(B, C)), compose(compose(A, B), C), 1e-7)


@quick
@given(thetas, thetas)
def test_inverses(A, B):
    near(compose(A, invert(A)), IDENTITY)
    near(compose(invert(A), A), IDENTITY)
    near(invert(invert(A)), A)
    near(invert(compose(A, B)), compose(invert(B), invert(A)), 1e-7)
    near(compose(A, IDENTITY), A)
    near(compose(IDENTITY, A), A)


@quick
@given(thetas)
def test_the_inverse_is_that_of_numpy(A):
    square = np.vstack([A[0].numpy(), [0, 0, 1]])
    np.testing.assert_allclose(invert(A)[0], np.linalg.inv(square)[:2], rtol=1e-8, atol=1e-9)


@quick
@given(st.lists(poses, min_size=2, max_size=4), films)
def test_films_of_a_batch_do_not_see_each_other(some, film):
    each = [pose_to_theta(pose, film) for pose in some]
    together = pose_to_theta(torch.cat(some), film)
    near(together, torch.cat(each), 0)
    near(invert(together), torch.cat([invert(theta) for theta in each]), 1e-12)
    near(compose(together, together.flip(0)), torch.cat([compose(a, b) for a, b in zip(each, each[::-1])]), 1e-12)
    near(theta_to_pose(together, film), torch.cat([theta_to_pose(theta, film) for theta in each]), 1e-12)


# Poses and what their numbers mean

@quick
@given(poses, films)
def test_a_pose_survives_the_matrix(pose, film):
    near(theta_to_pose(pose_to_theta(pose, film), film), pose)


@quick
@given(poses, films, number(1, 2000))
def test_a_pose_says_what_its_names_say(pose, film, mm):
    "Measured on the film in millimetres, without a line of the code that is tested"
    tx, ty, sx, sy, angle, shear = pose[0].tolist()
    height, width = film[0] / film[1] * mm, mm
    def place(x, y): return move(pose_to_theta(pose, film), torch.tensor([[x, y]], dtype=torch.float64))[0].numpy() * [width / 2, height / 2]
    middle, right, down = place(0, 0), place(1, 0), place(0, 1)
    np.testing.assert_allclose(middle, [tx * width / 2, ty * height / 2], atol=1e-9 * mm)
    across, along = right - middle, down - middle
    assert np.hypot(*across) == pytest.approx(sx * width / 2, rel=1e-9)
    assert math.remainder(math.atan2(across[1], across[0]) - angle, 2 * math.pi) == pytest.approx(0, abs=1e-9)
    area = across[0] * along[1] - across[1] * along[0]
    assert area == pytest.approx(sx * sy * width * height / 4, rel=1e-8), "the slant changes no area, and nothing is mirrored"
    assert across @ along / np.hypot(*across)**2 * (sx * width) / (sy * height) == pytest.approx(shear, abs=1e-8)


@quick
@given(shifts, shifts, scales, angles, films)
def test_similarities_stay_similarities(x, y, scale, angle, film):
    "On films of any shape: the inverse has the inverse scale and the opposite angle, two together multiply and add"
    def similarity(x, y, scale, angle): return pose_to_theta(torch.tensor([[x, y, scale, scale, angle, 0]], dtype=torch.float64), film)
    back = theta_to_pose(invert(similarity(x, y, scale, angle)), film)[0]
    near(back[2:], torch.tensor([1 / scale, 1 / scale, -angle, 0], dtype=torch.float64))
    both = theta_to_pose(compose(similarity(x, y, scale, angle), similarity(y, x, 2, .04)), film)[0]
    near(both[2:], torch.tensor([2 * scale, 2 * scale, angle + .04, 0], dtype=torch.float64))


@quick
@given(poses)
def test_a_shape_is_a_ratio(pose):
    near(pose_to_theta(pose, (3000, 2500)), pose_to_theta(pose, (6, 5)))
    near(theta_to_pose(pose_to_theta(pose, (3000, 2500)), (6, 5)), pose)


@quick
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_a_family_stays_within_its_bounds_and_its_freedom(family, data):
    bounded = BoundedPose(family, max_shift=.7, max_scale=2, max_angle=50, max_shear=.2)
    raw = torch.tensor([data.draw(st.lists(number(-50, 50), min_size=bounded.n_free, max_size=bounded.n_free))], dtype=torch.float64)
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
@given(thetas, films, films)
def test_matrices_of_torch_and_of_opencv_are_the_same_map(theta, film, frame):
    "theta_to_matrix and back; torch has 32 bits for a theta"
    matrix = theta_to_matrix(theta, film, frame)
    torch.testing.assert_close(matrix_to_theta(matrix, film, frame), theta.float(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(matrix[..., 2, :], [[0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(theta_to_matrix(theta.numpy(), film, frame), matrix, rtol=0, atol=0)


@quick
@given(thetas, shapes, shapes, shapes)
def test_pixel_matrices_compose_and_invert_as_thetas_do(theta, film, middle, frame):
    other = pose_to_theta(torch.tensor([[.1, -.2, 1.3, .8, .5, .1]], dtype=torch.float64), middle)
    def alike(a, b): np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * max(1, np.abs(b).max()))
    alike(theta_to_matrix(compose(theta, other), film, frame),
          theta_to_matrix(theta, film, middle) @ theta_to_matrix(other, middle, frame))
    alike(theta_to_matrix(invert(theta), frame, film) @ theta_to_matrix(theta, film, frame), np.eye(3)[None])


@quick
@given(shapes, shapes)
def test_the_identity_lays_edge_on_edge(film, frame):
    matrix = theta_to_matrix(IDENTITY, film, frame)[0]
    for x in (0, 1):
        for y in (0, 1):
            corner = [frame[1] * x - .5, frame[0] * y - .5, 1]
            np.testing.assert_allclose(matrix @ corner, [film[1] * x - .5, film[0] * y - .5, 1], atol=1e-8)
    np.testing.assert_allclose(pixel_to_normalised(film) @ [(film[1] - 1) / 2, (film[0] - 1) / 2, 1], [0, 0, 1], atol=1e-12)


# Quarter turns and mirrors

@quick
@given(st.integers(-8, 8), st.integers(-8, 8))
def test_quarter_turns_add_up(a, b):
    one, two, both = (turn_theta(torch.tensor([k])) for k in (a, b, a + b))
    near(compose(one, two), both, 1e-5)
    near(invert(one), turn_theta(torch.tensor([-a])), 1e-5)
    near(one, turn_theta(torch.tensor([a % 4])), 1e-5)
    assert (a - b) % 4 == 0 or (one - two).abs().max() > .5, "different turns differ"


@settings(max_examples=30, deadline=None)
@given(st.integers(-4, 4), st.booleans(), st.integers(2, 40), st.integers(0, 99))
def test_turns_and_mirrors_are_those_of_the_pixels(turns, flipped, side, seed):
    image = torch.tensor(draw(seed, (side, side)), dtype=torch.float32)[None, None] / 255
    theta = turn_theta(torch.tensor([turns]))
    near(warp(image, theta, (side, side)), torch.rot90(image, turns, (2, 3)), 1e-4)
    mirrored = flip_frame(theta, torch.tensor([flipped]))
    turned = warp(image, theta, (side, side))
    near(warp(image, mirrored, (side, side)), turned.flip(3) if flipped else turned, 1e-4)


@quick
@given(thetas, st.booleans())
def test_a_mirror_undoes_itself_and_turns_the_determinant(theta, flipped):
    which = torch.tensor([flipped])
    mirrored = flip_frame(theta, which)
    near(flip_frame(mirrored, which), theta, 0)
    assert torch.sign(torch.linalg.det(mirrored[..., :2]) / torch.linalg.det(theta[..., :2])) == (-1 if flipped else 1)
    near(mirrored, compose(theta, torch.diag(torch.tensor([-1. if flipped else 1., 1, 1], dtype=torch.float64))[None, :2]))


# Films

@settings(max_examples=30, deadline=None)
@given(number(-.2, .2), number(-.2, .2), number(.8, 1.25), number(-.3, .3), st.integers(0, 99))
def test_a_film_that_is_warped_back_is_the_film(x, y, scale, angle, seed):
    "Where nothing was cut off, and as sharp as two bilinear samplings leave it"
    film = torch.tensor(draw(seed, (96, 80)), dtype=torch.float32)[None, None] / 255
    theta = pose_to_theta(torch.tensor([[x, y, scale, scale, angle, 0]]), (96, 80))
    there = warp(warp(film, theta, (192, 160)), invert(theta), (96, 80))
    seen = warp(warp(torch.ones_like(film), theta, (192, 160)), invert(theta), (96, 80)) > .999
    assume(seen.float().mean() > .2)
    assert (there - film)[seen].abs().mean() < .03
