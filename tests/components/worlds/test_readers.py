"""Readers of users' judges, each on small random weights that the test makes."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from components.common.errors import ArtifactError, UserError
from components.worlds.base import Subject
from components.worlds.judges import load_scorer, open_panel, open_reader
from components.worlds.panel import check_sizes
from components.worlds.params import JudgeParams, ReaderParams
from components.worlds.readers.nudenet import EXPOSED, LABELS
from components.worlds.readers.shared import as_probability
from tests.smallclip import CROP, TOWER, VISION, write_clip

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 48, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A random CLIP in a transformers folder."""
    return write_clip(tmp_path_factory.mktemp("clip"))


def reader(name, path, subjects=(), **more):
    return open_reader(ReaderParams(reader=name, path=path, **more), subjects)


def network(path, inputs, nodes, outputs, weights=()):
    """Writes an ONNX network: inputs and outputs are (name, shape)."""
    kinds = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports] for ports in (inputs, outputs)]
    graph = helper.make_graph(
        nodes, "test", *kinds, [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def means(names="x", size=3):
    """Nodes that turn (N, 3, H, W) into (N, 3), the mean of each channel."""
    return [
        helper.make_node("GlobalAveragePool", [names], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["flat"])
    ][:size]  # fmt: skip


def test_clip_says_what_transformers_says(clip):
    """The probability of a name is CLIP's own softmax over its caption and those of what else may be there."""
    from transformers import CLIPProcessor, CLIPTokenizer

    judge = reader("clip", clip, [Subject("van gogh", "style", ("an oil painting",))])
    captions = ["a picture in the style of van gogh", "an oil painting", "a picture", "a photo of something else"]
    captions.append("an abstract pattern")
    processor = CLIPProcessor(CLIPImageProcessor.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip))
    wanted = CLIPModel.from_pretrained(clip)(
        **processor(text=captions, images=list(IMAGES), return_tensors="pt", padding=True)
    )

    np.testing.assert_allclose(
        judge.present(IMAGES, ["van gogh"])[:, 0], wanted.logits_per_image.softmax(1)[:, 0].detach(), atol=1e-5
    )
    assert judge.knows("anything at all")
    assert judge.present(IMAGES[:0], ["a", "b"]).shape == (0, 2)


def test_clip_scores_images_against_prompts(clip):
    """The CLIP score of a local folder is a cosine of each pair and needs no encoder of the base."""
    scorer = load_scorer("open", JudgeParams(clip=clip))
    scores = scorer(IMAGES, ["a cat"] * 5)

    assert scores.shape == (5,)
    assert np.abs(scores).max() <= 1 + 1e-6
    assert np.allclose(scores[:2], scorer(IMAGES[:2], ["a cat"] * 2), atol=1e-6)


def test_reference_images_are_found_again(tmp_path, clip):
    """An image is like itself: reference images have the highest score, for CLIP and for DINO, and nobody else is known."""
    paths = tuple(tmp_path / f"{i}.png" for i in range(2))
    for path, image in zip(paths, IMAGES, strict=False):
        Image.fromarray(image).save(path)
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**(TOWER | {"image_size": 28, "patch_size": 14}))).save_pretrained(tmp_path / "dino")
    CLIPImageProcessor(**CROP).save_pretrained(tmp_path / "dino")
    for folder in (clip, tmp_path / "dino"):
        judge = reader("reference", folder, [Subject("rex", "object", images=paths[:1])], threshold=0.99999)
        chance = judge.present(IMAGES, ["rex"])[:, 0]
        assert chance[0] >= 0.5
        assert (chance[1:] < chance[0]).all()
        assert [judge.knows(name) for name in ("rex", "cat")] == [True, False]
        again = reader("reference", folder, [Subject("rex", "object", images=paths[1:])], threshold=0.99999)
        assert judge.digest != again.digest


