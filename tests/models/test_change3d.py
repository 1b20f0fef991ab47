"""Change3DModel against the recorded numbers of the original, and what diffusers and torch do with it."""

import json
import math

import pytest
import torch
import torch._dynamo
from golden.small_set import recorded_part
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import Change3DModel
from diffusers_lightningdit.models.change3d import Change3DBatchNorm, as_clips, as_frames, rounded_width
from diffusers_lightningdit.original.change3d import build_change3d, change3d_from_original, change3d_rows

# {configuration: {our output: (the recorded one, ...)}}
MAPS = {
    "bcd_64x64": {"change": "pred_change", "change_logits": "logits_change"},
    "bcd_96x64": {"change": "pred_change", "change_logits": "logits_change"},
    "scd_64x64_c7": {
        "before_logits": "pred_pre",
        "after_logits": "pred_post",
        "change": "pred_change",
        "change_logits": "logits_change",
    },
    "bda_64x64_c5": {"damage_logits": "pred_cls", "building": "pred_loc", "building_logits": "logits_loc"},
}
TASKS = {
    "binary": {"task": "binary"},
    "semantic": {"task": "semantic", "num_classes": 3},
    "damage": {"task": "damage", "num_classes": 5},
    "captioning": {"task": "captioning", "vocab_size": 9},
}
TINY = {"sample_size": 32, "width_factor": 0.7, "depth_factor": 0.4}


@pytest.fixture
def recorded_model(change3d_checkpoint):
    return lambda name: build_change3d(change3d_from_original(change3d_checkpoint(name)))


def tiny(task: str = "binary", **changes) -> Change3DModel:
    """A model whose output depends on everything: nothing is left at its zero initialisation."""
    torch.manual_seed(0)
    model = Change3DModel(**TASKS[task] | TINY | changes)
    for value in model.state_dict().values():
        if value.ndim == 1:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return model.eval()


def arguments(model: Change3DModel, batch_size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, 3, *model.sample_size)
    found = {name: torch.randn(shape, generator=generator) for name in ("image_before", "image_after")}
    if model.config.task == "captioning":
        found["captions"] = torch.randint(0, model.config.vocab_size, (batch_size, 6), generator=generator)
    return found


def assert_near(found: torch.Tensor, recorded: torch.Tensor, tolerance: float = 1e-5, relative: bool = False) -> None:
    """Compare with a recorded tensor, of which pixels may have been left out; `relative` to its maximum."""
    scale = recorded.abs().max().item() if relative else 1.0
    assert (recorded_part(found, recorded) - recorded).abs().max().item() <= tolerance * scale


# -- Numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_those_of_the_original(name, recorded_model, golden_change3d):
    model, recorded = recorded_model(name), load_file(golden_change3d(f"{name}.safetensors"))
    with torch.no_grad():
        output = model(recorded["pre"], recorded["post"])
        features = model.encoder(recorded["pre"], recorded["post"], model._run_block)
    for ours, theirs in MAPS[name].items():
        assert_near(getattr(output, ours), recorded[theirs])
    compared = 0
    for key, value in recorded.items():
        if key.startswith("feat_"):
            assert_near(features[int(key[6])][:, int(key[9])], value, relative=True)
            compared += 1
    assert compared == 4 * model.encoder.perception_frames.shape[2]
    as_tuple = model(recorded["pre"], recorded["post"], return_dict=False)
    assert [value.shape for value in as_tuple] == [value.shape for value in output.to_tuple()]


@pytest.mark.parametrize("num_frames", [3, 4, 5])
def test_x3d_is_that_of_the_original(num_frames, change3d_checkpoint, golden_change3d):
    """The last stage, which only captioning has, is in the file of the binary model, too."""
    recorded = load_file(golden_change3d("x3d_bcd_64x64.safetensors"))
    original = change3d_checkpoint("bcd_64x64")
    model = Change3DModel("captioning", sample_size=32, vocab_size=5).eval()
    rows = [row for row in change3d_rows(model) if "x3d" in row.original]
    weights = {key: value for row in rows for key, value in row.to_ours(original[row.original]).items()}
    model.load_state_dict(model.state_dict() | weights)
    frames = as_frames(recorded[f"clip_T{num_frames}"]).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for stage, blocks in enumerate([[model.encoder.stem], *model.encoder.stages]):
            for block in blocks:
                frames = block(frames, num_frames)
            assert_near(as_clips(frames, num_frames), recorded[f"T{num_frames}_block{stage}"], relative=True)


