from dataclasses import dataclass, field

import pytest
from accelerate import PartialState

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.settings import (
    check_at_least,
    check_choice,
    check_settings,
    help_text,
    make_model_arguments,
    one_line_errors,
    parse_config,
    required,
    setting,
)


@dataclass
class ExampleConfig:
    data: str
    learning_rate: float = 1e-4
    num_steps: int = 10
    use_flip: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    channels: int | None = 3
    model: dict = field(default_factory=dict)
    decays: tuple[float, ...] = ()


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: folder\nlearning_rate: 1e-3\nmodel: {width: 8, depth: 2}\nbetas: [0.5, 1]\nchannels: null\n")
    return str(path)


def test_settings_go_over_the_recipe_which_goes_over_the_defaults(recipe):
    config = parse_config(ExampleConfig, ["num_steps=20", "--config", recipe, "model.depth=3", "use_flip=true"])
    assert config == ExampleConfig(
        data="folder",
        learning_rate=1e-3,  # YAML 1.1 reads 1e-3 as text
        num_steps=20,
        use_flip=True,
        betas=(0.5, 1.0),
        channels=None,
        model={"width": 8, "depth": 3},
    )


def test_flags_are_settings_too(recipe):
    arguments = ["--num_steps", "20", "--config", recipe, "--model.depth=3", "--use_flip", "true"]
    config = parse_config(ExampleConfig, arguments)
    assert (config.num_steps, config.model["depth"], config.use_flip) == (20, 3, True)
    with pytest.raises(ValueError, match="`--num_steps` has no value; required: --num_steps VALUE"):
        parse_config(ExampleConfig, ["data=x", "--num_steps"])


def test_a_flag_alone_is_true():
    assert parse_config(ExampleConfig, ["--use_flip", "data=x"]).use_flip
    assert parse_config(ExampleConfig, ["data=x", "--use_flip", "--num_steps", "3"]).use_flip
    assert not parse_config(ExampleConfig, ["--use_flip", "false", "data=x"]).use_flip


def test_lists_of_several_words():
    config = parse_config(ExampleConfig, ["--decays", "0.9", "1", "data=x", "--betas", "0.5", "1e-1"])
    assert (config.decays, config.betas) == ((0.9, 1.0), (0.5, 0.1))
    assert parse_config(ExampleConfig, ["data=x", "--decays", "0.9"]).decays == (0.9,)
    assert parse_config(ExampleConfig, ["data=x", "--decays", "[0.9, 1]"]).decays == (0.9, 1.0)


def test_text_or_nothing():
    @dataclass
    class Optional:
        name: str | None = "x"
        classes: tuple[int | str, ...] | None = None

    assert [parse_config(Optional, [f"name={text}"]).name for text in ("no", "2024", "null", "~", "'null'", "{")] == [
        "no",
        "2024",
        None,
        None,
        "null",
        "{",
    ]
    assert parse_config(Optional, ["--classes", "seven", "3", "no"]).classes == ("seven", 3, "no")
    assert parse_config(Optional, ["--classes", "null"]).classes is None


def test_keys_of_dictionaries_in_a_recipe(recipe, tmp_path):
    path = tmp_path / "dotted.yaml"
    path.write_text("data: x\nmodel.width: 8\nmodel.depth: 2\n")
    assert parse_config(ExampleConfig, ["--config", str(path), "model.depth=3"]).model == {"width": 8, "depth": 3}
    assert parse_config(ExampleConfig, ["--config", recipe, "model={height: 1}"]).model == {"height": 1}
    assert parse_config(ExampleConfig, ["data=x", "model.a=1", "model={}", "model.b=2"]).model == {"b": 2}


def test_a_class_with_a_field_of_that_name_takes_no_recipe():
    @dataclass
    class Conversion:
        file: str
        config: str | None = None

    assert parse_config(Conversion, ["--config", "original.yaml", "--file=x"]).config == "original.yaml"
    with pytest.raises(ValueError, match=r"`file` is not given; required: file=\.\.\. \(see --help\)"):
        parse_config(Conversion, ["config=original.yaml"])


def test_lists_of_any_length():
    assert parse_config(ExampleConfig, ["data=x", "decays=[0.9, 1]"]).decays == (0.9, 1.0)
    assert parse_config(ExampleConfig, ["data=x", "decays=[]"]).decays == ()
    with pytest.raises(ValueError, match=r"`decays` is 0\.9; required: a list of numbers"):
        parse_config(ExampleConfig, ["data=x", "decays=0.9"])


def test_settings_without_a_recipe():
    assert parse_config(ExampleConfig, ["data=user/images"]) == ExampleConfig(data="user/images")


