from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffssl.extract import ExtractError, UnknownModel
from diffssl.extract.zoo import BUNDLED, DEFAULTS, PUBLISHED, ModelSource, cache_folder, find_model, model_config
from guided_diffusion.script_util import model_and_diffusion_defaults

ADDRESS = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"

# What the authors publish beside each checkpoint, apart from what all of them share.
COMMON = (
    "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown True "
    "--use_scale_shift_norm True"
)
LSUN = (
    "--class_cond False --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
    "--num_res_blocks 2 --use_fp16 True"
)
FLAGS = {
    "adm64": (
        "64x64_diffusion.pt",
        "--class_cond True --dropout 0.1 --image_size 64 --noise_schedule cosine --num_channels 192 "
        "--num_head_channels 64 --num_res_blocks 3 --use_new_attention_order True --use_fp16 True",
    ),
    "adm128": (
        "128x128_diffusion.pt",
        "--class_cond True --image_size 128 --noise_schedule linear --num_channels 256 --num_heads 4 --num_res_blocks 2 "
        "--use_fp16 True",
    ),
    "adm256": (
        "256x256_diffusion.pt",
        "--class_cond True --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2 --use_fp16 True",
    ),
    "adm256-uncond": (
        "256x256_diffusion_uncond.pt",
        "--class_cond False --image_size 256 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2 --use_fp16 True",
    ),
    "adm512": (
        "512x512_diffusion.pt",
        "--class_cond True --image_size 512 --noise_schedule linear --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2 --use_fp16 False",
    ),
    "lsun-bedroom": ("lsun_bedroom.pt", f"{LSUN} --dropout 0.1"),
    "lsun-cat": ("lsun_cat.pt", f"{LSUN} --dropout 0.1"),
    "lsun-horse": ("lsun_horse.pt", f"{LSUN} --dropout 0.1"),
    "lsun-horse-nodropout": ("lsun_horse_nodropout.pt", f"{LSUN} --dropout 0.0"),
}


def parsed(flags: str) -> dict[str, Any]:
    """Flags as guided_diffusion's own command line reads them: each by the type of its default."""
    words = flags.split()
    values: dict[str, Any] = {}
    for name, text in zip(words[::2], words[1::2], strict=True):
        default = model_and_diffusion_defaults()[name.removeprefix("--")]
        values[name.removeprefix("--")] = text == "True" if isinstance(default, bool) else type(default)(text)
    return values


def test_defaults_are_those_of_guided_diffusion() -> None:
    theirs = model_and_diffusion_defaults()
    assert theirs == DEFAULTS
    assert {name: type(value) for name, value in theirs.items()} == {name: type(value) for name, value in DEFAULTS.items()}


def test_every_model_is_as_published() -> None:
    assert set(PUBLISHED) == set(FLAGS)
    for name, (file, flags) in FLAGS.items():
        assert PUBLISHED[name][0] == file
        assert model_config(name) == model_and_diffusion_defaults() | parsed(f"{COMMON} {flags}"), name


def test_the_bundled_model_is_the_default() -> None:
    source = find_model(None, None, None)
    assert source == find_model(BUNDLED, None, None)
    assert source.name == BUNDLED == "adm32-cifar10"
    assert source.weights.is_file()
    assert source.config["image_size"] == 32
    assert set(source.config) == set(DEFAULTS)


def test_a_copy_of_a_configuration_is_not_the_table() -> None:
    model_config("adm64")["image_size"] = 1
    dict(find_model(None, None, None).config)["image_size"] = 1
    assert model_config("adm64")["image_size"] == 64
    assert DEFAULTS["image_size"] == 64


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_published_weights_have_an_address_and_a_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("DIFFSSL_CACHE", str(tmp_path / "cache"))
    source = find_model(name, None, None)
    assert source == ModelSource(name, tmp_path / "cache" / FLAGS[name][0], model_config(name), f"{ADDRESS}/{FLAGS[name][0]}")


@pytest.mark.parametrize("value", [None, ""])
def test_cache_without_a_setting(value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("DIFFSSL_CACHE", raising=False)
    else:
        monkeypatch.setenv("DIFFSSL_CACHE", value)
    assert cache_folder() == tmp_path / ".cache" / "diffssl"


@pytest.mark.parametrize("name", ["adm-256", "", "ADM64", "../weights", "adm32"])
def test_unknown_names_list_the_known(name: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        find_model(name, None, None)
    assert repr(name) in str(caught.value)
    for known in [BUNDLED, *FLAGS]:
        assert known in str(caught.value)


def own(tmp_path: Path, config: str | bytes) -> ModelSource:
    (tmp_path / "own.pt").write_bytes(b"weights")
    (tmp_path / "own.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    return find_model(None, tmp_path / "own.pt", tmp_path / "own.json")


def test_a_users_own_model(tmp_path: Path) -> None:
    source = own(tmp_path, '{"image_size": 128, "class_cond": true}')
    assert source.weights == tmp_path / "own.pt"
    assert source.config == {**DEFAULTS, "image_size": 128, "class_cond": True}


def test_a_model_card_holds_a_configuration(tmp_path: Path) -> None:
    """The bundled model's own card is a valid --model-config."""
    bundled = find_model(None, None, None)
    source = own(tmp_path, bundled.weights.with_suffix(".json").read_text())
    assert source.config == bundled.config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"image_size": 64, "chanels": 3, "Dropout": 0}', r"\['Dropout', 'chanels'\]"),
        ("{}", "JSON object"),
        ("[1, 2]", "JSON object"),
        ("3", "JSON object"),
        ('{"model_config": 3}', "JSON object"),
        ('{"model_config": []}', "JSON object"),
        ("", "cannot read"),
        ("image_size: 64", "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, config: str | bytes, message: str) -> None:
    with pytest.raises(ExtractError, match=message) as caught:
        own(tmp_path, config)
    assert "own.json" in str(caught.value)


def test_an_unknown_flag_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ExtractError, match="chanels") as caught:
        own(tmp_path, '{"chanels": 3}')
    for flag in DEFAULTS:
        assert flag in str(caught.value)


@pytest.mark.parametrize("missing", ["own.pt", "own.json"])
def test_files_that_are_not_there(tmp_path: Path, missing: str) -> None:
    (tmp_path / "own.pt").write_bytes(b"")
    (tmp_path / "own.json").write_text("{}")
    (tmp_path / missing).unlink()
    with pytest.raises(ExtractError, match=missing):
        find_model(None, tmp_path / "own.pt", tmp_path / "own.json")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"image_size": 64}')
    with pytest.raises(ExtractError, match="checkpoint"):
        find_model(None, tmp_path, tmp_path / "own.json")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"dropout": 0.3}, True),
        ({"use_fp16": True}, True),
        ({"use_checkpoint": True}, True),
        ({"num_heads": 2}, False),
        ({"use_new_attention_order": True}, False),
        ({"noise_schedule": "cosine"}, False),
        ({"image_size": 32}, False),
        ({"rescale_timesteps": True}, False),
    ],
    ids=str,
)
def test_identity_is_what_the_network_computes(change: dict[str, Any], same: bool) -> None:
    """Two configurations with the same shapes of weights can still compute different things."""
    ours = ModelSource("a", Path("a"), DEFAULTS).identity()
    theirs = ModelSource("b", Path("b"), {**DEFAULTS, **change}).identity()
    assert (ours == theirs) == same
    assert json.loads(json.dumps(ours)) == ours
