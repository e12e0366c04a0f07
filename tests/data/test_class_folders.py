"""Files in class folders: how they are found and split, and what is refused."""

import re

import pytest

from sltt_jax.data.class_folders import find_class_files


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def of_classes(root, **numbers):
    return make(root, *(f"{name}/{i}.png" for name, n in numbers.items() for i in range(n)))


def named(files):
    return [(file.path.parent.name, file.path.name, file.label) for file in files]


def test_a_split_that_is_drawn(tmp_path):
    root = of_classes(tmp_path, dog=10, cat=5)
    make(root, "README.md", ".cache/x.png", "dog/.DS_Store", "cat/Thumbs.db")
    found = find_class_files(root, (".png",))
    assert found.classes == ("cat", "dog")
    assert sorted(label for *_, label in named(found.test)) == [0, 1, 1]
    assert sorted(named(found.train + found.test)) == sorted(
        [("cat", f"{i}.png", 0) for i in range(5)] + [("dog", f"{i}.png", 1) for i in range(10)]
    )
    labels = [label for *_, label in named(found.train)]
    assert labels != sorted(labels)  # the first few are of several classes
    assert find_class_files(root, (".png",)) == found
    # One file more moves one at most.
    make(root, "dog/10.png")
    again = find_class_files(root, (".png",))
    assert len({*named(found.test)} - {*named(again.test)}) <= 1
    shares = [len(find_class_files(root, (".png",), test_share=share).test) for share in (0.01, 0.5, 0.99)]
    assert shares == [2, 8, 14]


def test_a_split_that_is_given(tmp_path):
    make(tmp_path, "train/a/1.PNG", "train/b/2.png", "train/b/3.png", "test/b/1.png", "test/a/1.png")
    found = find_class_files(tmp_path, (".png",))
    assert sorted(named(found.train)) == [("a", "1.PNG", 0), ("b", "2.png", 1), ("b", "3.png", 1)]
    assert sorted(named(found.test)) == [("a", "1.png", 0), ("b", "1.png", 1)]


def test_train_may_be_a_class(tmp_path):
    assert find_class_files(of_classes(tmp_path, train=3, bus=2), (".png",)).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("files", "where", "message"),
    [
        ((), "", "no class folders; expected .*<class>/<file>"),
        (("1.png", "2.png"), "", "1.png lies in no class folder"),
        (("a/1.png", "b/1.png", "3.png"), "", "3.png lies in no class folder"),
        (("a/1.png", "a/2.png"), "", "one class alone, 'a'"),
        (("a/1.png", "b/1.png", "b/2.png"), "a", "at least two files, one for testing, got 1"),
        (("a/1.png", "a/2.png", "b/.hidden"), "b", "no files in this class folder"),
        (("a/1.png", "a/notes.txt", "b/1.png"), "a/notes.txt", "not of a kind that is read; .* hold .png"),
        (("a/1.png", "a/more/2.png", "b/1.png"), "a/more", "a folder; class folders hold"),
        (("train/a/1.png", "train/b/1.png"), "", "train/ with class folders, but no such test/"),
        (
            ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"),
            "",
            "class 'b' is in train/ alone; it must be in both",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, files, where, message):
    make(tmp_path, *files)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / where))}: .*{message}"):
        find_class_files(tmp_path, (".png",))


def test_what_would_not_be_read_is_not_passed_over(tmp_path):
    """A folder beside the splits, and a link to nothing."""
    make(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"), "val/a/1.png")
    with pytest.raises(ValueError, match=f"{tmp_path / 'val'}: it would not be read; move it away"):
        find_class_files(tmp_path, (".png",))
    (tmp_path / "train" / "a" / "2.png").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"train/a/2\.png: a link to nothing"):
        find_class_files(tmp_path, (".png",))


def test_a_folder_that_is_not_there_and_shares_that_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'no'}: no such folder"):
        find_class_files(tmp_path / "no", (".png",))
    for share in (0, 1, -1, float("nan")):
        with pytest.raises(ValueError, match=f"test_share must be above 0 and below 1, got {share}"):
            find_class_files(tmp_path, (".png",), test_share=share)