@pytest.mark.parametrize("text", ["2024", "007", "no", "1e3", "a=b", "[x]"])
def test_text_that_yaml_takes_for_something_else_stays_text(text):
    assert parse_config(ExampleConfig, [f"data={text}"]).data == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`data` is not given; required: data=..."),
        (["--config", "NUMBER"], "`data` is 2024; required: text, in quotes where YAML reads it otherwise"),
        (["data=x", "num_step=3"], "`num_step` is no key of ExampleConfig. Did you mean `num_steps`?"),
        (["data=x", "zzz=3"], "`zzz` is no key of ExampleConfig. Known: betas, channels"),
        (["data=x", "num_steps=many"], "`num_steps` is 'many'; required: a whole number"),
        (["data=x", "num_steps=2.5"], "`num_steps` is 2.5; required: a whole number"),
        (["data=x", "learning_rate=fast"], "`learning_rate` is 'fast'; required: a number"),
        (["data=x", "learning_rate=nan"], "`learning_rate` is 'nan'; required: a number"),
        (["data=x", "learning_rate=.nan"], "`learning_rate` is nan; required: a finite number"),
        (["data=x", "learning_rate=1e999"], "`learning_rate` is inf; required: a finite number"),
        (["data=x", "learning_rate=1e308"], "`learning_rate` is 1e+308; required: a number that float32 holds"),
        (
            ["data=x", f"num_steps={10**30}"],
            "`num_steps` is a whole number of 100 bits; required: a number of at most 63",
        ),
        (["data=x", f"learning_rate={10**400}"], "required: a number"),
        (["data=x", "betas=[0.9, .inf]"], "`betas` is inf; required: a finite number"),
        (["data=x", "model={width: -.inf}"], "`model.width` is -inf; required: a finite number"),
        (["data=x", "model={8: 3}"], "`model` has the key 8; required: text, in quotes"),
        (["data=x", "--num_step", "3"], "`num_step` is no key of ExampleConfig. Did you mean `num_steps`?"),
        (["data=x", "--num_steps", "--use_flip"], "`--num_steps` has no value; required: --num_steps VALUE"),
        (["data=x", "--use_flip", "maybe"], "the argument is 'maybe'; required: key=value or --key value"),
        (["data=x", "use_flip=1"], "`use_flip` is 1; required: true or false"),
        (["data=x", "channels=all"], "`channels` is 'all'; required: a whole number or null"),
        (["data=x", "betas=[0.9]"], r"`betas` is [0.9]; required: a list of 2 numbers"),
        (["data=x", "model=8"], "`model` is 8; required: keys with values"),
        (["data=x", "learning_rate.start=8"], "`learning_rate` is {'start': 8}; required: a number"),
        (["data=x", "nothing"], "the argument is 'nothing'; required: key=value"),
        (["data=x", "model={"], "`model` is '{'; required: a YAML value"),
        (["--config", "/no/such.yaml"], "`--config` is '/no/such.yaml'; required: an existing YAML file"),
    ],
)
def test_errors_name_key_value_and_requirement(arguments, message, tmp_path):
    (tmp_path / "number.yaml").write_text("data: 2024")
    arguments = [str(tmp_path / "number.yaml") if argument == "NUMBER" else argument for argument in arguments]
    with pytest.raises(ValueError) as error:
        parse_config(ExampleConfig, arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds a list; required: keys"),
        ("a: [\n", "is no YAML file"),
        ("no: 3\n", "has the key False; required: text, in quotes"),
        ("data: x\nlearning_rat: 1\n", "`learning_rat` is no key of ExampleConfig. Did you mean `learning_rate`?"),
        ("data: x\nmodel: {a: {2: 3}}\n", "`model.a` has the key 2; required: text"),
        ("data: x\nnum_steps: .nan\n", "`num_steps` is nan; required: a finite number"),
    ],
)
def test_recipe_that_is_none(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        parse_config(ExampleConfig, ["--config", str(path)])
    assert "\n" not in str(error.value)


def test_model_arguments_have_the_types_of_the_model():
    given = {"latent_channels": 4, "scaling_factor": 1, "block_out_channels": [32, 32], "latents_mean": [0, 1] * 2}
    made = make_model_arguments("vae", given | {"latents_std": [1, 2] * 2}, AutoencoderVAVAE)
    assert made == given | {
        "scaling_factor": 1.0,
        "block_out_channels": (32, 32),
        "latents_mean": [0.0, 1.0] * 2,
        "latents_std": [1.0, 2.0] * 2,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_channel": 4}, r"`vae\.latent_channel` is no key of AutoencoderVAVAE\. Did you mean"),
        ({"latent_channels": "abc"}, r"`vae\.latent_channels` is 'abc'; required: a whole number"),
        ({"latent_channels": 0}, r"`vae\.latent_channels` is 0; required: at least 1"),
        ({"block_out_channels": [32, 0]}, r"`vae\.block_out_channels` is 0; required: at least 1"),
        ({"block_out_channels": []}, r"`vae` is .*; required: what makes a model of its class \(tuple index"),
        ({"norm_num_groups": 3}, r"what makes a model of its class \(num_channels (\(128\) )?must be divisible"),
    ],
)
def test_bad_model_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model_arguments("vae", arguments, AutoencoderVAVAE)


