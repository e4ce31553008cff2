import pytest

from dim_hf.data.limits import MAX_PIXELS, check_shape


@pytest.mark.parametrize("shape", [(1,), (4, 6), (2, 3, 4), (24,)])
def test_shapes_up_to_the_limit_pass(shape):
    check_shape(shape, 24, "a.png")


@pytest.mark.parametrize(("shape", "shown"), [((5, 5), "5 x 5"), ((2**40, 2**40), f"{2**40} x {2**40}")])
def test_larger_shapes_are_refused(shape, shown):
    with pytest.raises(ValueError, match=rf"^a\.png is too large \({shown}, the limit is 24 pixels\); cut it"):
        check_shape(shape, 24, "a.png")


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (3, -1, 5), (-2, -3)])
def test_shapes_without_a_pixel_are_refused(shape):
    with pytest.raises(ValueError, match=r"^a\.png has no pixels .*copy or export the file again$"):
        check_shape(shape, MAX_PIXELS, "a.png")
