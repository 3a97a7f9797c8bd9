"""A settings file that is wrong is told with its name, its line and the setting."""

import pytest
import yaml
from mutate import mutated
from pydantic import Field

from hive_ray.config import Section
from hive_ray.files.settings_file import SettingsError, load_settings, read_settings


class Stage(Section):
    steps: int = Field(1, ge=1)
    sizes: tuple[int, ...] = ()


class Settings(Section):
    name: str
    stage: Stage = Stage()


GOOD = "# a run\nname: one\nstage:\n  steps: 3\n  sizes:\n  - 1\n  - 2\n"


def load(tmp_path, data: bytes | str):
    path = tmp_path / "config.yaml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return load_settings(str(path), Settings)


@pytest.mark.parametrize(
    "data", [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("one", "'één\u2028'")]
)
def test_settings_are_read_however_the_lines_end(tmp_path, data):
    assert load(tmp_path, data).stage == Stage(steps=3, sizes=(1, 2))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD.replace("steps: 3", "steps: 0"), "line 4: stage.steps is 0: input should be greater than or equal to 1"),
        (GOOD.replace("steps: 3", "steps: many"), "line 4: stage.steps is 'many': input should be a valid integer"),
        (GOOD.replace("steps", "stepz"), "line 4: there is no setting stage.stepz"),
        (GOOD.replace("- 2", "- x"), "line 7: stage.sizes.1 is 'x'"),
        (GOOD.replace("name: one\n", ""), "line 2: name is missing"),
        (GOOD.replace("  steps: 3", "  steps: [3"), "line 5: not YAML"),
        (GOOD.replace("  steps: 3", "\tsteps: 3"), "line 4: not YAML: found character '\\t'"),
        (GOOD + "name: two\n", "line 8: name is set twice"),
        (GOOD + "7: two\n", "line 8: '7' is no name of a setting"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- one\n", "a list stands where settings by name are wanted"),
        ("one", "a str stands where"),
        (GOOD.encode("utf-16"), "is in UTF-16: save it as UTF-8"),
        (GOOD.replace("one", "één").encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
        (GOOD.replace("one", "o\0e"), "not YAML"),
        ("name: &a [*a]\n", "config.yaml"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path, data, words):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, data)
    assert words in str(caught.value)
    assert str(tmp_path / "config.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_wrong_settings_are_counted(tmp_path):
    with pytest.raises(SettingsError, match=r"; and 2 more$"):
        load(tmp_path, GOOD + "a: 1\nb: 1\nc: 1\nd: 1\ne: 1\n")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no settings file .*nowhere.yaml; a run's is"):
        read_settings(str(tmp_path / "nowhere.yaml"))


def test_mutated_settings_files_are_settings_or_named_errors(tmp_path):
    good = [GOOD.encode(), yaml.safe_dump({"name": "x", "stage": {"steps": 2, "sizes": [3, 4]}}).encode()]
    for number, data in enumerate(mutated(good)):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(data)
        said = ""
        try:
            assert isinstance(load_settings(str(path), Settings), Settings)
        except SettingsError as error:
            said = str(error)
        assert "\n" not in said, data
        assert not said or str(path) in said