def test_a_patch_size_that_only_suits_the_data():
    assert make_model_arguments("model", {"patch_size": 5}, LightningDiTTransformer2DModel, {"sample_size": 20})
    with pytest.raises(ValueError, match="`sample_size` is 16; required: a multiple of `patch_size`, 5"):
        make_model_arguments("model", {"patch_size": 5}, LightningDiTTransformer2DModel)


@dataclass(kw_only=True)
class HelpedConfig:
    data: str = required("Folder of the images.", group="Data")
    size: int = setting(32, "The side of the images in pixels.", minimum=1)
    rate: float = setting(1e-4, "The learning rate.", group="Optimisation", above=0)
    solver: str = setting("euler", "The solver.", choices=("euler", "heun"))
    rates: tuple[float, ...] = setting((0.5, 1.0), "Several rates.", minimum=0.25)


@dataclass(kw_only=True)
class DerivedConfig(HelpedConfig):
    rate: float = 2e-4
    num_rows: int | None = setting(None, "The number of rows; null: all.", group="Data", minimum=1)
    model: dict = setting({"width": 8}, "Arguments of the model.", group="Model")


def test_help_names_every_setting_by_group(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse_config(DerivedConfig, ["--help"], "Train something.\n\n    train.py key=value\n    other\n")
    assert stop.value.code == 0
    assert "\n- one\n- two, which\n  goes on\n" in help_text(
        DerivedConfig, "A list:\n\n- one\n- two, which\n  goes on", 14
    )
    text = capsys.readouterr().out
    assert text.startswith("Train something.\n\n    train.py key=value\n    other\n\nSettings are given as")
    assert text.endswith("""
Data:
  data      Folder of the images. (required)
  size      The side of the images in pixels. (a whole number, at least 1;
            default: 32)
  num_rows  The number of rows; null: all. (a whole number, at least 1, or null;
            default: null)

Model:
  model     Arguments of the model. (keys with values; default: {"width": 8})

Optimisation:
  rate      The learning rate. (a number, above 0; default: 0.0002)
  solver    The solver. (euler, heun; default: euler)
  rates     Several rates. (a list of numbers, at least 0.25; default: [0.5,
            1.0])
""")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "`size` is 0; required: at least 1"),
        ({"rate": 0.0}, "`rate` is 0.0; required: a positive number"),
        ({"solver": "rk4"}, "`solver` is 'rk4'; required: one of euler, heun"),
        ({"rates": (1.0, 0.1)}, "`rates` is 0.1; required: at least 0.25"),
        ({"num_rows": 0}, "`num_rows` is 0; required: at least 1"),
    ],
)
def test_limits_that_fields_were_declared_with(values, message):
    check_settings(DerivedConfig(data="x"))
    with pytest.raises(ValueError, match=message):
        check_settings(DerivedConfig(data="x", **values))


def test_choices_and_bounds():
    check_choice("solver", "euler", ("euler", "heun"))
    with pytest.raises(ValueError, match="`solver` is 'rk4'; required: one of euler, heun"):
        check_choice("solver", "rk4", ("euler", "heun"))
    check_at_least("num_steps", 1, 1)
    with pytest.raises(ValueError, match="`num_steps` is 0; required: at least 1"):
        check_at_least("num_steps", 0, 1)


def test_one_line_errors(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise ValueError("`a` is 1; required: 2.")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: `a` is 1; required: 2.\n"


def test_other_processes_tell_only_what_the_main_process_does_not_meet(capsys, monkeypatch):
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    for error in (RuntimeError("all"), OSError("mine")):
        with (
            pytest.raises(SystemExit) as stop,
            one_line_errors((RuntimeError,), status=1, of_one_process=(OSError,)),
        ):
            raise error
        assert stop.value.code == 1
    assert capsys.readouterr().err == "error: mine\n"
