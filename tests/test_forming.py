"""Embeddings while they form: the courses that notebook 7 draws."""

import pytest
import torch

from studies import forming

MOMENTS = [0, 3, 12]


@pytest.fixture(scope="module")
def courses(digits):
    return {head: forming.course(digits, head, 2, MOMENTS, images=40) for head in ("Softmax", "ArcFace")}


def test_a_course_holds_the_same_images_at_every_moment(courses, digits):
    for head, course in courses.items():
        assert (course.head, course.steps) == (head, MOMENTS)
        assert course.x.shape == (3, 40, 2) and course.W.shape == (3, 10, 2) and course.accuracy.shape == (3,)
        assert torch.equal(course.y, digits.val.labels[:40])


def test_all_losses_start_alike_and_move(courses):
    softmax, arcface = courses.values()
    assert torch.equal(softmax.x[0], arcface.x[0]) and torch.equal(softmax.W[0], arcface.W[0])
    assert not torch.equal(softmax.x[2], arcface.x[2])
    assert not torch.equal(softmax.W[0], softmax.W[2]) and not torch.equal(softmax.W[1], softmax.W[2])


def test_a_course_is_repeated_exactly_and_follows_its_seed_and_constants(courses, digits):
    again = forming.course(digits, "ArcFace", 2, MOMENTS, images=40)
    assert torch.equal(again.x, courses["ArcFace"].x)
    for change in ({"seed": 1}, {"m": 0.0}):
        other = forming.course(digits, "ArcFace", 2, MOMENTS, images=40, **change)
        assert not torch.equal(other.x[2], again.x[2])


def test_smaller_images_are_means_of_four_pixels(digits):
    small = forming.smaller(digits)
    assert small.train.images.shape[2:] == (4, 4) and small.train.images.dtype == torch.uint8
    want = digits.val.images[0, 0, :2, :2].float().mean().round()
    assert small.val.images[0, 0, 0, 0] == want and torch.equal(small.test.labels, digits.test.labels)
