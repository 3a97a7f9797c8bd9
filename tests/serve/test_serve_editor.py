import asyncio
import base64
import io
import os
import threading
import time

import httpx
import numpy as np
import pytest
import ray
import torch
from local_server import free_port
from openai import BadRequestError, NotFoundError, OpenAI
from pictures import SCENE, cut_out, encoded, given, on_white
from PIL import Image
from ray import serve
from sockets import listening, reachable
from starlette.exceptions import HTTPException
from tiny_models import tiny_base, tiny_stable_diffusion

from hive_ray.annotation.database import Database
from hive_ray.annotation.feedback import read_feedback
from hive_ray.artifacts.model_store import model_digest
from hive_ray.cluster.addresses import is_loopback
from hive_ray.cluster.starting import start_ray
from hive_ray.diffusion.precision import sampling_dtype
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.editor.sampling import SamplingStopped
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import ImageError, decode, encode
from serve.editor import ServeSettings, app, defaults_for
from serve.listening import warning_for
from serve.model import EditQueue, EditRequest, denoise
from serve.pictures import fit, fitted_size

SUFFIX = ", image quality is five out of five"


def picture(width: int = 64, height: int = 64, seed: int = 0) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def size_of(image: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(image)).size


def request(instruction: str = "make it red", image: bytes | None = None, seeds=(1,), steps=2) -> EditRequest:
    return EditRequest(
        image=image or picture(),
        instruction=instruction,
        guidance_scale=2.0,
        image_guidance_scale=1.4,
        num_inference_steps=steps,
        seeds=seeds,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An editor that hears the image and has a suffix."""
    folder = tmp_path_factory.mktemp("serve")
    editor = Editor.build(tiny_stable_diffusion(folder / "base"))
    with torch.no_grad():
        torch.nn.init.normal_(editor.unet.conv_in.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    editor.save(folder / "editor", EditorCard(base_model="tiny", resolution=64, instruction_suffix=SUFFIX))
    return folder / "editor"


# --- Settings ---------------------------------------------------------------------------------------------


def test_small_editors_have_the_scales_of_shapes_and_others_those_of_instructpix2pix():
    small, large = defaults_for(ServeSettings(), 64), defaults_for(ServeSettings(), 512)
    assert (small.guidance_scale, small.image_guidance_scale, small.num_inference_steps) == (2.0, 1.4, 10)
    assert (large.guidance_scale, large.image_guidance_scale, large.num_inference_steps) == (7.5, 1.5, 50)


def test_a_given_scale_replaces_the_default_and_leaves_the_others():
    given = defaults_for(ServeSettings(guidance_scale=5.0), 512)
    assert (given.guidance_scale, given.image_guidance_scale) == (5.0, 1.5)


def test_settings_come_from_the_environment_and_arguments_win(monkeypatch):
    monkeypatch.setenv("HIVE_RAY_EDITOR", "somewhere")
    monkeypatch.setenv("HIVE_RAY_NUM_INFERENCE_STEPS", "7")
    assert ServeSettings().editor == "somewhere"
    assert ServeSettings(num_inference_steps=9).num_inference_steps == 9
    assert ServeSettings().num_inference_steps == 7


def test_a_folder_without_an_editor_is_refused_before_serve_starts(tmp_path):
    with pytest.raises(ModelFolderError, match=r"has no card.json.*run it first"):
        app(ServeSettings(editor=str(tmp_path)))
    assert not ray.is_initialized()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_addresses_of_this_machine_alone_need_no_word(host):
    assert is_loopback(host)
    assert warning_for(host) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_is_warned_of(host):
    assert not is_loopback(host)
    assert "plain HTTP" in warning_for(host)
    assert "a proxy with TLS" in warning_for(host)


# --- Pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "resolution", "wanted"),
    [
        ((512, 512), 512, (512, 512)),
        ((1024, 768), 512, (512, 384)),  # 768 / 1024 * 512 = 384 = 6 * 64
        ((3000, 2000), 512, (576, 384)),  # 341.3 -> 384, then 384 * 1.5 = 576
        ((2000, 3000), 512, (384, 576)),
        ((1000, 999), 256, (256, 256)),  # 255.7 -> 256, then 256.3 -> 256
        ((1000, 300), 64, (64, 64)),  # below 256 always square
    ],
)
def test_sides_are_whole_64s_near_the_resolution(given, resolution, wanted):
    assert fitted_size(*given, resolution) == wanted


def test_a_picture_is_cropped_evenly_where_it_does_not_fit():
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 200:400] = 255  # the middle third stays in the middle
    fitted = decode(fit(encode(pixels), 256)).astype(int)
    assert fitted.shape == (128, 256, 3)
    assert np.abs(fitted - fitted[:, ::-1]).max() <= 1


def test_a_very_long_picture_is_refused_with_its_size():
    with pytest.raises(ImageError, match=r"1000 x 100.*4 times"):
        fit(picture(1000, 100), 512)


def test_a_picture_of_too_many_pixels_is_refused_from_its_header():
    buffer = io.BytesIO()
    Image.new("1", (8000, 6000)).save(buffer, format="PNG")
    with pytest.raises(HTTPException) as caught:
        fit(buffer.getvalue(), 64)
    assert caught.value.status_code == 413
    assert "8000 x 6000; at most 40,000,000 pixels" in caught.value.detail


def test_an_upload_is_fitted_as_a_person_sees_it():
    """Upright, in sRGB, on white: what a page shows before the edit."""
    upright = fit(encoded(SCENE, "PNG"), 64)
    assert fit(given("display_p3.png"), 64) == upright
    for cut in (given("cutout.webp"), given("palette_transparent.png"), encoded(cut_out(), "TIFF")):
        assert np.array_equal(decode(fit(cut, 64)), on_white())
    turned = decode(fit(given("exif6_ascii_as_number.jpg"), 64))
    assert np.abs(turned.astype(int) - SCENE).mean() < 4


@pytest.mark.parametrize("name", ["drawing.png", "exif_TypeError.jpg", "grey16.tiff"])
@pytest.mark.parametrize("kept", [3, 60, 200])
def test_no_upload_raises_anything_but_a_named_error(name, kept):
    with pytest.raises(ImageError, match="not a readable image"):
        fit(given(name)[:kept], 64)


# --- The model --------------------------------------------------------------------------------------------


def test_the_suffix_of_the_card_is_appended_to_the_instruction(folder):
    suffixed, plain = Editor.load(folder), Editor.load(folder)
    plain.card = EditorCard(base_model="tiny", resolution=64)
    told = denoise(plain, [request("make it red" + SUFFIX)], lambda: False)
    assert denoise(suffixed, [request("make it red")], lambda: False) == told
    assert denoise(plain, [request("make it red")], lambda: False) != told


def test_each_request_gets_its_own_edits_in_the_order_of_its_seeds(folder):
    editor = Editor.load(folder)
    first, second = denoise(editor, [request(seeds=(1, 2)), request("add a hat", seeds=(3,))], lambda: False)
    assert (len(first), len(second)) == (2, 1)
    alone = denoise(editor, [request("add a hat", seeds=(3,))], lambda: False)[0][0]
    assert np.abs(decode(alone).astype(int) - decode(second[0])).max() <= 1
    assert np.abs(decode(alone).astype(int) - decode(first[0])).max() > 1


@pytest.mark.parametrize("kind", ["v_prediction", "xl"])
def test_editors_of_other_backbones_are_served(tmp_path, kind):
    Editor.build(tiny_base(tmp_path / "base", kind)).save(
        tmp_path / "editor", EditorCard(base_model="tiny", resolution=64)
    )
    (edits,) = denoise(Editor.load(tmp_path / "editor"), [request(seeds=(1, 2))], lambda: False)
    assert len(set(edits)) == 2
    assert decode(edits[0]).shape == (64, 64, 3)


class Recorder:
    """Denoises nothing, slowly enough for requests to gather: the edit of a seed is the seed in bytes."""

    def __init__(self, fails: bool = False):
        self.batches, self.stopped, self.fails, self.go = [], 0, fails, threading.Event()

    def __call__(self, requests, should_stop):
        self.batches.append([one.seeds for one in requests])
        while not self.go.is_set():
            if should_stop():
                self.stopped += 1
                raise SamplingStopped("stopped")
            time.sleep(0.005)
        if self.fails:
            raise ValueError("no luck")
        return [[str(seed).encode() for seed in one.seeds] for one in requests]


def test_requests_of_one_size_and_step_count_are_denoised_together():
    recorder = Recorder()

    async def ask():
        queue = EditQueue(recorder, max_rows=3)
        wide = picture(128, 64)
        asked = [
            request(seeds=(0,)),  # goes alone: nobody else is there yet
            request(seeds=(1,)),
            request(seeds=(2,), image=wide),
            request(seeds=(3,), steps=9),
            request(seeds=(4, 5)),
            request(seeds=(6,)),  # the fourth row of its kind
        ]
        tasks = [asyncio.create_task(queue.edit(asked[0]))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(queue.edit(one)) for one in asked[1:]]
        await asyncio.sleep(0.05)
        recorder.go.set()
        return await asyncio.gather(*tasks)

    edits = asyncio.run(ask())
    assert recorder.batches == [[(0,)], [(1,), (4, 5)], [(2,)], [(3,)], [(6,)]]
    assert edits == [[b"0"], [b"1"], [b"2"], [b"3"], [b"4", b"5"], [b"6"]]


def test_denoising_stops_when_nobody_waits_and_the_next_request_is_served():
    recorder = Recorder()

    async def ask():
        queue = EditQueue(recorder)
        gone = asyncio.create_task(queue.edit(request(seeds=(1,))))
        await asyncio.sleep(0.05)
        gone.cancel()
        later = asyncio.create_task(queue.edit(request(seeds=(2,))))
        await asyncio.sleep(0.1)
        recorder.go.set()
        return await later

    assert asyncio.run(ask()) == [b"2"]
    assert recorder.stopped == 1


def test_a_request_that_leaves_the_line_is_never_denoised():
    recorder = Recorder()

    async def ask():
        queue = EditQueue(recorder)
        first = asyncio.create_task(queue.edit(request(seeds=(1,))))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(queue.edit(request(seeds=(2,))))
        await asyncio.sleep(0.05)
        gone.cancel()
        recorder.go.set()
        return await first

    assert asyncio.run(ask()) == [b"1"]
    assert recorder.batches == [[(1,)]]


def test_an_error_of_the_model_reaches_who_asked_and_the_queue_goes_on():
    recorder = Recorder(fails=True)
    recorder.go.set()

    async def ask():
        queue = EditQueue(recorder)
        with pytest.raises(ValueError, match="no luck"):
            await queue.edit(request())
        recorder.fails = False
        return await queue.edit(request(seeds=(5,)))

    assert asyncio.run(ask()) == [b"5"]


# --- Over a socket ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(folder):
    """A served editor that holds one request and lets one wait."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",  # 5 s are too few on a busy machine
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    }
    port = free_port()
    thumbs = f"sqlite:///{folder.parent / 'feedback.sqlite'}"
    settings = ServeSettings(
        editor=str(folder), feedback=thumbs, num_inference_steps=2, max_ongoing=1, max_queued=1, timeout_s=300
    )
    try:
        start_ray(num_cpus=2)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(settings))
        yield f"http://127.0.0.1:{port}"
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=300) as client:
        yield client