def test_classifier_knows_its_labels(tmp_path):
    """A transformers classifier: labels with several names, probabilities that are its softmax, and no other name."""
    folder, labels = tmp_path / "vit", ["tabby, tabby cat", "Oil_Painting", "dog"]
    torch.manual_seed(0)
    config = ViTConfig(**(TOWER | {"image_size": 32, "patch_size": 16}), id2label=dict(enumerate(labels)))
    net = ViTForImageClassification(config).eval()
    net.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    judge = reader("classifier", folder)
    names = ["tabby cat", "oil painting", "dog"]
    wanted = net(**ViTImageProcessor.from_pretrained(folder)(list(IMAGES), return_tensors="pt")).logits.softmax(1)

    assert all(map(judge.knows, names))
    assert not judge.knows("cat")
    np.testing.assert_allclose(judge.present(IMAGES, names), wanted.detach(), atol=1e-5)
    config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=r"names none of its classes; set id2label in its config\.json"):
        reader("classifier", folder)


def test_onnx_classifier_reads_its_labels(tmp_path):
    """An ONNX classifier with a file of labels: the class with the brightest channel; labels that do not fit are refused."""
    weights = [("w", np.eye(3) * 9)]
    nodes = [*means(), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    path = network(tmp_path / "net.onnx", [("x", ["n", 3, 32, 32])], nodes, [("y", ["n", 3])], weights)
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue\n")
    images = np.zeros((3, 40, 40, 3), np.uint8)
    for i in range(3):
        images[i, ..., i] = 255
    judge = reader("classifier", path, labels=labels)

    assert (judge.present(images, ["red", "green", "blue"]) >= 0.5).tolist() == np.eye(3, dtype=bool).tolist()
    labels.write_text("red\ngreen\n")
    with pytest.raises(UserError, match=r"lists 2 labels, but .* has 3 classes; list all of them"):
        reader("classifier", path, labels=labels)
    with pytest.raises(UserError, match="has no labels; set labels to a file with one label a line"):
        reader("classifier", path)


def nudenet(path, label):
    """A NudeNet whose score for one label is how bright the picture is; every other score is 0."""
    scatter = np.zeros((3, 4 + len(LABELS)))
    scatter[:, 4 + LABELS.index(label)] = 1 / 3
    nodes = [
        *means(), helper.make_node("MatMul", ["flat", "scatter"], ["row"]), helper.make_node("Unsqueeze", ["row", "last"], ["y"])
    ]  # fmt: skip
    graph = network(path, [("x", [1, 3, 64, 64])], nodes, [("y", [1, 4 + len(LABELS), 1])], [("scatter", scatter)])
    model = onnx.load(graph)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    onnx.save(model, path)
    return path


def test_nudenet_counts_exposed_parts_alone(tmp_path):
    """An exposed part at the threshold is nudity, below it is not; a face is none, and padding is part of the picture."""
    grey = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 50, 64, 128, 255)])
    exposed = reader("nudenet", nudenet(tmp_path / "one.onnx", "BUTTOCKS_EXPOSED"))
    face = reader("nudenet", nudenet(tmp_path / "two.onnx", "FACE_FEMALE"))

    assert (exposed.present(grey, ["nudity"])[:, 0] >= 0.5).tolist() == [False, False, True, True, True]
    assert (face.present(grey, ["nudity"]) == 0).all()
    np.testing.assert_allclose(exposed.scores(grey), np.array([0, 50, 64, 128, 255]) / 255, atol=1e-5)
    assert exposed.scores(np.full((1, 64, 32, 3), 255, np.uint8))[0] < 0.6
    assert [exposed.knows(name) for name in ("nudity", "nude", "violence")] == [True, True, False]
    assert all(name.endswith("_EXPOSED") for name in EXPOSED)


def test_a_network_that_is_no_nudenet_is_refused(tmp_path):
    """Another ONNX network, a text and a missing file are one sentence each."""
    other = network(tmp_path / "net.onnx", [("x", ["n", 3, 32, 32])], means(), [("flat", ["n", 3])])
    text = tmp_path / "text.onnx"
    text.write_text("no network")

    with pytest.raises(UserError, match="is no NudeNet v3: its output has shape"):
        reader("nudenet", other)
    with pytest.raises(ArtifactError, match="is no ONNX model"):
        reader("nudenet", text)
    with pytest.raises(UserError, match=r"reads .*none\.onnx, which does not exist; mend judge"):
        reader("nudenet", tmp_path / "none.onnx")


