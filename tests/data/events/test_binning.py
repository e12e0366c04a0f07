import numpy as np
import pytest

from sltt_jax.data.events.binning import Events, between, frames, resize_area

GOOD = Events(
    t=np.array([5, 6, 8, 20, 21]),
    x=np.array([0, 3, 3, 1, 0]),
    y=np.array([0, 2, 2, 1, 0]),
    p=np.array([0, 1, 1, 0, 1]),
    height=3,
    width=4,
)


def reference_frames(events, steps, split_by):
    """The definition, event by event."""
    out = np.zeros((steps, events.height, events.width, 2), int)
    n, d = len(events.t) // steps, (events.t[-1] - events.t[0]) // steps
    for i, (t, x, y, p) in enumerate(zip(events.t, events.x, events.y, events.p, strict=True)):
        bins = [
            b
            for b in range(steps - 1)
            if (b * n <= i < (b + 1) * n if split_by == "number" else b * d <= t - events.t[0] < (b + 1) * d)
        ]
        out[bins[0] if bins else steps - 1, y, x, p] += 1
    return out


def test_frames_by_hand():
    by_number = frames(GOOD, 2)  # events 0-1, and 2-4
    assert by_number.shape == (2, 3, 4, 2) and by_number.dtype == np.uint8
    assert {tuple(i): by_number[tuple(i)] for i in np.argwhere(by_number)} == {
        (0, 0, 0, 0): 1,
        (0, 2, 3, 1): 1,
        (1, 2, 3, 1): 1,
        (1, 1, 1, 0): 1,
        (1, 0, 0, 1): 1,
    }
    by_time = frames(GOOD, 2, split_by="time")  # t - t[0] < 8, and the rest
    assert by_time[0, 2, 3, 1] == 2 and by_time[0].sum() == 3 and by_time[1].sum() == 2


@pytest.mark.parametrize("split_by", ["number", "time"])
@pytest.mark.parametrize("steps", [1, 4, 7, 300])
def test_frames_are_the_definition(split_by, steps):
    r = np.random.default_rng(0)
    x, y, p = r.integers(0, [5, 4, 2], (200, 3)).T
    events = Events(np.sort(r.integers(0, 250, 200)), x, y, p, height=4, width=5)
    np.testing.assert_array_equal(
        frames(events, steps, split_by=split_by), reference_frames(events, steps, split_by)
    )


@pytest.mark.parametrize(("number", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16)])
def test_counts_never_wrap(number, dtype):
    zero = np.zeros(number, int)
    out = frames(Events(zero, zero, zero, zero, 1, 1), 1)
    assert out.dtype == dtype and out.item(0) == number


def test_too_many_counts():
    zero = np.zeros(65_536, int)
    with pytest.raises(ValueError, match="a pixel counts 65536 events in one step"):
        frames(Events(zero, zero, zero, zero, 1, 1), 1)


def test_resize_area():
    counts = np.random.default_rng(0).integers(0, 9, (2, 8, 8, 2))
    np.testing.assert_array_equal(resize_area(counts, 4), counts.reshape(2, 4, 2, 4, 2, 2).sum((2, 4)))
    np.testing.assert_array_equal(resize_area(counts, 8), counts)
    # 3 pixels to 2: a border pixel is shared half and half, a corner in quarters.
    image = np.array([[4, 2, 0], [8, 4, 0], [0, 0, 0]])[None, :, :, None]
    np.testing.assert_array_equal(resize_area(image, 2)[0, ..., 0], [[4 + 1 + 4 + 1, 1 + 1], [4 + 1, 1]])
    image = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])[None, :, :, None]
    np.testing.assert_array_equal(resize_area(image, 2)[0, ..., 0], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(resize_area(3 * np.ones((1, 128, 128, 1), int), 48), 3 * 64 / 9 // 1)
    assert frames(GOOD, 2, size=1).sum() == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2, "split_by": "bins"}, 'split_by must be "number" or "time", got \'bins\''),
        ({"steps": 2, "size": 0}, "size must be in 1..3, the sensor's, got 0"),
        ({"steps": 2, "size": 4}, "size must be in 1..3, the sensor's, got 4"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        frames(GOOD, **options)


@pytest.mark.parametrize("dtype", [np.uint64, np.uint8, np.int16])
@pytest.mark.parametrize("split_by", ["number", "time"])
def test_any_integers_are_counted_alike(dtype, split_by):
    other = Events(**{name: getattr(GOOD, name).astype(dtype) for name in "txyp"}, height=3, width=4)
    np.testing.assert_array_equal(
        frames(other, 2, split_by=split_by, size=2), frames(GOOD, 2, split_by=split_by, size=2)
    )


def test_between():
    cut = between(GOOD, 6, 20)
    assert cut.t.tolist() == [6, 8] and cut.x.tolist() == [3, 3] and cut.width == 4
    assert between(GOOD, 0, 22).t.tolist() == GOOD.t.tolist()
    for start, end in ((9, 20), (20, 6)):
        with pytest.raises(ValueError, match=f"no events from {start} to {end} us"):
            between(GOOD, start, end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros(4, int)}, "t, x, y, p differ in length: 5, 4, 5, 5"),
        ({"t": np.array([1, 2, 1, 4, 5])}, "the time of event 2 runs backwards"),
        ({"p": np.array([0, -1, 0, 0, 0])}, "event 1 has p = -1, outside 0..1"),
        # Seconds: all of them would fall into the same microsecond.
        ({"t": GOOD.t / 1e6}, r"t must be whole microseconds \[N\], got float64 \[5\]"),
        ({"x": GOOD.x.astype(float)}, r"x must be integers \[N\], got float64 \[5\]"),
        ({"y": GOOD.y[:, None]}, r"y must be integers \[N\], got int64 \[5, 1\]"),
        ({"t": np.array([-(2**63), 1, 2, 3, 2**62])}, "event 0 has t = -9223372036854775808, outside"),
        (
            {"t": np.array([1, 2, 3, 4, 2**64 - 1], np.uint64)},
            "event 4 has t = 18446744073709551615, outside",
        ),
    ],
)
def test_wrong_events(change, message):
    arrays = {name: getattr(GOOD, name) for name in "txyp"} | change
    with pytest.raises(ValueError, match=message):
        Events(**arrays, height=3, width=4)