def test_the_enhancement_is_fed_forward(recorded_model, golden_change3d):
    model, recorded = recorded_model("bcd_64x64"), load_file(golden_change3d("x3d_bcd_64x64.safetensors"))
    encoder, clip = model.encoder, recorded["clip_T3"]
    assert torch.equal(clip[:, :, 1:-1], encoder.perception_frames)
    with torch.no_grad():
        frames = encoder.clips(clip[:, :, 0], clip[:, :, -1])
        assert torch.equal(as_clips(frames, 3), clip)
        for stage, blocks in enumerate([[encoder.stem], *encoder.stages]):
            for block in blocks:
                frames = block(frames, 3)
            frames = encoder.enhance(frames, 3, stage)
            assert_near(as_clips(frames, 3), recorded[f"T3_enhanced{stage}"], relative=True)


def test_captions_by_teacher_forcing(recorded_model, golden_change3d):
    model, recorded = recorded_model("cc_64x64_v43"), load_file(golden_change3d("cc_64x64_v43.safetensors"))
    with torch.no_grad():
        features = model.encode(recorded["pre"], recorded["post"])
        logits = model(recorded["pre"], recorded["post"], recorded["captions"]).logits
    assert_near(features, recorded["enc"], relative=True)
    assert_near(features.flatten(2).permute(2, 0, 1), recorded["memory"], tolerance=1e-5, relative=True)
    assert_near(model.decoder_caption.positions[:8, None], recorded["pe_first8"], 1e-6)
    assert_near(logits[recorded["sort_ind"]], recorded["tf_scores_sorted"])  # the original sorts by length
    targets = recorded["captions"][:, 1:]
    is_word = torch.arange(51) < recorded["caplens"] - 1
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][is_word], targets[is_word], ignore_index=0)
    case = json.loads(golden_change3d("configs.json").read_text())["configs"]["cc_64x64_v43"]
    assert loss.item() == pytest.approx(case["tf_loss"], rel=1e-6)
    accuracy = (logits[:, :-1][is_word].argmax(-1) == targets[is_word]).double().mean().item()
    assert 100 * accuracy == pytest.approx(case["tf_top1_acc"], rel=1e-6)
    assert torch.equal(recorded["decode_lengths"], is_word.sum(1)[recorded["sort_ind"]])


@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_beam_search_finds_the_same_captions(num_beams, recorded_model, golden_change3d):
    model = recorded_model("cc_64x64_v43")
    features = load_file(golden_change3d("cc_decode.safetensors"))["features"]
    recorded = json.loads(golden_change3d("cc_decode.json").read_text())[f"beam_{num_beams}"]["per_image"]
    together = model.generate_from_features(features, num_beams)
    assert together.sequences == [image["sequence"] for image in recorded]
    assert together.num_finished == [image["n_complete"] for image in recorded]
    for score, image in zip(together.scores, recorded, strict=True):
        assert score == (None if image["logprob"] is None else pytest.approx(image["logprob"], abs=1e-4))
    alone = [model.generate_from_features(one[None], num_beams).sequences[0] for one in features]
    assert alone == together.sequences


def test_gradients_are_those_of_the_original(recorded_model, golden_change3d):
    """The loss in evaluation, with norms as fixed scales, differentiated by every weight."""
    model, inputs = recorded_model("bcd_64x64"), load_file(golden_change3d("bcd_64x64.safetensors"))
    recorded = load_file(golden_change3d("train_bcd_64x64.safetensors"))
    table = json.loads(golden_change3d("train_bcd_64x64.json").read_text())
    p, t = model(inputs["pre"], inputs["post"]).change, recorded["target"]
    dice = 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
    loss = torch.nn.functional.binary_cross_entropy(p, t) + dice
    assert loss.item() == pytest.approx(table["bce_dice_eval_mode"], rel=1e-6)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    rows = {row.original: row for row in change3d_rows(model)}
    compared = set()
    for key, norm in table["grad_l2_norms"].items():
        if norm is None:  # of what the task does not use
            assert key not in rows
            continue
        assert rows[key].to_original(gradients).norm().item() == pytest.approx(norm, rel=1e-3), key
        compared.update(rows[key].ours)
    assert compared == set(gradients)
    assert_near(model.encoder.perception_frames.grad, recorded["grad_perception_frames"], 1e-3, relative=True)
    assert_near(model.encoder.stages[2][0].depthwise.conv.weight.grad, recorded["grad_res4_0_conv_b"], 1e-3, True)
    assert_near(model.encoder.differences[1].weight.grad, recorded["grad_fc1"], 1e-3, relative=True)
    assert_near(model.decoder_change.conv_out.weight.grad, recorded["grad_up_c1"], 1e-3, relative=True)


