from hive_ray.config import Config
from hive_ray.presets import sd15
from jobs.evaluate_editor import own_judges
from jobs.run import Run


def run(judges=("model",), editors=("sft", "finetuned"), **evaluation) -> Run:
    preset = sd15()
    sections = {
        "scoring": preset.scoring.model_copy(update={"judges": judges}),
        "evaluation": preset.evaluation.model_copy(update={"editors": editors} | evaluation),
    }
    return Run("nowhere", Config(**dict(preset) | sections))


def test_a_measure_by_the_judge_that_was_trained_against_is_warned_of():
    (words,) = own_judges(run())
    assert words.startswith("finetuned: trained to please the judge behind reward.")
    assert words.endswith("look at clip_image, clip_direction, what people say.")
    (words,) = own_judges(run(("clip", "model"), ("sft", "weighted", "conditional"), judge="shapes"))
    assert words.startswith(
        "weighted, conditional: trained to please the judge behind clip_direction and clip_image and"
    )
    assert words.endswith("look at right, followed, preserved, what people say.")


def test_nothing_is_warned_of_where_the_measures_are_by_others():
    assert own_judges(run(editors=("sft", "control"))) == []  # no feedback at all
    assert own_judges(run(("openai",))) == []
    assert own_judges(run(("clip",), clip="another/clip")) == []