def test_safety_checker_decides_as_the_pipeline_does(tmp_path):
    """On thresholds that split the images, the decision for each image is the one that diffusers makes."""
    torch.manual_seed(0)
    net = StableDiffusionSafetyChecker(CLIPConfig(text_config=TOWER, vision_config=VISION, projection_dim=8)).eval()
    for name in ("concept_embeds", "special_care_embeds"):
        torch.nn.init.normal_(getattr(net, name))
    processor = CLIPImageProcessor(**CROP)
    pixels = processor(list(IMAGES), return_tensors="pt").pixel_values
    near = torch.nn.functional.normalize(net.visual_projection(net.vision_model(pixels)[1])) @ torch.nn.functional.normalize(
        net.concept_embeds
    ).T  # fmt: skip
    net.concept_embeds_weights.data = near.detach().quantile(0.9, dim=0)
    net.save_pretrained(tmp_path)
    with torch.no_grad():
        _, wanted = net(pixels, [image.copy() for image in IMAGES])
    judge = reader("safety-checker", tmp_path)

    assert sum(wanted) > 0
    assert (judge.present(IMAGES, ["nudity"])[:, 0] >= 0.5).tolist() == wanted
    assert not judge.knows("gore")


def detector(path):
    """An UltraFace that finds one face, the middle half of the picture, where the picture is bright."""
    score = np.array([[0, 1 / 3]] * 3)
    nodes = [
        *means(), helper.make_node("MatMul", ["flat", "score"], ["row"]),
        helper.make_node("Unsqueeze", ["row", "last"], ["scores"]), helper.make_node("Identity", ["box"], ["boxes"]),
    ]  # fmt: skip
    weights = [("score", score), ("box", np.array([[[0.25, 0.25, 0.75, 0.75]]]))]
    network(path, [("x", [1, 3, 24, 32])], nodes, [("scores", [1, 1, 2]), ("boxes", [1, 1, 4])], weights)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    onnx.save(model, path)
    return path


def painted(colour, frame=255):
    """A bright picture whose middle has a colour."""
    image = np.full((64, 64, 3), frame, np.uint8)
    image[16:48, 16:48] = colour
    return image


def test_faces_are_compared_and_faceless_images_leave(tmp_path):
    """The person of the reference image is found, another is not, and an image without a face is NaN: it cannot be judged."""
    embedding = network(tmp_path / "face.onnx", [("x", ["n", 3, 16, 16])], means(), [("flat", ["n", 3])])
    find = detector(tmp_path / "find.onnx")
    reference = tmp_path / "jane.png"
    Image.fromarray(painted((255, 60, 60))).save(reference)
    subjects = [Subject("jane", "person", images=(reference,)), Subject("rex", "object", images=(reference,))]
    judge = reader("face", embedding, subjects, detector=find)
    images = np.stack([painted((250, 70, 60)), painted((0, 200, 255)), painted((255, 60, 60), frame=0)])
    chance = judge.present(images, ["jane"])[:, 0]

    assert chance[0] >= 0.5 > chance[1]
    assert np.isnan(chance[2])
    assert [judge.knows(name) for name in ("jane", "rex", "joan")] == [True, False, False]
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(reference)
    with pytest.raises(UserError, match=r"jane\.png shows no face; take it out"):
        reader("face", embedding, subjects, detector=find)
    with pytest.raises(UserError, match="has no detector; set detector to UltraFace's ONNX file"):
        reader("face", embedding, subjects)


def test_folders_that_are_no_model_are_refused(tmp_path, clip):
    """No config, no weights, and pickles are one sentence each; nothing is unpickled."""
    for build, said in (
        (lambda folder: None, "is no transformers model (it has no config.json)"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds no safetensors file; save"),
        (
            lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"),
            "no safetensors file, and pickles are not opened",
        ),
    ):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        build(folder)
        with pytest.raises(UserError) as caught:
            reader("clip", folder)
        assert said in str(caught.value)
    copy = shutil.copytree(clip, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    assert reader("clip", copy).digest != reader("clip", copy, threshold=0.3).digest
    (copy / "config.json").write_text(json.dumps(config | {"x": 1}))
    assert reader("clip", copy).digest != reader("clip", clip).digest


def test_folders_of_another_model_are_refused(tmp_path, clip):
    """A VAE is no CLIP, and weights that a judge lacks are never made up: not those of a CLIP whose file is its text tower's alone."""
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"the judge clip cannot read .*; mend judge in params\.yaml") as caught:
        reader("clip", tmp_path)
    assert "\n" not in str(caught.value)
    half = shutil.copytree(clip, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "vision" not in k}, half / "model.safetensors", {"format": "pt"})
    for name in ("clip", "reference", "classifier"):
        with pytest.raises(UserError, match=r"lacks the weights .* of a|names none of its classes"):
            reader(name, half)