def test_a_forward_pass_in_training_mode(recorded_model, golden_change3d):
    model, inputs = recorded_model("bcd_64x64").train(), load_file(golden_change3d("bcd_64x64.safetensors"))
    recorded = load_file(golden_change3d("train_bcd_64x64.safetensors"))
    with torch.no_grad():
        assert_near(model(inputs["pre"], inputs["post"]).change, recorded["train_mode_pred"], 5e-5)
    rows = {row.original: row.ours[0] for row in change3d_rows(model)}
    state_dict, compared = model.state_dict(), 0
    for key, value in recorded.items():
        if key.startswith("train_mode."):
            assert_near(state_dict[rows[key.removeprefix("train_mode.")]], value, relative=True)
            compared += 1
    assert compared == 4


@pytest.mark.parametrize(
    ("config", "number"),
    [
        ({"task": "binary"}, 1_542_656),
        ({"task": "semantic", "num_classes": 6}, 1_668_704),
        ({"task": "semantic", "num_classes": 7}, 1_669_136),
        ({"task": "damage", "num_classes": 5}, 1_605_464),
        ({"task": "captioning", "vocab_size": 100}, 5_256_888 + 385 * 100),
    ],
)
def test_only_what_the_task_uses_is_built(config, number):
    """The numbers of parameters in the paper's tables, without the perception frames."""
    model = Change3DModel(**config)
    assert model.num_parameters() - model.encoder.perception_frames.numel() == number
    assert model.encoder.perception_frames.shape[3:] == (256, 256)


def test_initialisation():
    model = Change3DModel("captioning", sample_size=64, vocab_size=50)
    frames = model.encoder.perception_frames
    assert frames.std().item() == pytest.approx(1, abs=0.02)
    block = model.encoder.stages[2][1]
    assert not block.narrow.norm.weight.any() and block.widen.norm.weight.eq(1).all()
    fan_out = 216 * 27
    assert block.depthwise.conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    decoder = model.decoder_caption
    assert decoder.embedding.weight.abs().max().item() == pytest.approx(0.1, abs=1e-3)
    limit = math.sqrt(6 / (192 + 3 * 192))  # of Xavier, for one matrix of query, key and value
    assert decoder.blocks[0].attn1.to_k.weight.abs().max().item() == pytest.approx(limit, rel=1e-2)
    assert decoder.blocks[0].attn2.to_out.weight.std().item() == pytest.approx(math.sqrt(2 / 192), rel=0.05)
    assert not any(module.bias.any() for module in decoder.modules() if isinstance(module, torch.nn.Linear))
    binary = Change3DModel(sample_size=64)
    assert binary.decoder_change.up[2].conv.weight.std().item() == pytest.approx(math.sqrt(2 / 96), rel=0.05)
    # the default of torch: uniform, variance 1 / (3 fan_in)
    assert binary.encoder.differences[3].weight.std().item() == pytest.approx(math.sqrt(1 / (3 * 96)), rel=0.05)


def test_widths_are_rounded_as_in_x3d():
    assert [rounded_width(0.0625 * width) for width in (54, 108, 216, 432)] == [8, 8, 16, 32]
    assert rounded_width(20.0) == 24 and rounded_width(11.9) == 16  # 8 would be less than 90 %


