from hive_ray.annotation.feedback import rankings_from_thumbs, read_feedback, read_thumbs, store_feedback

EDIT = {
    "editor": "abc",
    "instruction": "make it red",
    "settings": {"seed": 1},
    "source_image": b"1",
    "edited_image": b"2",
}


def test_a_thumb_is_stored_with_its_pictures_and_the_editors_version(database):
    assert store_feedback(database, key="first", liked=True, **EDIT)
    [found] = read_feedback(database)
    assert (found.editor, found.liked, found.settings) == ("abc", True, {"seed": 1})
    assert (found.source_image, found.edited_image) == (b"1", b"2")


def test_the_other_thumb_takes_the_place_of_the_first(database):
    assert store_feedback(database, key="first", liked=True, **EDIT)
    assert not store_feedback(database, key="first", liked=False, **EDIT)
    assert [one.liked for one in read_feedback(database)] == [False]


def test_feedback_is_read_by_version_and_in_parts(database):
    for number in range(120):
        store_feedback(
            database, key=f"key {number}", liked=bool(number % 2), **EDIT | {"editor": "abc" if number % 3 else "def"}
        )
    assert [one.key for one in read_feedback(database)] == [f"key {number}" for number in range(120)]
    assert len(list(read_feedback(database, "def"))) == 40


def test_words_that_no_database_holds_are_stored_as_text_and_ranked(database):
    words = {"instruction": "make it \ud83d red\0"}
    for key, liked in (("first", True), ("second", False)):
        store_feedback(database, key=f"{key}\ud83d\0", liked=liked, **EDIT | words | {"edited_image": key.encode()})
    assert {one.instruction for one in read_feedback(database)} == {"make it \ufffd red\ufffd"}
    [row] = rankings_from_thumbs(database, read_thumbs(database))
    assert row["instruction"] == "make it \ufffd red\ufffd"
    assert not store_feedback(database, key="first\ud83d\0", liked=False, **EDIT | words)