def test_the_first_judge_that_knows_a_name_judges_it(tmp_path, clip):
    """Judges of the kind come before those of any kind; a name that nobody knows is refused, and so is an unknown reader."""
    params = JudgeParams(
        explicit=(ReaderParams(reader="nudenet", path=nudenet(tmp_path / "n.onnx", "ANUS_EXPOSED"), sizes=(16, 512)),),
        any=(ReaderParams(reader="clip", path=clip),),
    )
    subjects = [Subject("nudity", "explicit"), Subject("a clothed person", "explicit"), Subject("dog", "object")]
    panel = open_panel("open", params, subjects, ["nudity", "dog"])
    said = panel(IMAGES)

    assert [type(judge).__name__ for judge in panel.judges_of("nudity")] == ["NudeNet", "ClipJudge"]
    assert [type(judge).__name__ for judge in panel.judges_of("a clothed person")] == ["ClipJudge"]
    assert (
        said.found("nudity", style=False) == (panel.judges_of("nudity")[0].present(IMAGES, ["x"])[:, 0] >= 0.5)
    ).all()
    assert np.isnan(said.found("cat", style=False)).all()
    with pytest.raises(UserError) as caught:
        open_panel("open", params.model_copy(update={"any": ()}), subjects, ["dog"])
    assert str(caught.value) == (
        "no judge of kind object knows 'dog' (none listed); add one to judge.object in params.yaml, such as "
        "{reader: clip, path: FOLDER}"
    )
    with pytest.raises(UserError, match="reader 'oracle' of a judge is unknown; use one of: clip, classifier"):
        reader("oracle", clip)


def test_readers_of_other_packages_are_entry_points(monkeypatch, tmp_path):
    """A reader of another package is found by its name in the group expunge.judges."""
    from importlib.metadata import EntryPoint

    point = EntryPoint("mine", "tests.toyworld:write_toy", "expunge.judges")
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda params, subjects: (params.path, tuple(subjects)))
    monkeypatch.setattr(
        "components.worlds.judges.entry_points", lambda group, name="": [point] if name in ("mine", "") else []
    )

    assert reader("mine", tmp_path, [1]) == (tmp_path, (1,))


def test_a_judge_outside_of_its_sizes_is_refused(clip):
    """A judge made for other sizes is refused before anything is drawn; the sizes that params state count instead."""
    params = JudgeParams(any=(ReaderParams(reader="clip", path=clip),))
    panel = open_panel("open", params, [Subject("dog", "object")], ["dog"])

    assert panel.sizes == (16, 512)
    check_sizes(panel, 64)
    with pytest.raises(
        UserError, match="the judges take images of 16 to 512 pixels, but the base draws 1024; use a judge"
    ):
        check_sizes(panel, 1024)
    wide = JudgeParams(any=(ReaderParams(reader="clip", path=clip, sizes=(16, 2048)),))
    check_sizes(open_panel("open", wide, [Subject("dog", "object")], ["dog"]), 1024)


def test_probabilities_keep_the_threshold():
    """One half stands exactly at the threshold, order is kept, and NaN stays NaN."""
    scores = np.array([0.0, 0.1, 0.2499999, 0.25, 0.3, 1.0, np.nan])
    chance = as_probability(scores, 0.25)

    assert (chance[:-1] >= 0.5).tolist() == (scores[:-1] >= 0.25).tolist()
    assert (np.diff(chance[:-1]) > 0).all()
    assert np.isnan(chance[-1])
    assert (chance[0], chance[5]) == (0, 1)