# -- Original checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bcd_96x64", "cc_64x64_v43"])
def test_from_single_file(name, recorded_model, change3d_checkpoint, tmp_path):
    torch.save({"state_dict": change3d_checkpoint(name)}, tmp_path / "change3d.pth")
    expected, model = recorded_model(name), Change3DModel.from_single_file(str(tmp_path / "change3d.pth"))
    assert dict(model.config) == dict(expected.config) and not model.training
    state_dict = model.state_dict()
    assert state_dict.keys() == expected.state_dict().keys()
    assert all(torch.equal(value, state_dict[key]) for key, value in expected.state_dict().items())
    with torch.no_grad():
        for value, other in zip(*(one(**arguments(expected), return_dict=False) for one in (expected, model)),
                                strict=True):  # fmt: skip
            assert torch.equal(value, other)  # positions, too, which are in no file


def test_from_single_file_of_other_layouts(change3d_checkpoint, recorded_model, tmp_path):
    """The pair of dictionaries of captioning, plain safetensors, and a file whose size a config repeats."""
    original = change3d_checkpoint("cc_64x64_v43")
    parts = {"encoder_image": "encoder.", "decoder": "decoder."}
    content = {
        name: {key.removeprefix(start): value for key, value in original.items() if key.startswith(start)}
        for name, start in parts.items()
    }
    torch.save(content, tmp_path / "captions.pth")
    model = Change3DModel.from_single_file(str(tmp_path / "captions.pth"), dtype=torch.bfloat16)
    assert model.config.vocab_size == 43 and model.dtype == torch.bfloat16
    expected = recorded_model("bcd_64x64")
    save_file(change3d_checkpoint("bcd_64x64"), tmp_path / "maps.safetensors")
    expected.save_config(tmp_path / "model")
    model = Change3DModel.from_single_file(str(tmp_path / "maps.safetensors"), config=str(tmp_path), subfolder="model")
    assert torch.equal(model.encoder.perception_frames, expected.encoder.perception_frames)


def test_from_single_file_refuses_what_does_not_fit(change3d_checkpoint, tmp_path):
    original = change3d_checkpoint("bcd_64x64")
    with pytest.raises(ValueError, match=r"key `encoder.fc.0.0.weight` is missing"):
        Change3DModel.from_single_file({key: v for key, v in original.items() if key != "encoder.fc.0.0.weight"})
    Change3DModel("binary", sample_size=32).save_config(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has shape .*64, 64\] in the file; required: .*32, 32\], by the `config`"):
        Change3DModel.from_single_file(original, config=str(tmp_path), subfolder="model")
    Change3DModel("semantic", sample_size=64, num_classes=2).save_config(tmp_path / "other" / "model")
    with pytest.raises(ValueError, match=r"key `decoder_after.* in the file; required: .*, by the `config`"):
        Change3DModel.from_single_file(original, config=str(tmp_path / "other" / "model"))
    with pytest.raises(ValueError, match="`original_config` has 1 keys; required: None for Change3D"):
        Change3DModel.from_single_file(original, original_config={"model": {}})
    torch.save({"state_dict": original, "run": print}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match=r"code.pth: contains the Python object"):
        Change3DModel.from_single_file(str(tmp_path / "code.pth"))


# -- What diffusers and torch do with the model ------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_saved_and_loaded(task, tmp_path):
    model = tiny(task, sample_size=(32, 48))
    model.save_pretrained(tmp_path)
    loaded = Change3DModel.from_pretrained(tmp_path).eval()
    assert loaded.sample_size == (32, 48)
    state_dict, expected = loaded.state_dict(), model(**arguments(model), return_dict=False)
    assert all(torch.equal(value, state_dict[name]) for name, value in model.state_dict().items())
    for value, other in zip(expected, loaded(**arguments(model), return_dict=False), strict=True):
        assert torch.allclose(value, other, atol=1e-5)  # positions, too, which are not in the file


@pytest.mark.parametrize(
    ("task", "is_training"), [*((task, False) for task in TASKS), ("semantic", True), ("captioning", True)]
)
def test_compiled_in_one_graph(task, is_training):
    model = tiny(task, depth_factor=0.1).train(is_training)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(**arguments(model))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_blocks_are_not_compiled_alone():
    """X3D-L has nine kinds of blocks, of other widths, strides and shortcuts; torch compiles code for eight."""
    with pytest.raises(ValueError, match="`_repeated_blocks` attribute is empty"):
        tiny().compile_repeated_blocks(fullgraph=True)


