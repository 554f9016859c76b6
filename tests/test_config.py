"""config.py: values are checked in words, come back from TOML as they went, and unknown keys name the closest one.

`plain_config` is config.py without the suite's type checks, which would speak first.
"""

import dataclasses
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vpl.config
from plain import plain_config

config = plain_config()
ConfigError = config.ConfigError
Config = config.Config

CHANGED = {
    "seed": 7,
    "data.format": "voc",
    "data.images": 'with "quotes", a \\ and a\ttab, Ünïcode # no comment',
    "clip.scale": 2.0,
    "clip.max_side": 640,
    "prompts.templates": ("a {}.", "the {}"),
    "prompts.class_words": False,
    "prototypes.image_temperature": 1e-4,
    "predict.scales": (0.5,),
}


def test_the_copy_is_the_module():
    assert Config().flat() == vpl.config.Config().flat()


# Defaults and presets


def test_defaults_with_a_source_are_the_published_values():
    rows = Config().flat()
    published = {
        "prototypes.text_temperature": 0.01,
        "prototypes.image_temperature": 0.03,
        "prototypes.step": 10.0,
        "prototypes.steps": 2000,
        "refine.rounds": 3,
        "refine.box_threshold": 0.4,
        "clip.attention_blocks": 8,
        "crf.rounds": 10,
        "crf.gaussian_sigma": 1.0,
        "crf.gaussian_weight": 3.0,
        "crf.bilateral_sigma": 67.0,
        "crf.bilateral_color": 3.0,
        "crf.bilateral_weight": 4.0,
        "labels.confidence": 0.95,
        "labels.background_exponent": 1.0,
    }
    assert {key: rows[key] for key in published} == published


def test_every_field_names_its_source_and_meaning_and_lies_in_its_bounds():
    default = Config()
    for item in dataclasses.fields(default)[1:]:
        section = getattr(default, item.name)
        assert type(section).name == item.name
        for one in dataclasses.fields(section):
            assert one.metadata["source"] in ("paper", "reference", "ours"), one.name
            assert one.metadata["help"], one.name


def test_every_number_is_bounded_at_both_ends():
    words = {
        f"{item.name}.{one.name}"
        for item in dataclasses.fields(Config)[1:]
        for one in dataclasses.fields(getattr(Config(), item.name))
        if one.type == "tuple[str, ...]"
    }
    assert "prompts.templates" in words
    for key, default in Config().flat().items():
        if isinstance(default, int | float | tuple) and not isinstance(default, bool) and key not in words:
            with pytest.raises(ConfigError, match=f"{key} is .*; expected a .*number from .* to "):
                Config().with_values({key: (10**250,) if isinstance(default, tuple) else type(default)(1e300)})


@pytest.mark.parametrize(
    ("key", "given", "source"),
    [
        ("prototypes.image_temperature", 0.03, "paper"),
        ("prototypes.image_temperature", 0.16, "ours, preset scenes"),
        ("prototypes.image_temperature", 0.05, "yours"),
        ("refine.box_threshold", 0.7, "reference"),
        ("prototypes.sinkhorn_rounds", 20, "reference"),
        ("prompts.templates", "inmap", "reference"),
        ("prompts.templates", "my {}", "yours"),
        ("data.classes", "voc", "ours, preset voc"),
        ("train.steps", 80000, "ours, preset coco"),
        ("seed", 0, "ours"),
    ],
)
def test_the_source_belongs_to_the_value(key, given, source):
    assert Config().with_values({key: given}).source(key) == source


def test_a_comment_tells_the_default_where_it_is_another():
    assert config.preset("scenes").comment("prototypes.image_temperature") == (
        "ours, preset scenes (default 0.03, paper): τI: smaller makes vision seeds sharper"
    )
    assert Config().with_values({"data.images": "photos"}).comment("data.images").startswith("yours: folder of images")


def test_presets():
    assert config.preset("voc").differences(Config()) == {
        "data.format": ("voc", "folder"),
        "data.classes": ("voc", ""),
        "data.split": ("train", ""),
    }
    assert config.preset("coco").refine.box_threshold == 0.7
    assert config.preset("coco").data.format == "coco"
    assert config.preset("scenes").data.classes == "scenes"
    with pytest.raises(ConfigError, match="unknown preset 'voc2012'; expected one of voc, coco, scenes"):
        config.preset("voc2012")