def ask(client, image=None, headers=None, **fields):
    fields = {"instruction": "make it red", "seed": 1, **fields}
    return client.post("/edit", data=fields, files={"image": image or picture()}, headers=headers)


def message(reply) -> str:
    return reply.json()["error"]["message"]


@pytest.mark.ray
def test_only_this_machine_reaches_the_service_and_ray_below_it(client):
    assert client.get("/health").status_code == 200
    found = listening(os.getpid())
    replicas = {name.split(":")[4].split(".")[0] for name in found if name.startswith("ray::ServeReplica")}
    assert replicas == {"EditorModel", "EditorPage"}
    assert {"raylet", "gcs_server", "ray::ProxyActor"} <= set(found)
    assert reachable(found) == {}


@pytest.mark.ray
def test_the_page_loads_with_everything_that_it_names_and_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name in ("web/editor.css", "web/editor.js"):
        assert name in page.text
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/web/editor.py").status_code == 404


@pytest.mark.ray
def test_the_card_the_defaults_and_the_examples_are_told(client):
    told = client.get("/editor").json()
    assert told["card"]["instruction_suffix"] == SUFFIX
    assert told["defaults"] == {
        "guidance_scale": 2.0,
        "image_guidance_scale": 1.4,
        "num_inference_steps": 2,
    }
    assert client.get("/health").json() == {
        "status": "ok",
        "editor": "editor",
        "device": "cpu",
        "dtype": str(sampling_dtype("cpu")).removeprefix("torch."),
    }
    examples = client.get("/examples").json()
    assert len(examples) == 6
    assert all(example["instructions"] for example in examples)