def test_compiled_fullgraph_computes_the_same():
    model = tiny("semantic", depth_factor=0.2)
    expected = model(**arguments(model), return_dict=False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for value, other in zip(expected, compiled(**arguments(model)).to_tuple(), strict=True):
            assert torch.allclose(value, other, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d, torch.contiguous_format])
def test_memory_formats(memory_format):
    model = tiny("damage")
    expected = model(**arguments(model)).damage_logits
    assert model.to(memory_format=memory_format) is model
    weight = model.encoder.stem.conv_space.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (memory_format != torch.contiguous_format)
    assert torch.allclose(model(**arguments(model)).damage_logits, expected, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_bf16_autocast(task):
    model = tiny(task)
    expected = model(**arguments(model), return_dict=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**arguments(model), return_dict=False)
    for value, other in zip(expected, found, strict=True):
        assert other.dtype == torch.bfloat16
        assert (value - other).abs().max() < 0.05 * value.abs().max()
    loss = sum(value.float().square().mean() for value in found)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_gradient_checkpointing_changes_no_number():
    """Neither gradients nor the statistics of norms, which a block that is computed twice would count twice."""
    results = []
    for is_enabled in (False, True):
        model = tiny().train()
        if is_enabled:
            model.enable_gradient_checkpointing()
        model(**arguments(model)).change.square().sum().backward()
        results.append((model.state_dict(), {name: value.grad for name, value in model.named_parameters()}))
    for plain, other in zip(*results, strict=True):
        assert plain.keys() == other.keys()
        assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_gradient_checkpointing_saves_memory():
    kept = []
    for is_enabled in (False, True):
        model = tiny(depth_factor=2.0).train()
        if is_enabled:
            model.enable_gradient_checkpointing()
        saved = []

        def keep(value, saved=saved):
            saved.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model(**arguments(model))
        kept.append(sum(saved))
    assert kept[1] < 0.5 * kept[0]


def test_the_norms_learn_without_and_with_folding():
    """Evaluation is one convolution for each norm, and what it computes is the norm."""
    model = tiny()
    block = model.encoder.stages[0][0].widen
    frames = torch.randn(6, 8, 16, 16)
    with torch.no_grad():
        plain = block.norm(torch.nn.functional.conv2d(frames, block.conv.weight))
        assert torch.allclose(block(frames, 3), plain, atol=1e-5)


def test_statistics_of_a_batch_are_exact_and_differentiated():
    """Against float64, where the norm of torch on a CPU differs by up to 4e-5 in this memory layout."""
    norm = Change3DBatchNorm(54)
    torch.nn.init.uniform_(norm.weight)
    exact = torch.nn.BatchNorm2d(54).double()
    exact.load_state_dict(norm.state_dict())
    frames = (torch.randn(4, 54, 64, 64) * 2 + 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    as_double = frames.detach().double().requires_grad_()
    weight = torch.randn(4, 54, 64, 64)
    (norm(frames) * weight).sum().backward()
    (exact(as_double) * weight.double()).sum().backward()
    assert (norm.running_mean - exact.running_mean).abs().max() < 1e-6
    assert (norm.running_var - exact.running_var).abs().max() < 1e-6
    assert norm.num_batches_tracked == 1
    for found, expected in (
        (norm(frames), exact(as_double)),
        (frames.grad, as_double.grad),
        (norm.weight.grad, exact.weight.grad),
        (norm.bias.grad, exact.bias.grad),
    ):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_pair_does_not_depend_on_its_batch():
    model = tiny("semantic")
    inputs = arguments(model, batch_size=3)
    together = model(**inputs).after_logits
    alone = model(**{name: value[1:2] for name, value in inputs.items()}).after_logits
    assert torch.allclose(together[1:2], alone, atol=1e-5)


# -- Perception frames of another size ---------------------------------------------------------------------------------


def test_perception_frames_are_resized_bilinearly():
    model = tiny("semantic")
    before = model.encoder.perception_frames.detach().clone()
    model.resize_perception_frames((64, 48))
    frames = model.encoder.perception_frames
    assert frames.shape == (1, 3, 3, 64, 48) and frames.requires_grad and model.sample_size == (64, 48)
    for number in range(3):  # each frame alone: no mixing over time
        expected = torch.nn.functional.interpolate(before[:, :, number], (64, 48), mode="bilinear")
        assert torch.allclose(frames[:, :, number], expected, atol=1e-6)
    assert model(**arguments(model)).before_logits.shape == (2, 3, 64, 48)
    # at half the size and with half-pixel centres, the mean of four
    model = tiny()
    before = model.encoder.perception_frames.detach().clone()
    model.resize_perception_frames(16)
    assert torch.allclose(
        model.encoder.perception_frames[:, :, 0], torch.nn.functional.avg_pool2d(before[:, :, 0], 2), atol=1e-6
    )
    model.resize_perception_frames(16)
    assert model.config.sample_size == 16


def test_a_bad_size_leaves_the_model_alone():
    model = tiny()
    before = model.encoder.perception_frames
    with pytest.raises(ValueError, match=r"`sample_size` is 20; required: a multiple of 8 pixels"):
        model.resize_perception_frames(20)
    assert model.config.sample_size == 32 and model.encoder.perception_frames is before


# -- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "counting"}, "`task` is 'counting'; required: one of 'binary', 'semantic', 'damage', 'captioning'"),
        ({"sample_size": 100}, "`sample_size` is 100; required: a multiple of 8"),
        ({"sample_size": 24, **TASKS["captioning"]}, "`sample_size` is 24; required: a multiple of 16"),
        ({"sample_size": (32, 32, 32)}, r"`sample_size` is \(32, 32, 32\)"),
        ({"num_classes": 2}, "`num_classes` is 2; required: None for the task 'binary'"),
        ({"task": "semantic"}, "`num_classes` is None; required: 2 to 1000 for the task 'semantic'"),
        ({"vocab_size": 9}, "`vocab_size` is 9; required: None for the task 'binary'"),
        ({"task": "captioning"}, "`vocab_size` is None; required: at least 5"),
        ({"task": "captioning", "vocab_size": 4}, "`vocab_size` is 4; required: at least 5"),
        ({**TASKS["captioning"], "num_attention_heads": 7}, "`num_attention_heads` is 7; required: a divisor of"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        Change3DModel(**{**TINY, **changes})


def test_bad_calls():
    model, captioning = tiny(), tiny("captioning")
    image = torch.zeros(1, 3, 32, 32)
    words = torch.tensor([[7]])
    for call, message in (
        (lambda: model(image, torch.zeros(1, 3, 40, 32)), "`image_after` is 40x32; required: 32x32, the `sample_size`"),
        (lambda: model(torch.zeros(1, 4, 32, 32), image), r"`image_before` has the shape \(1, 4, 32, 32\)"),
        (lambda: model(image, image.expand(2, -1, -1, -1)), "`image_after` has 2 images; required: 1"),
        (lambda: model(image, image, words), "`captions` are given for `task` 'binary'"),
        (lambda: captioning(image, image), "`captions` is None, not given for `task` 'captioning'"),
        (lambda: captioning(image, image, words.expand(1, 60)), r"`captions` has the shape \(1, 60\); .* from 1 to 52"),
        (lambda: captioning.generate(image, image, num_beams=0), "`num_beams` is 0; required: at least 1"),
        (lambda: model.generate(image, image), "`task` is 'binary'; required: a model with the task 'captioning'"),
        (lambda: model.encode(image, image), "`task` is 'binary'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_generated_words_are_those_of_teacher_forcing():
    """Keys and values of words that are kept between the steps are those of the whole caption."""
    model = tiny("captioning")
    inputs = arguments(model)
    greedy = model.generate(inputs["image_before"], inputs["image_after"])
    for number, sequence in enumerate(greedy.sequences):
        words = sequence or [model.config.vocab_size - 2]
        images = {name: inputs[name][number : number + 1] for name in ("image_before", "image_after")}
        for _ in range(51 if sequence is None else 0):
            words.append(model(**images, captions=torch.tensor([words])).logits[0, -1].argmax().item())
        if sequence is None:
            assert model.config.vocab_size - 1 not in words
        else:
            assert model(**images, captions=torch.tensor([words[:-1]])).logits[0].argmax(-1).tolist() == words[1:]
            log_prob = model(**images, captions=torch.tensor([words[:-1]])).logits[0].log_softmax(-1)
            total = sum(log_prob[i, word].item() for i, word in enumerate(words[1:]))
            assert greedy.scores[number] == pytest.approx(total, abs=1e-4)