def test_presets_are_rows_that_nobody_changes():
    with pytest.raises(TypeError):
        config.PRESETS["voc"] = {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().clip.scale = 3.0


# Values


@pytest.mark.parametrize("name", ["clip-es", "inmap", "photo"])
def test_template_strategies(name):
    expected = config.TEMPLATE_STRATEGIES[name]
    assert Config().with_values({"prompts.templates": name}).prompts.templates == expected
    assert config.PromptConfig(templates=(name,)).templates == expected
    assert config.PromptConfig(templates=name).templates == expected


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("seed", "3", 3),
        ("clip.scale", "2", 2.0),
        ("clip.scale", "1e-1", 0.1),
        ("refine.enabled", "false", False),
        ("predict.scales", "[1, 0.5]", (1.0, 0.5)),
        ("data.images", "3", "3"),
        ("data.images", "a b", "a b"),
        ("prompts.templates", '["one {}", "two {}"]', ("one {}", "two {}")),
        ("prompts.templates", "my {}", ("my {}",)),
    ],
)
def test_values_given_as_text(key, text, expected):
    found = Config().with_values({key: text}).flat()[key]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("seed", -1, r"seed is -1; expected a whole number from 0 to 9223372036854775807\."),
        ("seed", True, "seed is true; expected a whole number"),
        ("seed", "x", "seed is 'x'; expected a whole number"),
        ("clip.max_side", 3, r"clip.max_side is 3; expected a whole number from 16 to 16384\."),
        ("clip.max_side", 32.5, r"clip.max_side is 32.5; expected a whole number\."),
        ("clip.max_side", "wide", r"clip.max_side is 'wide'; expected a whole number\."),
        ("clip.scale", "wide", r"clip.scale is 'wide'; expected a number\."),
        ("clip.scale", True, r"clip.scale is true; expected a number\."),
        ("clip.scale", "nan", r"clip.scale is nan; expected a finite number\."),
        ("crf.gaussian_weight", "inf", r"crf.gaussian_weight is inf; expected a finite number\."),
        ("crf.gaussian_weight", 10**400, r"crf.gaussian_weight is inf; expected a finite number\."),
        ("crf.gaussian_weight", -1, r"crf.gaussian_weight is -1.0; expected a number from 0.0 to 10000.0\."),
        ("crf.enabled", 1, r"crf.enabled is 1; expected true or false\."),
        ("crf.enabled", "yes", r"crf.enabled is 'yes'; expected true or false\."),
        ("crf.mode", "quick", r"crf.mode is 'quick'; expected one of exact, fast\."),
        ("data.format", 3, r"data.format is 3; expected a text\."),
        ("data.images", "\udcff", r"data.images is '\\udcff', which is no valid UTF-8; rename"),
        ("predict.scales", "1.5", r"predict.scales is 1.5; expected a list. Write it as \[a, b\]\."),
        ("predict.scales", "a", r"predict.scales is 'a'; expected a list. Write it as \[a, b\]\."),
        ("predict.scales", "[1, 'a']", r"predict.scales is 'a'; expected a number\."),
        ("predict.scales", [0.001], r"predict.scales is 0.001; expected a number from 0.05 to 8.0\."),
        ("prompts.templates", ["no braces"], r"prompts.templates is \['no braces'\]; expected texts with one {} each"),
        (
            "prompts.templates",
            [],
            r"expected texts with one {} each and no other braces, or one of clip-es, inmap, photo\.",
        ),
        ("prompts.templates", ["{} {}"], "expected texts with one {} each"),
        ("clip.scale", "[" * 20_000, "expected a number"),
        ("clip.scale", "9" * 9_999, "expected a number"),
    ],
)
def test_wrong_values_are_told(key, given, words):
    with pytest.raises(ConfigError, match=words):
        Config().with_values({key: given})


def test_bounds_belong_to_the_range():
    assert Config().with_values({"clip.max_side": 16}).clip.max_side == 16
    assert Config().with_values({"clip.max_side": 16384}).clip.max_side == 16384


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("prototypes.fi", "prototypes.phi"),
        ("crf.round", "crf.rounds"),
        ("sead", "seed"),
        ("clip.maxside", "clip.max_side"),
        ("max_side", "clip.max_side"),
    ],
)
def test_unknown_keys_name_the_closest(key, closest):
    with pytest.raises(ConfigError, match=rf"unknown configuration key '{key}'; the closest one is '{closest}'\."):
        Config().with_values({key: 1})


def test_with_values_changes_nothing_else():
    default = Config()
    changed = default.with_values({"crf.rounds": 5, "seed": 1})
    assert changed.differences(default) == {"seed": (1, 0), "crf.rounds": (5, 10)}
    assert default == Config() and hash(default) == hash(Config())
    assert default.with_values({}) == default


# TOML


def test_toml_round_trip(tmp_path):
    changed = Config().with_values(CHANGED)
    assert set(changed.differences(Config())) == set(CHANGED)
    path = tmp_path / "config.toml"
    for one in (Config(), changed, config.preset("coco")):
        path.write_text(one.to_toml(), encoding="utf-8")
        assert Config.from_toml(path) == one
        assert Config.from_toml(path).to_toml() == one.to_toml()


@pytest.mark.slow
@given(st.text(st.characters(codec="utf-8"), max_size=40), st.floats(0.05, 16.0), st.integers(0, 2**62))
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_and_number_survive_toml(tmp_path, text, number, seed):
    one = Config().with_values({"data.images": text, "clip.scale": number, "seed": seed})
    path = tmp_path / "config.toml"
    path.write_bytes(one.to_toml().encode())
    assert Config.from_toml(path) == one