@pytest.mark.ray
def test_an_edit_is_a_png_of_the_editors_size_and_the_same_seed_gives_the_same_bytes(client):
    first, again, other = ask(client, picture(90, 50)), ask(client, picture(90, 50)), ask(client, seed=2)
    assert first.headers["content-type"] == "image/png"
    assert first.headers["x-seed"] == "1"
    assert size_of(first.content) == (64, 64)
    assert first.content == again.content
    assert first.content != other.content


@pytest.mark.ray
def test_several_edits_come_as_json_with_seeds_in_a_row(client):
    reply = ask(client, num_edits=2, headers={"Accept": "application/json"}).json()
    assert [edit["seed"] for edit in reply["edits"]] == [1, 2]
    assert reply["edits"][0]["image"] != reply["edits"][1]["image"]
    assert (reply["instruction"], reply["editor"]) == ("make it red", "editor")
    refused = ask(client, num_edits=2)
    assert refused.status_code == 400
    assert "Accept: application/json" in message(refused)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": b"not a picture"}, "13 bytes starting 6e6f7420 are not a readable image"),
        ({"image": given("drawing.png")}, "119 bytes starting 25215053 are not a readable image"),
        ({"image": given("exif_TypeError.jpg")[:500]}, "500 bytes starting ffd8ffe0 are not a readable image"),
        ({"image": given("grey16.tiff")[:100]}, "100 bytes starting 49492a00 are not a readable image"),
        ({"guidance": "9"}, "unknown field 'guidance'; the fields are guidance_scale, image,"),
        ({"num_inference_steps": 201}, "num_inference_steps is '201': input should be less than or equal"),
        ({"guidance_scale": "much"}, "guidance_scale is 'much': input should be a valid number"),
        ({"guidance_scale": "nan"}, "guidance_scale is 'nan'"),
        ({"instruction": "x" * 1001}, "at most 1000 characters"),
        ({"instruction": "   "}, "instruction is blank"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_what_was_seen_and_wanted(client, fields, words):
    reply = ask(client, **fields)
    assert reply.status_code == 400
    assert words in message(reply)


@pytest.mark.ray
@pytest.mark.parametrize("name", ["exif_TypeError.jpg", "exif_struct_error.jpg", "phone.webp", "grey16.tiff"])
def test_pictures_of_phones_and_scanners_are_edited(client, name):
    reply = ask(client, image=given(name))
    assert reply.status_code == 200
    assert size_of(reply.content) == (64, 64)


@pytest.mark.ray
def test_what_models_see_decides_and_not_how_it_was_stored(client):
    assert ask(client, encoded(SCENE, "PNG")).content == ask(client, given("display_p3.png")).content
    assert ask(client, encoded(on_white(), "PNG")).content == ask(client, given("cutout_black_below.png")).content


@pytest.mark.ray
def test_too_many_pixels_are_413(client):
    reply = ask(client, encoded(Image.new("1", (8000, 6000)), "PNG"))
    assert reply.status_code == 413
    assert "8000 x 6000" in message(reply)


@pytest.mark.ray
@pytest.mark.parametrize("path", ["/edit", "/v1/images/edits", "/feedback"])
def test_a_body_that_is_no_form_is_refused_in_words(client, path):
    reply = client.post(path, json={"prompt": "make it red", "instruction": "make it red", "image": "AAAA"})
    assert reply.status_code == 415
    assert message(reply) == (
        "the request is of type 'application/json'; send multipart/form-data, as the openai client and curl -F do"
    )
    assert client.post(path).status_code == 415
    assert client.post(path, content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code == 400


@pytest.mark.ray
def test_a_missing_picture_and_a_huge_body_are_refused_in_words(client):
    reply = client.post("/edit", data={"instruction": "make it red"})
    assert (reply.status_code, message(reply)) == (400, "image is missing")
    huge = ask(client, image=bytes(21 * 2**20))
    assert huge.status_code == 413
    assert "20,971,520" in message(huge)


@pytest.mark.ray
def test_openais_client_edits_a_picture(client, address):
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300) as openai:
        reply = openai.images.edit(
            model="editor", image=("a.png", picture()), prompt="make it red", extra_body={"seed": 1}
        )
        same = ask(client, headers={"Accept": "application/json"}).json()
        assert reply.data[0].b64_json == same["edits"][0]["image"]
        listed = openai.images.edit(image=[("a.png", picture())], prompt="make it red", n=2)
        assert len(listed.data) == 2
        with pytest.raises(BadRequestError, match="a mask came"):
            openai.images.edit(image=("a.png", picture()), mask=("m.png", picture()), prompt="make it red")


@pytest.fixture
def openai(address):
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stream": True}, "stream is true; this editor answers when an edit is done"),
        ({"output_format": "jpeg"}, "output_format is 'jpeg'; this editor supports 'png'"),
        ({"output_format": "webp"}, "output_format is 'webp'"),
        ({"output_compression": 50}, "output_compression is 50; this editor supports 100"),
        ({"background": "transparent"}, "background is 'transparent'; this editor supports 'auto' or 'opaque'"),
        ({"partial_images": 2}, "partial_images is 2; this editor supports 0"),
        ({"response_format": "url"}, "response_format is 'url'; this editor supports 'b64_json'"),
        ({"mask": ("m.png", picture())}, "a mask came; this editor edits by instruction alone"),
        ({"size": "large"}, "size is 'large'; say 'auto' or a size such as '1024x1024'"),
        ({"n": 9}, "n is '9': input should be less than or equal to 4"),
        ({"image": [("a.png", picture()), ("b.png", picture())]}, "2 pictures came as 'image'"),
        ({"image": ("a.eps", given("drawing.png"))}, "119 bytes starting 25215053 are not a readable image"),
        ({"extra_body": {"steps": 9}}, "unknown field 'steps'"),
        ({"extra_body": {"num_inference_steps": 999}}, "num_inference_steps is '999'"),
    ],
)
def test_what_openais_client_asks_and_is_not_done_is_refused_by_name(openai, fields, words):
    with pytest.raises(BadRequestError) as caught:
        openai.images.edit(**{"image": ("a.png", picture()), "prompt": "make it red"} | fields)
    body = caught.value.body
    assert words in body["message"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert body["param"] == next(iter(fields.get("extra_body", fields)))


@pytest.mark.ray
@pytest.mark.parametrize(
    "fields",
    [
        {"size": "1024x1024", "model": "gpt-image-1"},
        {"size": "auto", "background": "auto", "output_format": "png", "output_compression": 100},
        {"quality": "high", "input_fidelity": "high", "user": "somebody", "background": "opaque"},
        {"stream": False, "partial_images": 0, "response_format": "b64_json", "n": 1},
        {"extra_body": {"moderation": "low", "safety_identifier": "somebody"}},
    ],
)
def test_what_openais_clients_always_send_is_taken(openai, fields):
    fields = {"extra_body": {}} | fields
    fields["extra_body"] = fields["extra_body"] | {"seed": 1}
    reply = openai.images.edit(image=("a.png", picture(90, 50)), prompt="make it red", **fields)
    assert (reply.size, reply.background, reply.output_format) == ("64x64", "opaque", "png")
    assert size_of(base64.b64decode(reply.data[0].b64_json)) == (64, 64)


@pytest.mark.ray
def test_openais_client_lists_the_editor(openai):
    assert [model.id for model in openai.models.list()] == ["editor"]
    assert openai.models.retrieve("editor").owned_by == "hive_ray"
    with pytest.raises(NotFoundError, match=r"no model 'gpt-image-1' here; the editor that is served is 'editor'"):
        openai.models.retrieve("gpt-image-1")


@pytest.mark.ray
def test_a_full_line_is_answered_503_and_who_hangs_up_makes_room(address):
    async def first_refusal() -> httpx.Response:
        async with httpx.AsyncClient(base_url=address, timeout=300) as client:

            def one(seed: int):
                fields = {"instruction": "make it red", "seed": seed, "num_inference_steps": 200}
                return client.post("/edit", data=fields, files={"image": picture()})

            tasks = [asyncio.create_task(one(seed)) for seed in range(8)]
            for earliest in asyncio.as_completed(tasks):
                reply = await earliest
                if reply.status_code != 200:
                    break
            for task in tasks:  # the others hang up
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return reply

    refused = asyncio.run(first_refusal())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
    assert "line full" in message(refused)
    with httpx.Client(base_url=address, timeout=300) as client:
        replies = [ask(client)]
        while replies[-1].status_code == 503:
            time.sleep(0.2)
            replies.append(ask(client))
    assert replies[-1].status_code == 200


@pytest.mark.ray
def test_a_thumb_is_stored_with_both_pictures_and_the_version_of_the_editor(client, folder):
    assert client.get("/editor").json()["feedback"]
    files = {"image": picture(seed=1), "edited": picture(seed=2)}
    said = {"instruction": "make it red", "liked": "true", "key": "a key of the page", "seed": 7}
    assert client.post("/feedback", data=said, files=files).json() == {"new": True}
    assert client.post("/feedback", data=said | {"liked": "false"}, files=files).json() == {"new": False}
    assert client.post("/feedback", data=said | {"liked": "perhaps"}, files=files).status_code == 400
    for broken in (given("drawing.png"), files["edited"][:200]):
        refused = client.post("/feedback", data=said | {"key": "another key"}, files=files | {"edited": broken})
        assert (refused.status_code, "not a readable image" in message(refused)) == (400, True)
    cut = files | {"image": given("cutout.webp"), "edited": picture(seed=2)}
    assert client.post("/feedback", data=said | {"liked": "false"}, files=cut).json() == {"new": False}
    database = Database(f"sqlite:///{folder.parent / 'feedback.sqlite'}")
    [found] = read_feedback(database)  # nothing of what was refused
    assert (found.editor, found.liked, found.settings["seed"]) == (model_digest(str(folder)), False, 7)
    assert np.array_equal(decode(found.edited_image), decode(picture(seed=2)))
    database.close()
