"""What is known of a model before a weight is read: what it is, which files are read, what it was made for."""

import json
import shutil

import pytest
import torch

from components.common.errors import ArtifactError, UserError
from components.common.files import digest
from components.diffusion.folder import (
    check_folder,
    check_made_for,
    folder_digests,
    loaded_files,
    part_digests,
    parts_of,
    variant_of,
)
from components.diffusion.load import load_pipeline
from components.diffusion.text import load_towers
from tests.standins import KINDS


@pytest.fixture
def copied(standin, tmp_path):
    """A stand-in that a test may spoil."""

    def copy(kind, form="published"):
        return shutil.copytree(standin(kind, form), tmp_path / kind)

    return copy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "variant"), [("published", None), ("fp16", "fp16"), ("plain", None)])
def test_every_form_opens(standin, kind, form, variant):
    """Plain, sharded and fp16 files are found; pickles and non-EMA weights are never among the files that are read."""
    folder = standin(kind, form)
    read = {p.name for part in parts_of(folder) for p in loaded_files(folder, part)}

    check_folder(folder)
    assert variant_of(folder) == variant
    assert not any(name.endswith(".bin") or "non_ema" in name for name in read)
    assert any("fp16" in name for name in read) == (variant == "fp16")
    assert any("-of-" in name for name in read) == (kind == "sdxl" and form == "published")
    assert load_pipeline(folder).unet.dtype == torch.float32


def test_digests_are_of_what_is_read(copied):
    """Another `.bin` or fp16 file changes no digest; another weight changes that of its part alone."""
    folder = copied("sd15")
    before, whole = part_digests(folder), folder_digests(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"other")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"other")
    assert (part_digests(folder), folder_digests(folder)) == (before, whole)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    after = part_digests(folder)

    assert {part for part in after if after[part] != before[part]} == {"unet"}
    assert folder_digests(folder) != whole


def test_digest_of_a_part_that_is_read_whole_is_its_folders(standin):
    """So artifacts of the embedded model, which name folders' digests, stay valid."""
    folder = standin("sd21", "plain")

    assert part_digests(folder) == {part: digest(folder / part) for part in parts_of(folder)}


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        (
            "unet",
            "cross_attention_dim",
            64,
            "reads states of width 64, and its text encoders write 32; use the parts of one",
        ),
        ("unet", "in_channels", 9, "takes 9 channels, as one for inpainting does; use the text-to-image model"),
        ("scheduler", "prediction_type", "sample", "predicts 'sample', which is not supported; use epsilon or v_pred"),
    ],
)
def test_a_model_whose_parts_do_not_fit_is_refused(copied, part, key, value, said):
    """Widths, channels and prediction type are read in the configurations, before anything is loaded."""
    folder = copied("sd15")
    (path,) = [p for p in (folder / part).glob("*.json") if "config" in p.name]
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(UserError, match=said):
        check_folder(folder)


@pytest.mark.parametrize("named", [[None, None], None, "absent"])
def test_a_pipeline_without_a_part_is_refused_in_plain_words(copied, named):
    """A part that model_index.json has as null, or does not name, is missing; no class called None is spoken of."""
    folder = copied("sd15", "plain")
    index = json.loads((folder / "model_index.json").read_text())
    index = index | {"tokenizer": named} if named != "absent" else {k: v for k, v in index.items() if k != "tokenizer"}
    (folder / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(UserError) as caught:
        check_folder(folder)
    assert str(caught.value) == (
        f"{folder} has no tokenizer (model_index.json names none); use a pipeline with all its parts"
    )


def test_a_single_part_and_a_folder_of_pickles_are_refused(copied):
    """A VAE's folder says what it is; pickles are named, with the way out."""
    folder = copied("sd15")
    with pytest.raises(UserError, match=r"vae is no diffusers pipeline \(it is a single AutoencoderKL\)"):
        check_folder(folder / "vae")
    for path in folder.glob("unet/*.safetensors"):
        path.unlink()
    with pytest.raises(ArtifactError, match="unet holds pickles and no safetensors file; save it as safetensors"):
        check_folder(folder)


def test_an_incomplete_set_of_shards_is_refused(copied):
    """With one shard of the U-Net missing only the fp16 files are whole, and without those nothing is."""
    folder = copied("sdxl")
    next(folder.glob("unet/*-of-*.safetensors")).unlink()
    assert variant_of(folder) == "fp16"
    next(folder.glob("unet/*.fp16.safetensors")).unlink()
    with pytest.raises(ArtifactError, match="unet lacks a file of its weights, or the variant that the other parts"):
        check_folder(folder)
    for path in folder.glob("unet/*.safetensors"):
        path.unlink()
    with pytest.raises(ArtifactError, match="unet holds no safetensors file; restore its weights"):
        check_folder(folder)


def test_made_for_another_model_is_one_sentence(standin):
    """Another digest, and an artifact that names none, are refused; the right one is not."""
    folder = standin("sd15")
    here = part_digests(folder, ("text_encoder",))
    check_made_for(here, here, "the filter", folder)

    with pytest.raises(ArtifactError, match="the filter was made for another text_encoder than the one of"):
        check_made_for({"text_encoder": "0" * 64}, here, "the filter", folder)
    with pytest.raises(ArtifactError, match="the filter was made for an unknown text_encoder"):
        check_made_for({}, here, "the filter", folder)


def cut(path):
    """A download that stopped."""
    path.write_bytes(path.read_bytes()[:5000])


def point(path):
    """What `git clone` leaves where Git LFS is not installed."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167540\n")


@pytest.mark.parametrize("spoil", [cut, point])
def test_a_weight_file_that_is_not_whole_is_refused(copied, spoil):
    """A file that was cut short and a pointer of Git LFS are found by the header, before anything is loaded."""
    folder = copied("sd15", "plain")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    spoil(path)

    with pytest.raises(ArtifactError) as caught:
        check_folder(folder)
    assert str(caught.value) == f"{path} is no safetensors file, or was cut short; download the model again"


def test_a_tokenizer_without_its_vocabulary_is_refused(copied):
    """vocab.json without merges.txt makes no tokenizer."""
    folder = copied("sd15", "plain")
    (folder / "tokenizer" / "merges.txt").unlink()

    with pytest.raises(
        ArtifactError, match=r"tokenizer has no tokenizer\.json, nor vocab\.json and merges\.txt; download"
    ):
        check_folder(folder)


def test_weights_of_another_shape_are_one_sentence(copied):
    """What diffusers and transformers refuse to load is an error of the artifact, with their first sentence in it."""
    folder = copied("sd15", "plain")
    for part, key, value in (("text_encoder", "intermediate_size", 48), ("unet", "block_out_channels", [16, 16])):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    for load in (load_pipeline, load_towers):
        with pytest.raises(ArtifactError, match=r"cannot be opened \(.*\); download the model again") as caught:
            load(folder)
        assert "\n" not in str(caught.value)
