"""A sweep of the embedded pipeline, of a few images and steps."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file, save_file

from diffusers_lightningdit.evaluate import main
from diffusers_lightningdit.evaluation import provenance, reference
from diffusers_lightningdit.evaluation.commands import sweep
from diffusers_lightningdit.evaluation.commands.generation import evaluate_generation
from diffusers_lightningdit.evaluation.commands.sweep import Combination, SweepConfig, combinations, generation_config

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def arguments(digits_pipeline, real_digits, vision_transformer) -> list[str]:
    return [
        *("sweep", "--pipeline", digits_pipeline, "--guidance_scales", "[1, 2]", "--num_inference_steps", "[1]"),
        *(f"generation.reference={real_digits}", f"generation.features={vision_transformer}"),
        *("generation.num_images=16", "generation.precision_recall=false"),
    ]


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory) -> Path:
    """The output folder of a sweep that was interrupted in its second run."""
    folder = tmp_path_factory.mktemp("sweep")

    class Ended(Exception):
        """Interrupt as a signal does."""

    def end_at_the_second(settings, *arguments):
        if "scale-2" in settings.output_dir:
            raise Ended
        return evaluate_generation(settings, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Ended):
        patch.setattr(sweep, "evaluate_generation", end_at_the_second)
        main([*arguments, "--output_dir", str(folder)])
    assert len(table(folder)) == 1
    first = folder / "runs" / "scale-1_steps-1" / "generation.json"
    written = first.stat().st_mtime_ns
    AcceleratorState._reset_state(reset_partial_state=True)
    main([*arguments, "--output_dir", str(folder)])
    assert first.stat().st_mtime_ns == written  # not measured again
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "sweep.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_has_numbers_as_they_are(tmp_path):
    """Whole numbers stay so where other rows have none; a column without a value is left out."""
    sweep.write_table(tmp_path / "sweep.csv", [{"steps": 1, "fid": 0.5, "precision": None}, {"fid": 1e-7, "name": "x"}])
    assert (tmp_path / "sweep.csv").read_text() == "steps,fid,name\n1,0.5,\n,1e-07,x\n"


def test_a_sweep_goes_on_to_the_whole_table(folder):
    rows = table(folder)
    assert [(row["guidance_scale"], row["num_inference_steps"]) for row in rows] == [("1.0", "1"), ("2.0", "1")]
    for row in rows:
        name = f"scale-{float(row['guidance_scale']):g}_steps-1"
        record = json.loads((folder / "runs" / name / "generation.json").read_text())
        assert record["settings"]["sampling"]["guidance_scale"] == float(row["guidance_scale"])
        assert float(row["frechet_distance"]) == record["results"]["frechet_distance"]
        assert not (folder / "runs" / name / "images").exists()
    assert rows[0]["frechet_distance"] != rows[1]["frechet_distance"]
    assert len(json.loads((folder / "sweep.json").read_text())["rows"]) == 2
    assert (folder / "sweep.png").stat().st_size > 1000


def test_the_reference_is_measured_once(arguments, folder, tmp_path, monkeypatch):
    """The metrics are the same as if each run had measured it."""
    titles, measure_set = [], reference.measure_set
    monkeypatch.setattr(reference, "measure_set", lambda *given: (titles.append(given[-1]), measure_set(*given))[1])
    main([*arguments, "--output_dir", str(tmp_path / "sweep")])
    assert titles == ["reference"]
    assert table(tmp_path / "sweep") == table(folder)


def config_of(generation: dict | None = None, **settings) -> SweepConfig:
    return SweepConfig(pipeline="p", output_dir="o", generation={"features": "f", **(generation or {})}, **settings)


def test_every_combination_has_a_name_of_its_own():
    config = config_of(
        guidance_scales=(1.0, 1.5),
        guidance_intervals=((0.0, 1.0), (0.125, 1.0)),
        num_inference_steps=(5, 10),
        schedulers=("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"),
    )
    names = [combination.name for combination in combinations(config)]
    assert len(set(names)) == len(names) == 16
    assert names[0] == "scale-1_interval-0-1_steps-5_FlowMatchEulerDiscreteScheduler"


def test_settings_of_a_run():
    config = config_of(guidance_scales=(1.5,), generation={"num_images": 7, "sampling": {"guidance_channels": 3}})
    settings = generation_config(config, Combination(1.5, (0.1, 1.0), 9, "UniPCMultistepScheduler"))
    assert settings.num_images == 7
    assert settings.scheduler == "UniPCMultistepScheduler"
    assert settings.sampling == {
        "guidance_channels": 3,
        "guidance_scale": 1.5,
        "guidance_interval": [0.1, 1.0],
        "num_inference_steps": 9,
    }


def test_intervals_at_scale_1_are_measured_once(arguments, tmp_path, monkeypatch):
    drawn = []

    def count(settings, *others):
        drawn.append(settings.sampling)
        return {"results": {"rfd": float(len(drawn))}}

    monkeypatch.setattr(sweep, "evaluate_generation", count)
    config = config_of(guidance_scales=(1.0, 2.0), guidance_intervals=((0.0, 1.0), (0.5, 1.0)))
    config.output_dir = str(tmp_path)
    runs = {combination: generation_config(config, combination) for combination in combinations(config)}
    rows = sweep._measure_runs(config, runs, dict.fromkeys(runs), Accelerator())
    assert [row["rfd"] for row in rows] == [1, 1, 2, 3]
    assert [row["interval_start"] for row in rows] == [0.0, 0.5, 0.0, 0.5]
    assert len(drawn) == 3


def test_what_is_plotted(monkeypatch):
    drawn = {}
    monkeypatch.setattr(sweep, "plot_lines", lambda path, lines, x, y, title: drawn.update(lines=lines, x=x, y=y))
    values = [(5, 1.0, 9.0), (5, 2.0, 8.0), (10, 1.0, 7.0), (10, 2.0, 6.0)]
    rows = [{**Combination(scale, None, steps, None).row(), "fid": fid, "sfid": 0.0} for steps, scale, fid in values]
    sweep.plot_sweep(Path("sweep.png"), rows, config_of(guidance_scales=(1.0, 2.0)))
    assert (drawn["x"], drawn["y"]) == ("guidance_scale", "fid")
    assert drawn["lines"] == {
        "num_inference_steps 5": [(1.0, 9.0), (2.0, 8.0)],
        "num_inference_steps 10": [(1.0, 7.0), (2.0, 6.0)],
    }
    with pytest.raises(ValueError, match="`metric` is 'kid'; required: one of those measured, fid, sfid"):
        sweep.plot_sweep(Path("sweep.png"), rows, config_of(guidance_scales=(1.0,), metric="kid"))


@pytest.mark.parametrize(
    ("settings", "rows", "expected"),
    [
        (
            {"schedulers": ("Euler", "Heun")},
            [Combination(None, None, None, "Euler"), Combination(None, None, None, "Heun")],
            {"Euler": 0.0, "Heun": 1.0},
        ),
        ({"guidance_scales": (2.0,), "num_inference_steps": (5,)}, [Combination(2.0, None, 5, None)], {"2.0, 5": 0.0}),
    ],
)
def test_bars_where_no_number_is_varied(monkeypatch, settings, rows, expected):
    drawn = {}
    monkeypatch.setattr(sweep, "plot_bars", lambda path, values, x, title: drawn.update(values=values, x=x))
    rows = [{**combination.row(), "fid": float(index)} for index, combination in enumerate(rows)]
    sweep.plot_sweep(Path("sweep.png"), rows, config_of(**settings))
    assert drawn == {"values": expected, "x": "fid"}


def test_ends_of_intervals_are_an_axis(monkeypatch):
    drawn = {}
    monkeypatch.setattr(sweep, "plot_lines", lambda path, lines, x, y, title: drawn.update(lines=lines, x=x))
    intervals = ((0.0, 0.5), (0.0, 1.0))
    rows = [{**Combination(None, interval, None, None).row(), "fid": interval[1]} for interval in intervals]
    sweep.plot_sweep(Path("sweep.png"), rows, config_of(guidance_intervals=intervals))
    assert drawn == {"x": "interval_end", "lines": {"": [(0.5, 0.5), (1.0, 1.0)]}}


def test_dotted_names_are_settings_within_settings():
    settings = {"num_images": 7, "sampling": {"guidance_channels": 3}, "sampling.num_inference_steps": 4}
    config = config_of(settings, guidance_scales=(1.5,))
    assert config.generation["sampling"] == {"guidance_channels": 3, "num_inference_steps": 4}
    run = generation_config(config, Combination(1.5, None, None, None))
    assert run.sampling == {"guidance_channels": 3, "num_inference_steps": 4, "guidance_scale": 1.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["guidance_scales=[]", "num_inference_steps=[]"],
            "`guidance_scales`, `guidance_intervals`, `num_inf",
        ),
        (["guidance_scales=[1, 1]"], "`guidance_scales` is [1.0, 1.0], with a value twice; required: each once."),
        (["num_inference_steps=[0]"], "`num_inference_steps` is 0; required: at least 1."),
        (["guidance_intervals=[[0.5, 0.1]]"], "`guidance_intervals` has [0.5, 0.1]; required: times, 0 <= start"),
        (["schedulers=[Euler]"], "`scheduler` is 'Euler'; required: the name of a scheduler class of diffusers."),
        (["generation.scheduler=Euler"], "`generation.scheduler` is given; required: `schedulers` of the sweep"),
        (["generation.features=null"], "`generation.features` and `generation.inception` are not given; required: one"),
        (["generation.labels=all"], "`labels` is 'all'; required: one of balanced, random."),
        (["metric=kid"], "`metric` is 'kid'; required: one of those measured, frechet_distance."),
        (["generation.reference=null"], "`generation.reference` is not given, and nothing would be measured; required"),
        (
            ["generation.sampling=3", "generation.sampling.a=3"],
            "`generation.sampling.a` is given, but `generation.samp",
        ),
        (["generation.sampling.guidance_scale=2"], "`generation.sampling.guidance_scale` is 2, and is swept over;"),
        (["generation.sampling={guidance_scale: 2}"], "`generation.sampling.guidance_scale` is 2, and is swept over;"),
    ],
)
def test_bad_input_is_one_line(error_line, arguments, tmp_path, settings, message):
    assert error_line(*arguments, f"output_dir={tmp_path / 'new'}", *settings).startswith(message)
    assert not (tmp_path / "new").exists()


def test_a_run_with_other_settings(error_line, arguments, folder):
    error = error_line(*arguments, "generation.seed=1", "--output_dir", str(folder))
    assert "generation.json was measured with `seed` 0, now it is 1; required: the same, or" in error


@pytest.fixture
def changeable(arguments, folder, tmp_path) -> tuple[list[str], Path]:
    """A finished sweep over one scale, with a pipeline, a network and a reference that a test may change."""
    words = list(arguments)
    words[words.index("--guidance_scales") + 1] = "[1]"
    for index, word in enumerate(words):
        prefix, _, path = word.rpartition("=")
        if Path(path).is_dir():
            copy = shutil.copytree(path, tmp_path / (prefix.rpartition(".")[2] or "pipeline"))
            words[index] = f"{prefix}={copy}" if prefix else str(copy)
    words += ["--output_dir", str(tmp_path / "sweep")]
    main(words)
    AcceleratorState._reset_state(reset_partial_state=True)
    return words, tmp_path


def scale_weights(file: Path) -> None:
    save_file({name: 1.5 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda folder: scale_weights(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors"),
            "whose images were drawn with weights_sha256.transformer = ",
        ),
        (
            lambda folder: scale_weights(folder / "features" / "model.safetensors"),
            "generation.json was measured with features.sha256 = ",
        ),
        (
            lambda folder: Dataset.from_parquet(str(folder / "reference" / "train.parquet"), cache_dir=str(folder))
            .select(range(50))
            .to_parquet(folder / "reference" / "train.parquet"),
            "generation.json was measured with reference.sha256 = ",
        ),
    ],
    ids=["weights", "features", "reference"],
)
def test_a_finished_run_of_something_else(error_line, changeable, change, expected):
    words, folder = changeable
    change(folder)
    words[words.index("--guidance_scales") + 1] = "[1, 2]"
    assert expected in error_line(*words)
    assert not (folder / "sweep" / "runs" / "scale-2_steps-1").exists()


def test_what_is_finished_is_hashed_once(arguments, folder, monkeypatch):
    hashed = []
    weights_sha256 = provenance.weights_sha256
    monkeypatch.setattr(provenance, "weights_sha256", lambda model: (hashed.append(model), weights_sha256(model))[1])
    before = table(folder)
    main([*arguments, "--output_dir", str(folder)])
    assert table(folder) == before
    assert len(hashed) == 2  # transformer and VAE, of two runs


def test_a_folder_of_something_else(error_line, arguments, tmp_path):
    (tmp_path / "notes.txt").touch()
    error = error_line(*arguments, "--output_dir", str(tmp_path))
    assert "no sweep; required: a new or an empty folder" in error