def test_toml_tells_source_and_meaning():
    text = Config().to_toml()
    assert tomllib.loads(text)["prototypes"]["image_temperature"] == 0.03
    line = next(line for line in text.splitlines() if line.startswith("image_temperature"))
    assert line == "image_temperature = 0.03 # paper: τI: smaller makes vision seeds sharper"


def test_toml_over_a_base(tmp_path):
    (tmp_path / "own.toml").write_text("seed = 4\n[crf]\nrounds = 2\n")
    found = Config.from_toml(tmp_path / "own.toml", base=config.preset("coco"))
    assert found.differences(config.preset("coco")) == {"seed": (4, 0), "crf.rounds": (2, 10)}
    assert found.refine.box_threshold == 0.7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed = ", r"is no valid TOML \(.*\); mend that line"),
        (b"\xff", "is no valid TOML"),
        (b"a = " + b"[" * 20_000, "is no valid TOML"),
        (b"[crf]\nrouns = 3\n", "unknown configuration key 'crf.rouns'; the closest one is 'crf.rounds'"),
        (b"[cfr]\nrounds = 3\n", "unknown configuration key 'cfr.rounds'; the closest one is 'crf.rounds'"),
        (b"crf = 3\n", "unknown configuration key 'crf'"),
        (b"[seed]\na = 3\n", "unknown configuration key 'seed.a'"),
        (b"[crf]\nrounds = 1979-05-27\n", "expected a whole number"),
        (b"[crf.rounds]\na = 1\n", "expected a whole number"),
    ],
)
def test_wrong_toml_is_told(tmp_path, content, words):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        Config.from_toml(path)


def test_missing_toml_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"can't be read \(No such file or directory\); check the path"):
        Config.from_toml(tmp_path / "no.toml")


def test_a_reason_stands_beside_its_value():
    written = Config().to_toml({"prototypes.phi": "0.5 has the best score."})
    lines = [line for line in written.splitlines() if "vpl tune" in line]
    assert len(lines) == 1 and lines[0].startswith("phi = 0.5 #") and lines[0].endswith("0.5 has the best score.")
    assert tomllib.loads(written) == tomllib.loads(Config().to_toml())


def test_a_file_of_before_with_a_value_that_is_gone_is_read(tmp_path):
    (tmp_path / "old.toml").write_text("[train]\ncache_gb = 2.0\nsteps = 7\n")
    assert Config.from_toml(tmp_path / "old.toml").train.steps == 7
    with pytest.raises(ConfigError, match=r"unknown configuration key 'train.cache_gb'"):
        Config().with_values({"train.cache_gb": 1.0})


def test_the_default_and_the_preset_paper_are_one_look():
    assert not Config().looks.vote and not config.preset("paper").looks.vote
    changed = config.preset("paper").with_values({"looks.makers": ("sclip",)}).with_values(config.of_presets(["paper"]))
    assert changed == config.preset("paper") and config.preset("scenes", "paper") == config.preset("scenes")


def test_presets_of_data_and_method_go_together():
    both = config.preset("voc", "weclip")
    assert both.data.format == "voc" and both.decoder.network == "weclip" and both.train.learning_rate == 0.002
    assert config.preset("coco", "clip-es").refine.box_threshold == 0.7
    assert both.source("crf.bilateral_color") == "reference, preset weclip"
    with pytest.raises(ConfigError, match="unknown preset 'wclip'; expected one of voc, coco, scenes, paper, clip-es"):
        config.preset("voc", "wclip")


NETWORK = ("decoder.cells", "train.scale_low", "train.scale_high")


@pytest.mark.parametrize("names", [("paper",), ("clip-es",), ("weclip",), ("scenes", "paper")])
def test_what_a_quality_sets_is_set_by_every_method_s_preset_too(names):
    chosen, usual = config.of_presets(names), Config().flat()
    assert set(config.quality("standard")) <= chosen.keys(), "or a new run would mix both"
    assert {key: chosen[key] for key in NETWORK} == {key: usual[key] for key in NETWORK}


def test_a_quality_chooses_looks_crf_and_network_together():
    assert len({frozenset(row) for row in config.QUALITY.values()}) == 1
    taught = {name: tuple(row[key] for key in NETWORK) for name, row in config.QUALITY.items()}
    assert taught == {"draft": (1, 0.5, 2.0), "standard": (4, 0.75, 1.5), "best": (4, 0.75, 1.5)}
    costs = {name: Config().with_values(config.quality(name)).looks.encodings for name in config.QUALITY}
    assert costs["draft"] == costs["standard"] == 1 < costs["best"]
    assert Config().with_values(config.quality("best")).source("looks.flip") == "ours, quality best"
    with pytest.raises(ConfigError, match="unknown quality 'good'; expected one of draft, standard, best"):
        config.quality("good")


@pytest.mark.parametrize("data", [b"", b"\n", bytes(300)])
def test_an_empty_configuration_is_a_torn_one_and_no_wish_for_the_defaults(tmp_path, data):
    (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(ConfigError, match="is empty, so what was run can't be known"):
        Config.from_toml(tmp_path / "config.toml")
